"""Images from a finished run: samples, completions, interpolations, reconstructions. `python sample.py --help` shows how.

Under torchrun, rank 0 works alone. Image i depends on seed + i alone, so several commands can share a large number of images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vqvae.config.compose import check_keys_of, plain, resolve
from vqvae.config.program import entry_point, typed_overrides
from vqvae.errors import UserError
from vqvae.sampling.modes import COUNTS, check_mode, folder_name
from vqvae.surroundings.own_folder import own_folder


def main() -> None:
    """Run on rank 0 alone."""
    if os.environ.get("RANK", "0") == "0":
        run_mode()


@entry_point("sample")
def run_mode(cfg: Any) -> None:
    """Check the command, then run its mode. Each mode is a module of vqvae.sampling."""
    cfg = resolve(cfg)
    check_keys_of("sample", cfg)
    typed = [override.lstrip("+~").split("=")[0] for override in typed_overrides()]
    settings = plain(cfg)
    check_mode(settings, typed)
    if cfg.out is not None and os.path.isfile(os.path.expanduser(cfg.out)):
        raise UserError(f"out={cfg.out} is a file: name a folder for the results")

    with own_folder():  # no library finds its code or settings in the current one
        from tqdm.contrib.logging import logging_redirect_tqdm

        from vqvae.run.folder import RunFolder
        from vqvae.run.process import set_up_process
        from vqvae.run.run import Run
        from vqvae.sampling.complete import complete
        from vqvae.sampling.generate import generate
        from vqvae.sampling.interpolate import interpolate
        from vqvae.sampling.job import Job
        from vqvae.sampling.nearest import nearest
        from vqvae.sampling.originals import reconstruct_originals
        from vqvae.sampling.reconstruct import reconstruct

    modes = {mode.__name__: mode for mode in (generate, complete, interpolate, reconstruct, nearest)}
    set_up_process(cfg.device)
    run = Run(RunFolder.load(cfg.run_dir, settings["allow_targets"], places=settings["data"]))
    if settings["n"] is None and settings["folder"] is None:
        settings["n"] = COUNTS[cfg.mode]
        if cfg["class"] == "all" and cfg.mode == "generate" and run.class_names:
            settings["n"] = 8 * len(run.class_names)  # whole rows
    out = Path(cfg.out) if cfg.out else run.folder.path / "samples" / folder_name(settings, typed)
    with logging_redirect_tqdm():
        mode = reconstruct_originals if settings["size"] == "original" else modes[cfg.mode]
        mode(Job(run, settings, out))


if __name__ == "__main__":
    main()
