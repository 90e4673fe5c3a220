"""The data set of arrays of one to three dims, larger than what a model sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vqvae.data import nifti
from vqvae.data.depth import ValueRange, as_value_range
from vqvae.data.levels import DType, Levels, Seen, choose_levels, level_notes, recalled_levels
from vqvae.data.patched import PatchedFiles
from vqvae.data.patches import Size, cut, middle
from vqvae.data.planes import ARRAY_SUFFIXES, checked_values, first_or_last, map_array, write_planes
from vqvae.data.shown import Show, check_show, shown
from vqvae.data.tree import check_suffixes
from vqvae.data.wave_plot import plot_waves
from vqvae.errors import UserError
from vqvae.images import to_uint8, x_of
from vqvae.ranges import Count, In, PositiveInt, checked

LOOKED_AT = 64  # patches whose values decide the range
SLICES = 4  # of a volume, in a picture
VERSION = 1  # part of the fingerprint; raise it when the same files give other items


@checked
@dataclass(kw_only=True)
class Arrays(PatchedFiles):
    """Patches of the .npy, .npz and NIfTI files below `root`, which lie there as images do: see `Folder`.

    ndim: number of data dims. channels: in the first or the last dim of a file; 1: there may be none. crop: dims of what the
    model sees. Training takes random crops, such that every place of a file is as likely, and all else a fixed grid of them.
    Files are memory-mapped (.npz cannot be, and packed NIfTI files are unpacked into cache_dir), and held out as a whole.
    dtype, value_range, show: as of images. suffixes: of the files that are items, such as [.npy]; null: all of these. Left
    out, and counted, are files that are smaller than a crop, of other dims or channels, or damaged.
    """

    size_key: ClassVar[str] = "crop"
    kind: ClassVar[str] = "arrays"

    ndim: Annotated[int, In(1, 2, 3)]
    channels: Count
    crop: list[PositiveInt]
    dtype: DType = "float32"
    value_range: ValueRange = "auto"
    show: Show = None
    suffixes: list[str] | None = field(default_factory=lambda: sorted(ARRAY_SUFFIXES))  # those of runs without the key

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.crop) != self.ndim:
            raise UserError(f"crop={self.crop} must have one length for each of ndim={self.ndim} dims")
        self.value_range = as_value_range(self.value_range)
        check_show(self.show, self.channels)
        check_suffixes(self.suffixes)

    # ---- what the files hold

    @property
    def size(self) -> Size:
        return tuple(self.crop)

    def mapped(self, file: Path) -> np.ndarray:
        """The array (C, *S) of a file, memory-mapped where that can be. Raises OSError."""
        if not nifti.is_nifti(file):
            return map_array(file, self.channels, self.ndim)
        return first_or_last(nifti.map_volume(file, Path(self.cache_dir).expanduser()), self.channels, self.ndim)

    def dims_of(self, file: Path) -> Size:
        dims = self.mapped(file).shape[1:]
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
            values = cut(self.mapped(split.root / split.files[number]), tuple(corner), self.read_size)
            found.append(values[np.isfinite(values)].astype(np.float64))
        return Seen(np.concatenate(found), len(found))

    @cached_property
    def levels(self) -> Levels:
        """Type and range of the values. Raises UserError where they cannot be told."""
        return choose_levels(self.dtype, self.value_range, self.seen)

    @cached_property
    def voxels(self) -> list[list[float]] | None:
        """Sizes and directions of the voxels of the first training file, None where volumes are no NIfTI files."""
        tree, first = self.layout.tree("train"), next(iter(self.shapes["train"]))
        return nifti.voxels_of(tree.root / first) if self.ndim == 3 and nifti.is_nifti(Path(first)) else None

    def facts(self) -> dict[str, Any]:
        voxels = {} if self.voxels is None else {"voxels": self.voxels}
        return {**super().facts(), "value_range": list(self.levels[1:]), **voxels}

    def recall(self, facts: dict[str, Any]) -> None:
        super().recall(facts)
        if "value_range" in facts:
            self.levels = recalled_levels(self.dtype, facts["value_range"])
        if "voxels" in facts and not nifti.are_voxels(facts["voxels"]):
            raise UserError(f"{str(facts['voxels'])[:100]} are no sizes of voxels")
        self.voxels = facts.get("voxels")

    def notes(self) -> list[str]:
        return [*super().notes(), *level_notes(self.seen, self.levels, self.value_range)]

    # ---- splits

    def identity(self, split: str) -> list[object]:
        return ["arrays", VERSION, split, self.crop, self.read_size, self.channels, tuple(self.levels)]

    def read_patch(self, file: Path, corner: Size) -> Tensor:
        return self.item_of(cut(self.mapped(file), corner, self.read_size))

    def item_of(self, values: np.ndarray) -> Tensor:
        """Values (C, *S) of any type -> an item. Raises OSError for values that are no numbers, or out of range."""
        x = torch.from_numpy(self.levels.unit(checked_values(values)))
        return to_uint8(x) if self.dtype == "uint8" else x

    def content_digest(self, file: Path) -> str:
        """SHA-256 of the patch in the middle of a file: files may be too large to be read whole."""
        array = self.mapped(file)
        return hashlib.sha256(cut(array, middle(array.shape[1:], self.read_size), self.read_size).tobytes()).hexdigest()

    # ---- items

    @property
    def value_type(self) -> str:
        return self.dtype

    @property
    def value_levels(self) -> Levels:
        return self.levels

    @property
    def suffix(self) -> str:
        return ".npy" if self.voxels is None else ".nii.gz"

    @property
    def item_suffixes(self) -> frozenset[str]:
        return ARRAY_SUFFIXES | nifti.SUFFIXES if self.suffixes is None else frozenset(map(str.lower, self.suffixes))

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
        """Write a .npy file (C, *S), or a .nii.gz file where the data has such, in the data's units and type."""
        file = path.with_name(path.name + self.suffix)
        if self.voxels is None:
            write_planes(file, self.values(item))
        else:
            nifti.write_volume(file, self.values(item), self.voxels)
        return file

    def load(self, path: Path) -> Tensor:
        """Read the patch in the middle of a file."""
        array = self._whole(path)
        return self.item_of(cut(array, middle(array.shape[1:], self.read_size), self.read_size))

    def load_whole(self, path: Path) -> Tensor:
        """Read all of a file."""
        return self.item_of(np.array(self._whole(path)))

    def _whole(self, path: Path) -> np.ndarray:
        """The array (C, *S) of any file, of which nothing is kept in the cache."""
        if not nifti.is_nifti(path):
            return map_array(path, self.channels, self.ndim)
        return first_or_last(nifti.read_volume(path), self.channels, self.ndim)
