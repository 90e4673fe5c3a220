"""Checkpoint files with a checksum in the name."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.storage.files import remove_leftovers, write_bytes

log = logging.getLogger(__name__)
DIGEST = 12  # hex digits of the SHA-256 in a file name
PATTERN = re.compile(r"^(?P<name>.+)-(?P<digest>[0-9a-f]{12})\.pt$")


def save(folder: Path, name: str, state: dict[str, Any]) -> Path | None:
    """Write folder/<name>-<checksum>.pt on rank 0 and remove older files of that name. Tensors and plain values only."""
    if not distributed.is_main():
        return None
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:DIGEST]}.pt"
    write_bytes(path, data)
    for other in find(folder, name):
        if other != path:
            other.unlink()
    return path


def find(folder: Path, name: str) -> list[Path]:
    """Files folder/<name>-<checksum>.pt, sorted; `name` may contain * and ?."""
    return sorted(p for p in folder.glob(f"{name}-*.pt") if PATTERN.match(p.name))


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file written by `save`. No code in it is run.

    Raises UserError if the checksum does not match, or if it holds more than tensors and plain values.
    """
    match = PATTERN.match(path.name)
    data = path.read_bytes()
    if match is None or hashlib.sha256(data).hexdigest()[:DIGEST] != match["digest"]:
        raise UserError(f"{path} is damaged: its content does not match the checksum in its name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused
            state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold tensors and plain values ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} does not hold what its name says")
    return state


def load_weights(network: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Loads all weights of a network. Raises UserError where they do not fit it; `source` is where they come from."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        raise UserError(f"{source} does not fit the config beside it: {' '.join(str(error).split())[:300]}") from error


def load_newest(folder: Path, needed: set[str], device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Load the newest good checkpoint step-*.pt of a folder; None if there is none.

    Skips damaged files, and files without the `needed` keys (of another version of this program), with a warning.
    """
    for path in reversed(find(folder, "step-*")):
        try:
            state = load(path, device)
            if missing := sorted(needed - state.keys()):
                raise UserError(f"{path} holds no {missing[0]}")
            return state
        except ValueError as error:
            log.warning("%s; trying the checkpoint before it", error)
    return None


def save_step(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of a step and remove all but the newest `keep`."""
    save(folder, f"step-{step:09d}", state)
    if distributed.is_main():
        for path in find(folder, "step-*")[:-keep]:
            path.unlink()
        remove_leftovers(folder, "*", hours=0)


def fingerprint(state: dict[str, Tensor]) -> str:
    """Digest of names, dtypes, shapes and values, independent of the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
