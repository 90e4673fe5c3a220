"""Writes the images of a compressed file. `python scripts/decompress.py --help` shows how."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.config.compose import check_keys_of, resolve
from vqvae.config.program import entry_point
from vqvae.errors import UserError
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import per_second, say


@entry_point("decompress")
def main(cfg: Any) -> None:
    """Writes one file an image."""
    cfg = resolve(cfg)
    check_keys_of("decompress", cfg)
    file, out = Path(str(cfg["in"])).expanduser(), Path(str(cfg.out)).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is there already, and is not an empty folder: name another")

    with own_folder():  # no library finds its code or settings in the current one
        from vqvae.compression.file import Archive
        from vqvae.compression.images import decompressed, file_names
        from vqvae.run.folder import RunFolder
        from vqvae.run.process import set_up_process
        from vqvae.run.run import Run

    archive = Archive.read(file)
    set_up_process(cfg.device)
    run = Run(RunFolder.load(cfg.run_dir, list(cfg.allow_targets)))
    began = time.perf_counter()
    trained = run.trained_model()
    codes = decompressed(trained, archive)
    items = trained.in_chunks(lambda maps: [run.data.to_items(trained.decode(maps))], codes)[0]
    for name, item in zip(file_names(archive.names), items):
        run.data.save(out / name, item)
    seconds = time.perf_counter() - began
    say(f"{len(items)} images in {out}, {seconds:.1f} s ({per_second(len(items), seconds)} images/s)")


if __name__ == "__main__":
    main()
