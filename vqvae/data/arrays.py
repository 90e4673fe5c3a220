"""Arrays on the disk: .npy files, mapped into memory, that are what they were written as or are refused."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from vqvae.errors import UserError
from vqvae.storage.files import WriteError


def create(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A new file of zeros, its room on the disk taken: where there is none, writing to the map would end the process.

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
    """Writes rows from `start` on into a file that `create` has made, and flushes them to the disk.

    Not through a map: whole pages would go back, with the rows of other machines as they were.
    """
    offset = np.lib.format.open_memmap(path, "r").offset
    with path.open("rb+") as file:
        file.seek(offset + start * rows[:1].nbytes)
        file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, dtype: np.dtype, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The array of a file, not in memory yet; of any shape where None. Never unpickles.

    Raises ValueError where it is not of that type and shape.
    """
    try:
        array = np.lib.format.open_memmap(path, "r")
    except Exception as error:  # of a damaged header numpy raises whatever it runs into
        raise UserError(f"{path} is damaged ({error})") from error
    if array.dtype != dtype or shape not in (None, array.shape):
        raise UserError(f"{path} holds {array.dtype} {array.shape}, not {dtype} {shape or ''}")
    return array
