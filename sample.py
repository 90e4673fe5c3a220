"""Pictures out of a finished run: generated, completed, interpolated, reconstructed. `python sample.py --help` shows how.

Under torchrun rank 0 works alone. Picture i depends on seed + i alone, so several commands share a large number of pictures.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from vqvae.config.compose import check_keys_of, plain, resolve
from vqvae.config.program import entry_point
from vqvae.sampling.modes import COUNTS, check_mode, folder_name, quote


def main() -> None:
    """The program; hydra sees its arguments with masks and file names quoted, except in a sweep (-m), where commas count."""
    if os.environ.get("RANK", "0") != "0":
        return
    if not {"-m", "--multirun"} & set(sys.argv):
        sys.argv[1:] = [quote(argument) for argument in sys.argv[1:]]
    run_mode()


@entry_point("sample")
def run_mode(cfg: Any) -> None:
    """Checks the command, then does what its mode says, in a module of vqvae.sampling each."""
    from hydra.core.hydra_config import HydraConfig

    cfg = resolve(cfg)
    check_keys_of("sample", cfg)
    typed = [override.lstrip("+~").split("=")[0] for override in HydraConfig.get().overrides.task]
    settings = plain(cfg)
    check_mode(settings, typed)

    from tqdm.contrib.logging import logging_redirect_tqdm

    from vqvae.run.folder import RunFolder
    from vqvae.run.pipeline import Run
    from vqvae.sampling.complete import complete
    from vqvae.sampling.generate import generate
    from vqvae.sampling.interpolate import interpolate
    from vqvae.sampling.job import Job
    from vqvae.sampling.nearest import nearest
    from vqvae.sampling.reconstruct import reconstruct

    modes = {one.__name__: one for one in (generate, complete, interpolate, reconstruct, nearest)}
    run = Run(RunFolder.load(cfg.run_dir, settings["allow_targets"]))
    if settings["n"] is None and settings["folder"] is None:
        settings["n"] = COUNTS[cfg.mode]
        if cfg["class"] == "all" and cfg.mode == "generate" and run.data.class_names:
            settings["n"] = 8 * len(run.data.class_names)  # whole rows
    out = Path(cfg.out) if cfg.out else run.folder.path / "samples" / folder_name(settings, typed)
    with logging_redirect_tqdm():
        modes[cfg.mode](Job(run, settings, out))


if __name__ == "__main__":
    main()
