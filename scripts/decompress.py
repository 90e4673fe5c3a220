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
from vqvae.surroundings.terminal import counted, per_second, say


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
        from vqvae.inference.trained_model import CHUNK
        from vqvae.run.folder import RunFolder
        from vqvae.run.process import set_up_process
        from vqvae.run.run import Run

    archive = Archive.read(file)
    set_up_process(cfg.device)
    run = Run(RunFolder.load(cfg.run_dir, list(cfg.allow_targets)))
    began = time.perf_counter()
    trained = run.trained_model()
    codes, names = decompressed(trained, archive), iter(file_names(archive.names))
    for part in zip(*(m.split(CHUNK) for m in codes)):  # the images of an archive may need more memory than there is
        for item in trained.in_chunks(lambda maps: [run.data.to_items(trained.decode(maps))], list(part))[0]:
            run.data.save(out / next(names), item)
    count, seconds = len(archive.names), time.perf_counter() - began
    say(f"{counted(count, 'image')} in {out}, {seconds:.1f} s ({per_second(count, seconds)} images/s)")


if __name__ == "__main__":
    main()
