"""Base class of data sets whose items are patches of larger files."""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vqvae.data import held_out
from vqvae.data.base import Data, Split, fingerprint
from vqvae.data.folder import spread
from vqvae.data.layout import Layout
from vqvae.data.patches import PatchSplit, Size, corners
from vqvae.errors import UserError
from vqvae.ranges import Gt, Lt, checked
from vqvae.surroundings.terminal import printable


@checked
@dataclass(kw_only=True)
class PatchedFiles(Data):
    """Base of data sets of patches of the files below `root`, which lie there as images do: see `Folder`.

    Training takes random crops of a patch, such that every place of a file is as likely, and all else the crop in its middle.
    Files are held out as a whole. Those that cannot be used are counted and left out.
    """

    kind: ClassVar[str]  # of the files, in messages

    root: str
    val_share: Annotated[float, Gt(0), Lt(1)]
    split_seed: int
    splits: dict[str, str] | None = None
    classes: Literal["auto", "off"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recalled: dict[str, Any] = {}

    # ---- what a subclass writes

    @property
    @abstractmethod
    def item_suffixes(self) -> frozenset[str]:
        """Suffixes of the files that are items."""

    @abstractmethod
    def dims_of(self, file: Path) -> Size:
        """Dims of what a file holds. Raises OSError for one that cannot be used."""

    @abstractmethod
    def patch_size(self, shapes: list[Size]) -> Size:
        """Dims of a patch, from those of all files: crops in it start at every place until the next patch."""

    @abstractmethod
    def identity(self, split: str) -> list[object]:
        """What items of the same files depend on."""

    @abstractmethod
    def content_digest(self, file: Path) -> str:
        """Digest of what a file holds, or of a part of it."""

    @abstractmethod
    def read_patch(self, file: Path, corner: Size) -> Tensor:
        """The patch of a file at a first corner, as an item (C, *R). Raises OSError where it cannot be read."""

    def places_in(self, dims: Size) -> list[Size]:
        """First corners of the patches of a file."""
        return list(corners(dims, self.read_size, list(self.size)))

    # ---- what the files hold

    @cached_property
    def layout(self) -> Layout:
        """What lies below `root`. Raises UserError for a missing root and for a folder without such files."""
        path = Path(expanduser(self.root))
        if not path.is_dir():
            raise UserError(f"data.root={self.root} is not a folder; name the folder that holds the {self.kind}")
        without = self.recalled.get("class_names") == []
        return Layout(path, self.splits, "off" if without else self.classes, self.item_suffixes, self.kind)

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
                    found[name][file] = self.dims_of(tree.root / file)
                except OSError as error:
                    self.left_out.append(f"{printable(str(tree.root / file))}: {error}")
        count = sum(map(len, found.values())) + len(self.left_out)
        if not all(found.values()) or len(self.left_out) > self.most_unreadable * count:
            raise UserError(
                f"{len(self.left_out)} of {count} {self.kind} cannot be used, such as {(self.left_out or [self.root])[0]}; "
                "repair or remove them, or set data.most_unreadable to the share that may be lost"
            )
        return found

    @cached_property
    def read_size(self) -> Size:
        """Dims of a patch."""
        if "read_size" in self.recalled:
            return tuple(self.recalled["read_size"])
        return self.patch_size([dims for files in self.shapes.values() for dims in files.values()])

    @property
    def class_names(self) -> list[str]:
        if "class_names" in self.recalled:
            return self.recalled["class_names"]
        return self.layout.class_names

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "read_size": list(self.read_size)}

    def recall(self, facts: dict[str, Any]) -> None:
        sizes = facts.get("read_size")
        good = isinstance(sizes, list) and len(sizes) == self.ndim and all(type(one) is int for one in sizes)
        if not good or not self.is_patch_size(sizes or []):
            raise UserError(f"{str(sizes)[:100]} are no dims of patches for crops of {list(self.size)}")
        self.recalled = facts

    def is_patch_size(self, sizes: list[int]) -> bool:
        """True for dims that a patch may have."""
        return all(kept <= one < 2 * kept for one, kept in zip(sizes, self.size))

    def notes(self) -> list[str]:
        lost = f"left out: {len(self.left_out)} {self.kind}, such as {self.left_out[0]}" if self.left_out else ""
        patches = f"patches of {list(self.read_size)}, cropped to {list(self.size)}"
        return [*self.layout.notes(), *([lost] if lost else []), patches]

    # ---- splits

    def split(self, name: str) -> Split:
        split = self.patches(name)
        files = [split.files[number] for number in sorted(set(split.places[:, 0].tolist()))]
        sizes = [(file, (split.root / file).stat().st_size) for file in files]
        contents = [self.content_digest(split.root / file) for file in spread(files)]
        identity = fingerprint([*self.identity(split.name), sizes, contents])
        return replace(split, fingerprint=identity)

    def patches(self, name: str) -> PatchSplit:
        """A split, without its fingerprint."""
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
            for corner in self.places_in(shapes[files[number]])
        ]
        found = torch.tensor([labels[files[number]] for number, *_ in rows])
        return PatchSplit(source, found, "", tree.root, files, np.array(rows), self.read_patch)
