"""What the bits of a run depend on beside its config: noted in its folder, and said where it differs when the run goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.run.folder import STAGES, RunFolder
from vqvae.storage.files import read_own_text, write_json

log = logging.getLogger(__name__)
NAME = "machine.json"


def present_machine() -> dict[str, Any]:
    """Versions, threads and processor: with others, sums are taken in another order and round differently."""
    device = distributed.device()
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }


def note_machine(folder: RunFolder) -> None:
    """Write what this start depends on into a run folder. A run that goes on is warned of what differs from its last start."""
    if not distributed.is_main():
        return
    now, before = present_machine(), noted_machine(folder.path)
    changes = [
        f"{key} is {value}, it was {before[key]}" for key, value in now.items() if before.get(key, value) != value
    ]
    begun = any(map(folder.has_begun, STAGES))
    finished = all(folder.weights_file(stage) for stage in folder.config.stages)
    if changes and begun and not finished:
        log.warning("%s: from here on the run rounds differently from one that was not interrupted", "; ".join(changes))
    write_json(folder.path / NAME, now)


def noted_machine(folder: Path) -> dict[str, Any]:
    """What was noted at the last start; nothing for older runs, and for a file that holds something else."""
    try:
        noted = json.loads(read_own_text(folder / NAME) or "{}")
    except (UserError, ValueError, RecursionError):
        return {}
    return (
        {key: value for key, value in noted.items() if isinstance(value, (str, int))} if isinstance(noted, dict) else {}
    )
