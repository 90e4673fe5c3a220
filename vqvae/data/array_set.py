"""The data set of arrays of one to three dims, larger than what a model sees."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vqvae.data import held_out
from vqvae.data.base import Data, Split, fingerprint
from vqvae.data.depth import ValueRange, as_value_range
from vqvae.data.folder import spread
from vqvae.data.layout import Layout
from vqvae.data.levels import DType, Levels, Seen, choose_levels, level_notes, recalled_levels
from vqvae.data.patches import PatchSplit, Size, corners, cut, middle, read_patch_of
from vqvae.data.planes import ARRAY_SUFFIXES, map_array, write_planes
from vqvae.data.shown import Show, check_show, shown
from vqvae.data.wave_plot import plot_waves
from vqvae.errors import UserError
from vqvae.images import x_of
from vqvae.ranges import Count, Gt, In, Lt, PositiveInt, checked
from vqvae.surroundings.terminal import printable

LOOKED_AT = 64  # patches whose values decide the range
SLICES = 4  # of a volume, in a picture
VERSION = 1  # part of the fingerprint; raise it when the same files give other items


@checked
@dataclass(kw_only=True)
class Arrays(Data):
    """Patches of the .npy and .npz files below `root`, which lie there as images do: see `Folder`.

    ndim: number of data dims. channels: in the first or the last dim of a file; 1: there may be none. crop: dims of what the
    model sees. Training takes random crops, such that every place of a file is as likely, and all else a fixed grid of them.
    Files are memory-mapped (.npz cannot be), and held out as a whole. dtype, value_range, show: as of images. Left out, and
    counted, are files that are smaller than a crop, of other dims or channels, or damaged.
    """

    size_key: ClassVar[str] = "crop"

    ndim: Annotated[int, In(1, 2, 3)]
    channels: Count
    root: str
    crop: list[PositiveInt]
    val_share: Annotated[float, Gt(0), Lt(1)]
    split_seed: int
    splits: dict[str, str] | None = None
    classes: Literal["auto", "off"] = "auto"
    dtype: DType = "float32"
    value_range: ValueRange = "auto"
    show: Show = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recalled: dict[str, Any] = {}
        if len(self.crop) != self.ndim:
            raise UserError(f"crop={self.crop} must have one length for each of ndim={self.ndim} dims")
        self.value_range = as_value_range(self.value_range)
        check_show(self.show, self.channels)

    # ---- what the files hold

    @cached_property
    def layout(self) -> Layout:
        """What lies below `root`. Raises UserError for a missing root and for a folder without arrays."""
        path = Path(expanduser(self.root))
        if not path.is_dir():
            raise UserError(f"data.root={self.root} is not a folder; name the folder that holds the arrays")
        without = self.recalled.get("class_names") == []
        return Layout(path, self.splits, "off" if without else self.classes, ARRAY_SUFFIXES)

    @cached_property
    def shapes(self) -> dict[str, dict[str, Size]]:
        """Split -> files, and the data dims of each. Raises UserError where too many cannot be used."""
        self.left_out: list[str] = []
        found: dict[str, dict[str, Size]] = {}
        for name in self.layout.folders:
            tree = self.layout.tree(name)
            found[name] = {}
            for file in tree.files:
                try:
                    dims = map_array(tree.root / file, self.channels, self.ndim).shape[1:]
                    if any(length < kept for length, kept in zip(dims, self.crop)):
                        raise OSError(f"its dims {dims} are smaller than the crop {self.crop}")
                    found[name][file] = dims
                except OSError as error:
                    self.left_out.append(f"{printable(str(tree.root / file))}: {error}")
        count = sum(map(len, found.values())) + len(self.left_out)
        if not all(found.values()) or len(self.left_out) > self.most_unreadable * count:
            raise UserError(
                f"{len(self.left_out)} of {count} arrays cannot be used, such as {(self.left_out or [self.root])[0]}; "
                "repair or remove them, or set data.most_unreadable to the share that may be lost"
            )
        return found

    @cached_property
    def read_size(self) -> Size:
        """Dims of a patch: crops in it start at every place until the next patch; less where a file is too small for that."""
        if "read_size" in self.recalled:
            return tuple(self.recalled["read_size"])
        dims = [dims for files in self.shapes.values() for dims in files.values()]
        return tuple(min(2 * kept - 1, *lengths) for kept, lengths in zip(self.crop, zip(*dims)))

    @property
    def size(self) -> Size:
        return tuple(self.crop)

    @property
    def class_names(self) -> list[str]:
        if "class_names" in self.recalled:
            return self.recalled["class_names"]
        return self.layout.class_names

    @cached_property
    def seen(self) -> Seen:
        """Values of some patches of the training set."""
        split = self._patches("train")
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
        return {**super().facts(), "value_range": list(self.levels[1:]), "read_size": list(self.read_size)}

    def recall(self, facts: dict[str, Any]) -> None:
        sizes = facts.get("read_size")
        good = isinstance(sizes, list) and len(sizes) == self.ndim and all(type(one) is int for one in sizes)
        if not good or not all(kept <= one < 2 * kept for one, kept in zip(sizes or [], self.crop)):
            raise UserError(f"{str(sizes)[:100]} are no dims of patches for crops of {self.crop}")
        self.recalled = facts
        if "value_range" in facts:
            self.levels = recalled_levels(self.dtype, facts["value_range"])

    def notes(self) -> list[str]:
        lost = f"left out: {len(self.left_out)} arrays, such as {self.left_out[0]}" if self.left_out else ""
        patches = f"patches of {list(self.read_size)}, cropped to {self.crop}"
        return [
            *self.layout.notes(),
            *([lost] if lost else []),
            patches,
            *level_notes(self.seen, self.levels, self.value_range),
        ]

    # ---- splits

    def split(self, name: str) -> Split:
        split = self._patches(name)
        files = [split.files[number] for number in sorted(set(split.places[:, 0].tolist()))]
        sizes = [(file, (split.root / file).stat().st_size) for file in files]
        contents = [self._content_digest(split.root / file) for file in spread(files)]
        parts = ["arrays", VERSION, split.name, self.crop, self.read_size, self.channels, tuple(self.levels)]
        read_patch = partial(read_patch_of, size=self.read_size, channels=self.channels, levels=self.levels)
        return replace(split, fingerprint=fingerprint([*parts, sizes, contents]), read_patch=read_patch)

    def _patches(self, name: str) -> PatchSplit:
        """A split, without what depends on the range of values."""
        alone = len(self.layout.folders) == 1
        source = "train" if alone else name if name in self.layout.folders else {"val": "test", "test": "val"}[name]
        tree, shapes = self.layout.tree(source), self.shapes[source]
        labels, files = dict(zip(tree.files, self.layout.labels(tree))), list(shapes)
        kept = np.ones(len(files), bool)
        if alone:
            out = held_out.by_hash(map(os.fsencode, files), self.val_share, self.split_seed)
            kept, source = (~out, "train") if name == "train" else (out, "val")
        rows = [
            (number, *corner)
            for number in np.flatnonzero(kept).tolist()
            for corner in corners(shapes[files[number]], self.read_size, self.crop)
        ]
        found = torch.tensor([labels[files[number]] for number, *_ in rows])
        return PatchSplit(source, found, "", tree.root, files, np.array(rows), partial(read_patch_of))

    def _content_digest(self, file: Path) -> str:
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
        return read_patch_of(path, middle(dims, self.read_size), self.read_size, self.channels, self.levels)
