"""Compresses a folder of images with a finished run. `python scripts/compress.py --help` shows how."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.config.compose import check_keys_of, resolve
from vqvae.config.program import entry_point
from vqvae.config.types import mistake_in
from vqvae.errors import UserError
from vqvae.ranges import CountOrZero
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import counted, per_second, say

MOST_SHOWN = 20  # lines about files that cannot be read


@entry_point("compress")
def main(cfg: Any) -> None:
    """Writes a .vqz file, and says how many bytes it takes."""
    cfg = resolve(cfg)
    check_keys_of("compress", cfg)
    if problem := mistake_in("search", cfg.search, CountOrZero | None):
        raise UserError(problem)
    folder, out = Path(str(cfg["in"])).expanduser(), Path(str(cfg.out)).expanduser()
    if out.is_dir():
        raise UserError(f"out={out} is a folder: name a file, such as {out / 'images.vqz'}")

    with own_folder():  # no library finds its code or settings in the current one
        from torch import Tensor

        from vqvae.compression.coder import ideal_bits
        from vqvae.compression.images import compressed
        from vqvae.run.folder import RunFolder
        from vqvae.run.process import set_up_process
        from vqvae.run.run import Run
        from vqvae.sampling.sources import read_many

    set_up_process(cfg.device)
    run = Run(RunFolder.load(cfg.run_dir, list(cfg.allow_targets)))
    trained = run.trained_model()
    sizes: list[int] = []
    skipped: list[str] = []

    def readable() -> Iterator[tuple[str, Tensor]]:
        for name, item in read_many(run, str(folder), None):
            if isinstance(item, OSError):
                skipped.append(f"{name}: {item}")
            else:
                sizes.append((folder / name).stat().st_size if (folder / name).is_file() else 0)
                yield name, item

    began = time.perf_counter()
    search = run.cfg.search_sweeps if cfg.search is None else cfg.search
    archive, codes = compressed(trained, readable(), search)
    size = archive.write(out)
    seconds = time.perf_counter() - began
    for line in skipped[:MOST_SHOWN]:
        say(f"skipped {line}")
    count, number = len(archive.names), sum(m[0].numel() for m in codes)
    bits, ideal = (total / count / number for total in (8 * len(archive.data), ideal_bits(trained.prior, codes)))
    say(
        f"{counted(count, 'image')}, {counted(len(skipped), 'file')} skipped, "
        f"{seconds:.1f} s ({per_second(count, seconds)} images/s)\n"
        f"{out}: {size:,} bytes, {size / count:.1f} an image (the files have {sum(sizes) / count:,.0f} on average)\n"
        f"codes: {bits:.4f} bits each, {ideal:.4f} by the prior's probabilities"
    )


if __name__ == "__main__":
    main()
