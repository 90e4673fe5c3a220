"""Process-wide settings, made by entry points."""

from __future__ import annotations

import logging
import sys

import torch

from vqvae import __version__, distributed
from vqvae.run.folder import RunFolder
from vqvae.surroundings.own_folder import shield_children
from vqvae.surroundings.terminal import PrintableFormatter
from vqvae.training.hardware import keep_freed_memory

log = logging.getLogger(__name__)


def set_up_process(device: str = "auto") -> None:
    """Choose the device, keep freed memory in this process, compute float32 as float32 (no TF32 in convolutions), and shield
    child processes. Raises UserError for a device that is not there.
    """
    distributed.choose_device(device)
    keep_freed_memory()
    shield_children()
    torch.backends.cudnn.allow_tf32 = False


def set_up_logging(folder: RunFolder) -> None:
    """Log to the terminal, and to train.log in a run folder, whose notes come first. Ranks other than 0 log only warnings."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if distributed.is_main():
        handlers.append(logging.FileHandler(folder.path / "train.log"))
    for handler in handlers:
        handler.setFormatter(PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if distributed.is_main() else logging.WARNING, handlers=handlers, force=True)
    log.info("run folder: %s (vqvae %s)", folder.path, __version__)
    for note in folder.notes:
        log.info("%s %s", folder.path, note)
    folder.logs = True
