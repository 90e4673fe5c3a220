"""Checkpoint files with a checksum in the name."""

from __future__ import annotations

import hashlib
import io
import logging
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.storage.files import remove_leftovers, write_bytes
from vqvae.storage.forms import Form, form_of, mistake, size_of

log = logging.getLogger(__name__)
DIGEST = 12  # hex digits of the SHA-256 in a file name
PATTERN = re.compile(r"^(?P<name>.+)-(?P<digest>[0-9a-f]{12})\.pt$")
SIZES, OVERHEAD = 16, 2**26  # a file may have so many times the bytes that are needed of it, and so many more
# What torch.save writes for tensors and plain values: "module name" of every class and function that the file may name.
NAMES = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\.storage UntypedStorage|torch\._utils _rebuild_(tensor_v[23]|parameter)"
)


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


def load(path: Path, device: torch.device | str = "cpu", needed: Form = None) -> dict[str, Any]:
    """Read a file written by `save`. No code in it is run.

    needed: the form of what is wanted of it (storage/forms.py), if that is known; then a file far larger is not read at all.
    Raises UserError if the checksum does not match, or if it holds more than tensors and plain values.
    """
    match, size = PATTERN.match(path.name), path.stat().st_size
    if needed is not None and size > (most := SIZES * size_of(needed) + OVERHEAD):
        raise UserError(f"{path} has {size:,} bytes, and what is needed of it fits into {most:,}")
    data = path.read_bytes()
    if match is None or hashlib.sha256(data).hexdigest()[:DIGEST] != match["digest"]:
        raise UserError(f"{path} is damaged: its content does not match the checksum in its name")
    try:
        check_container(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused
            state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any kind: torch and zipfile raise what the damage leads to
        raise UserError(f"{path} does not hold tensors and plain values ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} does not hold what its name says")
    return state


def check_container(data: bytes) -> None:
    """Raises ValueError for a file that could need more memory than its own size, or names other things than tensors.

    torch.save compresses nothing. The names are looked up before torch follows the first of them.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
        packed = [part for part in parts if part.compress_type != zipfile.ZIP_STORED]
        if packed or sum(part.file_size for part in parts) > len(data):
            raise ValueError("it unpacks to more than its size")
        for part in parts:
            if part.filename.endswith("data.pkl"):
                check_names(archive.read(part))


def check_names(pickled: bytes) -> None:
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name not in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "NEWOBJ", "NEWOBJ_EX"):
            continue
        name = str(argument)
        is_dtype = name.startswith("torch ") and isinstance(getattr(torch, name[6:], None), torch.dtype)
        if operation.name != "GLOBAL" or not (is_dtype or NAMES.fullmatch(name)):
            raise ValueError(f"it names {name}")


def load_weights(network: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Loads all weights of a network. Raises UserError where they do not fit it; `source` is where they come from."""
    if said := mistake(state, form_of(network.state_dict())):
        raise UserError(f"{source} does not fit the config beside it: {said}")
    network.load_state_dict(state)


def load_newest(folder: Path, form: Form, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Load the newest checkpoint step-*.pt of a folder that is whole and has the form (storage/forms.py); None without one.

    Others are skipped, with a warning. Raises UserError where files are whole, but none has the form: to begin anew would
    overwrite them.
    """
    unfit: UserError | None = None
    for path in reversed(find(folder, "step-*")):
        try:
            state = load(path, device, form)
            if said := mistake(state, form):
                unfit = unfit or UserError(
                    f"{path} is no checkpoint of this run: {said}; remove it to go on without it"
                )
                log.warning("%s is no checkpoint of this run: %s; trying the checkpoint before it", path, said)
                continue
            return state
        except UserError as error:
            log.warning("%s; trying the checkpoint before it", error)
    if unfit is not None:
        raise unfit
    return None


def save_step(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of a step and remove all but the newest `keep`."""
    save(folder, f"step-{step:09d}", state)
    if distributed.is_main():
        for path in find(folder, "step-*")[:-keep]:
            path.unlink()
        remove_leftovers(folder)


def fingerprint(state: dict[str, Tensor]) -> str:
    """Digest of names, dtypes, shapes and values, independent of the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
