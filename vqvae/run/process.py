"""Process-wide settings, made by entry points."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

from vqvae import __version__, distributed
from vqvae.training.hardware import keep_freed_memory


def set_up_process() -> None:
    """Keep freed memory in this process, and compute float32 as float32: no TF32 in convolutions."""
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False


def set_up_logging(folder: Path) -> None:
    """Log to the terminal, and to train.log in a run folder. Ranks other than 0 log only warnings."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if distributed.is_main():
        handlers.append(logging.FileHandler(folder / "train.log"))
    level = logging.INFO if distributed.is_main() else logging.WARNING
    logging.basicConfig(
        level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )
    logging.getLogger(__name__).info("run folder: %s (vqvae %s)", folder, __version__)
