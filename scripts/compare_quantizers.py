"""Trains every quantizer preset with the same network, data and steps, and prints the table of the README.

    python scripts/compare_quantizers.py data=folder data.root=... data.image_size=32        all of them, 3,000 steps each
    python scripts/compare_quantizers.py --only ema,fsq --jobs 1 trainer.steps=500           some, one after another

Everything behind the options is an override of train.py. Runs lie in run_dir (default runs/compare_quantizers); called
again, it continues what was stopped and skips what is finished. Each job has one thread on a CPU, so items/s are those
of one core with its neighbor busy. Multi-map quantizers spend more bits an item, which the table shows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.config.compose import choices
from vqvae.metrics.renames import rename

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = [
    "stages=[autoencoder]",
    "trainer.steps=3000",
    "trainer.batch_size=32",
    "trainer.eval_every_steps=3000",
    "trainer.preview_every_steps=0",
    "logger=off",
]


def train(name: str, base: Path, overrides: list[str]) -> str | None:
    """Runs one preset -> None, or the last line of what went wrong."""
    folder = base / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), f"quantizer={name}", *DEFAULTS, *overrides, f"run_dir={folder}"]
    with (base / f"{name}.log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    lines = (base / f"{name}.log").read_text().strip().splitlines()
    return None if code == 0 else f"exit code {code}: {lines[-1] if lines else 'no output'}"


def row(name: str, folder: Path) -> list[str]:
    """A finished run -> cells of the table; perplexity and usage are means over code maps (perplexity geometric)."""
    summary = json.loads((folder / "summary.json").read_text())["figures"]
    value = {rename(key, "autoencoder"): entry["value"] for key, entry in summary.items()}
    maps = [key.rsplit("_", 1)[1] for key in value if key.startswith("codebook/perplexity_")]
    perplexity = math.exp(sum(math.log(value[f"codebook/perplexity_{m}"]) for m in maps) / max(len(maps), 1))
    usage = sum(value[f"codebook/usage_{m}"] for m in maps) / max(len(maps), 1)
    header = next(iter(folder.glob("codes/val/header.json")), None)
    bits = "" if header is None else f"{bits_of(json.loads(header.read_text())):,.0f}"
    codes = [f"{perplexity:.0f}", f"{100 * usage:.0f} %"] if maps else ["", ""]
    speed = f"{value['autoencoder/items_per_second']:,.0f}"
    return [f"`{name}`", bits, f"{value['autoencoder/psnr_db']:.2f}", *codes, speed]


def bits_of(header: dict[str, list]) -> float:
    """Bits of an item's codes without a prior, from the code store's header."""
    sizes, shapes = header["codebook_sizes"], header["code_shapes"]
    return sum(math.prod(shape) * math.log2(size) for size, shape in zip(sizes, shapes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="presets, separated by commas (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: one a core)")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}")
    names = arguments.only.split(",") if arguments.only else choices("quantizer")
    unknown = [name for name in names if name not in choices("quantizer")]
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(choices('quantizer'))}")
    given = [o for o in arguments.overrides if o.startswith("run_dir=")]
    base = Path(given[-1].removeprefix("run_dir=") if given else "runs/compare_quantizers")
    overrides = [o for o in arguments.overrides if o not in given]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        errors = dict(zip(names, pool.map(lambda name: train(name, base, overrides), names)))
    rows = [row(name, base / name) for name in names if errors[name] is None]
    rows.sort(key=lambda cells: -float(cells[2]))
    print("| quantizer | bits an item | PSNR dB | perplexity | usage | items/s |\n|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))
    for name, error in errors.items():
        if error is not None:
            print(f"{name} failed, {error}; see {base / name}.log", file=sys.stderr)
    return 1 if any(errors.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
