"""Speed figures of docs/results.md: ratios measured in turns, on built-in images or on noise.

    python scripts/benchmark.py                          all of it, about 20 minutes on 2 cores
    python scripts/benchmark.py training                 the trainer against the bare step and a straightforward loop
    python scripts/benchmark.py precision                what bf16 costs in quality
    python scripts/benchmark.py quantizers               a quantizer's step against vector-quantize-pytorch, and its parts
    python scripts/benchmark.py sampling                 codes drawn from a cache against the whole network for each
    python scripts/benchmark.py heads                    memory and time of a prior's step, by codes and heads: K to 2^18
    python scripts/benchmark.py distributed              bytes that two processes exchange, for every quantizer, and their speed
    python scripts/benchmark.py data                     items/s from memory, disk, folders, shards; torchvision's; decoders
    python scripts/benchmark.py gpu                      on a GPU: trainer, graphs, plain loop, priors, draws, lookups
    python scripts/benchmark.py exactness                on a GPU: every tile of the nearest-code kernel against float64
    python scripts/benchmark.py tiles                    on a GPU: the speed of those tiles
    python scripts/benchmark.py training data=folder data.root=... data.image_size=32     on your own images

The network and its settings are those of experiment=cifar10_sonnet; overrides of train.py go behind (quantizers: of the
quantizer alone, as in quantizer.codebook.decay=0.8; sampling: of the prior, as in prior.network.width=32).
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

from scripts.benchmarks.data import data
from scripts.benchmarks.distributed import processes
from scripts.benchmarks.gpu import gpu
from scripts.benchmarks.heads import heads
from scripts.benchmarks.lookups import exactness, quantizers_on_gpu, tiles
from scripts.benchmarks.quantizers import quantizers
from scripts.benchmarks.sampling import sampling
from scripts.benchmarks.training import precision, training
from vqvae.training.hardware import cpu_has_bf16

PARTS = {
    "training": training,
    "precision": precision,
    "quantizers": quantizers_on_gpu if torch.cuda.is_available() else quantizers,
    "sampling": sampling,
    "heads": heads,
    "distributed": processes,
    "data": data,
}
ON_GPU = {"gpu": gpu, "exactness": exactness, "tiles": tiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        nargs="*",
        help=f"{', '.join(PARTS)} (default: these), {', '.join(ON_GPU)}; then overrides of train.py",
    )
    words = parser.parse_args().what
    overrides = [word for word in words if "=" in word]
    chosen = [word for word in words if "=" not in word] or list(PARTS)
    parts = {**PARTS, **ON_GPU}
    unknown = [word for word in chosen if word not in parts]
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(parts)}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {gpu}, bf16 in CPU hardware: {cpu_has_bf16()}, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, overrides: {' '.join(overrides) or 'none'}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for word in chosen:
            parts[word](overrides, folder)


if __name__ == "__main__":
    main()
