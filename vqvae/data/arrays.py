""".npy memory maps with checks of dtype and shape."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from vqvae.errors import UserError
from vqvae.storage.files import WriteError


def create(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Create a file of zeros with its disk space allocated, because writing to a map on a full disk kills the process.

    Raises WriteError.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise WriteError(path, error, math.prod(shape) * dtype.itemsize) from error
    return array


def write_rows(path: Path, start: int, rows: np.ndarray) -> None:
    """Write rows from `start` on into a file made by `create`, and flush them to disk.

    Not through a map: that writes whole pages, and would overwrite rows that other machines have written.
    """
    offset = np.lib.format.open_memmap(path, "r").offset
    with path.open("rb+") as file:
        file.seek(offset + start * rows[:1].nbytes)
        file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, dtype: np.dtype, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Map the array of a file into memory. shape None: any. Never unpickles.

    Raises UserError if dtype or shape differ.
    """
    try:
        array = np.lib.format.open_memmap(path, "r")
    except Exception as error:  # numpy raises many kinds for a damaged header
        raise UserError(f"{path} is damaged ({error})") from error
    if array.dtype != dtype or shape not in (None, array.shape):
        raise UserError(f"{path} holds {array.dtype} {array.shape}, not {dtype} {shape or ''}")
    return array
