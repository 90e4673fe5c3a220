"""Patches of arrays in memory-mapped files, as the items of a data set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from vqvae.data.base import Split
from vqvae.surroundings.terminal import printable

Size = tuple[int, ...]


@dataclass
class PatchSplit(Split):
    """Patches of arrays in files: places (n, 1 + dims), the number of a file and the first corner in it."""

    root: Path
    files: list[str]
    places: np.ndarray
    read_patch: Callable[[Path, Size], Tensor]

    def read(self, index: int) -> Tensor:
        number, *corner = self.places[index].tolist()
        return self.read_patch(self.root / self.files[number], tuple(corner))

    def title(self, index: int) -> str:
        number, *corner = self.places[index].tolist()
        return f"{printable(str(self.root / self.files[number]))} at {corner}"

    def subset(self, indices: Tensor) -> PatchSplit:
        return replace(self, labels=self.labels[indices], places=self.places[indices.numpy()])


def corners(dims: Size, read: Size, crop: list[int]) -> Iterator[Size]:
    """First corners of patches that cover dims: crops of one start where those of the one before have ended."""
    steps = (one - kept + 1 for one, kept in zip(read, crop))
    starts = [sorted({*range(0, length - one + 1, step), length - one}) for length, one, step in zip(dims, read, steps)]
    yield from itertools.product(*starts)


def middle(dims: Size, size: Size) -> Size:
    """First corner of the patch in the middle."""
    return tuple((length - kept) // 2 for length, kept in zip(dims, size))


def cut(array: np.ndarray, corner: Size, size: Size) -> np.ndarray:
    """A patch (C, *size) of an array (C, *S) as it is. Raises OSError where it is not there."""
    inside = (slice(start, start + length) for start, length in zip(corner, size))
    index = (slice(None), *inside)
    part = array[index]
    if part.shape[1:] != size or min(corner) < 0:
        raise OSError(f"its dims {array.shape[1:]} are too small for a patch of {size} at {corner}")
    return np.array(part)
