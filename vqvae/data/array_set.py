"""The data set of arrays of one to three dims, larger than what a model sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vqvae.data.depth import ValueRange, as_value_range
from vqvae.data.levels import DType, Levels, Seen, choose_levels, level_notes, recalled_levels
from vqvae.data.patched import PatchedFiles
from vqvae.data.patches import Size, cut, middle, read_patch_of
from vqvae.data.planes import ARRAY_SUFFIXES, map_array, write_planes
from vqvae.data.shown import Show, check_show, shown
from vqvae.data.wave_plot import plot_waves
from vqvae.errors import UserError
from vqvae.images import x_of
from vqvae.ranges import Count, In, PositiveInt, checked

LOOKED_AT = 64  # patches whose values decide the range
SLICES = 4  # of a volume, in a picture
VERSION = 1  # part of the fingerprint; raise it when the same files give other items


@checked
@dataclass(kw_only=True)
class Arrays(PatchedFiles):
    """Patches of the .npy and .npz files below `root`, which lie there as images do: see `Folder`.

    ndim: number of data dims. channels: in the first or the last dim of a file; 1: there may be none. crop: dims of what the
    model sees. Training takes random crops, such that every place of a file is as likely, and all else a fixed grid of them.
    Files are memory-mapped (.npz cannot be), and held out as a whole. dtype, value_range, show: as of images. Left out, and
    counted, are files that are smaller than a crop, of other dims or channels, or damaged.
    """

    size_key: ClassVar[str] = "crop"
    kind: ClassVar[str] = "arrays"
    suffixes: ClassVar = ARRAY_SUFFIXES

    ndim: Annotated[int, In(1, 2, 3)]
    channels: Count
    crop: list[PositiveInt]
    dtype: DType = "float32"
    value_range: ValueRange = "auto"
    show: Show = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.crop) != self.ndim:
            raise UserError(f"crop={self.crop} must have one length for each of ndim={self.ndim} dims")
        self.value_range = as_value_range(self.value_range)
        check_show(self.show, self.channels)

    # ---- what the files hold

    @property
    def size(self) -> Size:
        return tuple(self.crop)

    def dims_of(self, file: Path) -> Size:
        dims = map_array(file, self.channels, self.ndim).shape[1:]
        if any(length < kept for length, kept in zip(dims, self.crop)):
            raise OSError(f"its dims {dims} are smaller than the crop {self.crop}")
        return dims

    def patch_size(self, shapes: list[Size]) -> Size:
        """Less than 2 crops - 1 where a file is too small for that."""
        return tuple(min(2 * kept - 1, *lengths) for kept, lengths in zip(self.crop, zip(*shapes)))

    @cached_property
    def seen(self) -> Seen:
        """Values of some patches of the training set."""
        split = self.patches("train")
        found = []
        for index in range(0, len(split), max(1, len(split) // LOOKED_AT)):
            number, *corner = split.places[index].tolist()
            values = cut(split.root / split.files[number], tuple(corner), self.read_size, self.channels)
            found.append(values[np.isfinite(values)].astype(np.float64))
        return Seen(np.concatenate(found), len(found))

    @cached_property
    def levels(self) -> Levels:
        """Type and range of the values. Raises UserError where they cannot be told."""
        return choose_levels(self.dtype, self.value_range, self.seen)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "value_range": list(self.levels[1:])}

    def recall(self, facts: dict[str, Any]) -> None:
        super().recall(facts)
        if "value_range" in facts:
            self.levels = recalled_levels(self.dtype, facts["value_range"])

    def notes(self) -> list[str]:
        return [*super().notes(), *level_notes(self.seen, self.levels, self.value_range)]

    # ---- splits

    def identity(self, split: str) -> list[object]:
        return ["arrays", VERSION, split, self.crop, self.read_size, self.channels, tuple(self.levels)]

    def read_patch(self, file: Path, corner: Size) -> Tensor:
        return read_patch_of(file, corner, self.read_size, self.channels, self.levels)

    def content_digest(self, file: Path) -> str:
        """SHA-256 of the patch in the middle of a file: files may be too large to be read whole."""
        dims = map_array(file, self.channels, self.ndim).shape[1:]
        return hashlib.sha256(
            cut(file, middle(dims, self.read_size), self.read_size, self.channels).tobytes()
        ).hexdigest()

    # ---- items

    @property
    def value_type(self) -> str:
        return self.dtype

    @property
    def value_levels(self) -> Levels:
        return self.levels

    @property
    def suffix(self) -> str:
        return ".npy"

    @property
    def item_suffixes(self) -> frozenset[str]:
        return ARRAY_SUFFIXES

    def picture(self, items: Tensor) -> Tensor:
        """Of one dim a plot, of two the channels to show, of three some slices side by side."""
        if self.ndim == 1:
            return plot_waves(x_of(items))
        chosen = shown(items, self.show)
        if self.ndim == 2:
            return chosen
        depth, count = chosen.shape[2], min(SLICES, chosen.shape[2])
        return torch.cat([chosen[:, :, (2 * i + 1) * depth // (2 * count)] for i in range(count)], -1)  # (n, ., H, 4 W)

    def save(self, path: Path, item: Tensor) -> Path:
        """Write a .npy file (C, *S) in the data's units and type."""
        file = path.with_name(path.name + self.suffix)
        write_planes(file, self.values(item))
        return file

    def load(self, path: Path) -> Tensor:
        """Read the patch in the middle of a file."""
        dims = map_array(path, self.channels, self.ndim).shape[1:]
        return self.read_patch(path, middle(dims, self.read_size))
