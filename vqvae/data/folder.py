"""A folder of images, with or without splits and classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from vqvae.data import held_out
from vqvae.data.attributes import Attribute, read_vectors
from vqvae.data.base import Items, Split, Whole, fingerprint
from vqvae.data.formats import open_image
from vqvae.data.framing import TwoSides, as_setting
from vqvae.data.layout import Layout, Listing
from vqvae.data.planes import ARRAY_SUFFIXES
from vqvae.data.resized import ResizedImages
from vqvae.data.tree import Tree, check_suffixes
from vqvae.errors import UserError
from vqvae.ranges import PositiveInt, checked
from vqvae.storage.files import digest
from vqvae.surroundings.terminal import printable

CONTENT_PROBES = 64  # files whose content is part of the fingerprint, with the name and size of all
T = TypeVar("T")
Buckets = list[Annotated[tuple[PositiveInt, PositiveInt], TwoSides]] | None  # height and width of each
DECODING = 2  # part of the fingerprint; raise it when the same files decode to different pixels


@dataclass
class FolderSplit(Split):
    """Pages of image files of one split, decoded by `read_file`. pages: of each item, counted from 0."""

    root: Path
    files: list[str]
    pages: list[int]
    read_file: Callable[..., Tensor]

    def read(self, index: int) -> Tensor:
        return self.read_file(self.root / self.files[index], page=self.pages[index])

    def title(self, index: int) -> str:
        return printable(str(self.root / self.names[index]))

    @property
    def names(self) -> list[str]:
        """The files; further pages of one as `file#page=1`."""
        return [f"{file}#page={page}" if page else file for file, page in zip(self.files, self.pages)]

    def items(self) -> Items:
        found = [os.stat(self.root / file) for file in self.files]
        sizes, times = ([getattr(one, key) for one in found] for key in ("st_size", "st_mtime_ns"))
        return Items(self.names, np.array(sizes, np.int64), np.array(times, np.int64))

    def digest(self, index: int) -> bytes:
        return bytes.fromhex(digest(self.root / self.files[index]))

    def subset(self, indices: Tensor) -> FolderSplit:
        files, pages = ([rows[i] for i in indices.tolist()] for rows in (self.files, self.pages))
        return replace(self, labels=self.labels[indices], files=files, pages=pages)


def check_buckets(buckets: Buckets) -> None:
    """Raise UserError for buckets of which two have the same proportions, and for none."""
    shares = [height / width for height, width in buckets or []]
    if buckets is not None and (not buckets or len(set(shares)) < len(shares)):
        raise UserError(f"data.buckets={buckets} must be sizes of different proportions, such as [[64,64],[64,96]]")


@checked
@dataclass(kw_only=True)
class Folder(ResizedImages):
    """Images below `root`: in folders of the splits, or all in one and split by `split_seed`.

    splits: split -> folder below `root`; null: those named train or training, val, valid or validation, and test or testing,
    in any case. classes: auto takes the folders of a split for classes; off reads all images without labels.
    pages: of TIFF, GIF and other files with several; all makes each an item, in the split of its file. suffixes: of the files
    that are items, such as [.npy]; null: of all images that can be read, and of arrays where values are read as they are.
    buckets: heights and widths; the autoencoder is trained on each image in the one of the nearest proportions. All else sees
    `image_size`. See vqvae/data/buckets.py.
    vectors: .npy files (items, W) below the folder that paths are relative to, or absolute: one, which is called `vector`, or
    name -> file. Rows are in the order of the table, or of all paths sorted.
    """

    root: str
    splits: dict[str, str] | None = None
    classes: Literal["auto", "off"] = "auto"
    pages: Literal["first", "all"] = "first"
    suffixes: list[str] | None = None
    buckets: Buckets = None
    vectors: str | dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_buckets(self.buckets)
        if self.buckets and (not self.is_plain or self.pages != "first" or self.fit != "crop"):
            raise UserError(
                "data.buckets is for gray and color images of 8 bits with data.pages=first and data.fit=crop"
            )
        check_suffixes(self.suffixes)

    @property
    def is_plain(self) -> bool:
        return super().is_plain and not set(self.suffixes or []) & ARRAY_SUFFIXES

    @property
    def item_suffixes(self) -> frozenset[str]:
        return super().item_suffixes if self.suffixes is None else frozenset(map(str.lower, self.suffixes))

    @cached_property
    def layout(self) -> Listing:
        """What lies below `root`. Raises UserError for a missing root and for a folder without images."""
        path = Path(expanduser(self.root))  # Path.expanduser raises RuntimeError for users that are not there
        if not path.is_dir():
            raise UserError(f"data.root={self.root} is not a folder; name the folder that holds the images")
        without = self.recalled.get("class_names") == []
        return Layout(path, self.splits, "off" if without else self.classes, self.item_suffixes)

    @property
    def vector_files(self) -> dict[str, str]:
        """Name -> file of vectors."""
        return {"vector": self.vectors} if isinstance(self.vectors, str) else self.vectors or {}

    def attribute(self, name: str, split: Split) -> Attribute:
        if name not in self.vector_files:
            found = f"; data.vectors has {', '.join(self.vector_files)}" if self.vector_files else ""
            raise UserError(
                f"prior.conditions names {name}, and data.vectors brings no such vectors{found}; data=table reads columns, too"
            )
        if name not in self._vectors:
            file = self.layout.root / expanduser(self.vector_files[name])
            key = f"data.vectors={self.vector_files[name]} (below {self.layout.root})"
            self._vectors[name] = read_vectors(file, key, len(self._rows))
        return Attribute(self._vectors[name], self.rows_of(split))

    def rows_of(self, split: Split) -> np.ndarray:
        """Rows (n,) of a split's items in the table, or among all sorted paths."""
        assert isinstance(split, FolderSplit)
        return np.array([self._rows[split.root, file] for file in split.files])

    @cached_property
    def _rows(self) -> dict[tuple[Path, str], int]:
        return self.layout.rows()

    @cached_property
    def _vectors(self) -> dict[str, np.ndarray]:
        """Vectors that were read."""
        return {}

    def found_class_names(self) -> list[str]:
        return self.layout.class_names

    def whole(self, name: str) -> Whole:
        tree = self._tree(name)
        split = self._paged(name, tree.root, tree.files, torch.tensor(self.layout.numbers(tree)))
        return Whole(split, self.layout.class_names, shared=len(self.layout.folders) == 1)

    def split(self, name: str) -> Split:
        train = name == "train"
        tree = self._tree(name)
        if len(self.layout.folders) == 1:
            labels = torch.tensor(self.layout.labels(tree))
            chosen = torch.from_numpy(np.flatnonzero(self._held_out(tree.files) != train))
            files = [tree.files[i] for i in chosen.tolist()]
            return self._make("train" if train else "val", tree.root, files, labels[chosen])
        name = name if name in self.layout.folders else {"val": "test", "test": "val"}[name]
        return self._make(name, tree.root, tree.files, torch.tensor(self.layout.labels(tree)))

    def _tree(self, name: str) -> Tree:
        """Files among which those of a split are. Raises UserError where there are none."""
        if len(self.layout.folders) == 1:
            return self.layout.tree("train")
        tree = self.layout.tree(name if name in self.layout.folders else {"val": "test", "test": "val"}[name])
        if not tree.files:
            raise UserError(f"no image in {tree.root} or its subfolders; {name} needs some")
        return tree

    def probes(self) -> Iterable[Path | BinaryIO]:
        tree = self.layout.tree("train")
        return [tree.root / file for file in spread(tree.files)]

    def notes(self) -> list[str]:
        alone = f"validation is held out of train: data.val_share={self.val_share}, data.held_out={self.held_out}"
        paged = "data.pages=first reads the first page of each file, all makes every page an item"
        return [
            *self.layout.notes(),
            *([alone] if len(self.layout.folders) == 1 else []),
            *super().notes(),
            *([paged] if self.is_plain and self.looked.pages and self.pages == "first" else []),
        ]

    def _held_out(self, files: list[str]) -> np.ndarray:
        """bool (n,), True for the files of validation."""
        if self.held_out == "shuffle":
            return held_out.by_shuffle(len(files), self.val_share, self.split_seed)
        return held_out.by_hash(map(os.fsencode, files), self.val_share, self.split_seed)

    def _make(self, name: str, root: Path, files: list[str], labels: Tensor) -> Split:
        sizes = [(file, (root / file).stat().st_size) for file in files]
        contents = [content_digest(root / file) for file in spread(files)]
        reading = [*self.reading, *(["pages"] if self.pages == "all" else [])]
        identity = fingerprint(
            ["folder", DECODING, name, as_setting(self.read_size), self.channels, sizes, contents, *reading]
        )
        return replace(self._paged(name, root, files, labels), fingerprint=identity)

    def _paged(self, name: str, root: Path, files: list[str], labels: Tensor) -> FolderSplit:
        """The split of those pages of files that are items."""
        split = FolderSplit(name, labels, "", root, files, [0] * len(files), self.read_file)
        if self.pages == "first":
            return split
        counts = [count_pages(root / file, self.most_pixels) for file in files]
        split = split.subset(torch.arange(len(files)).repeat_interleave(torch.tensor(counts)))
        return replace(split, pages=[page for count in counts for page in range(count)])


def count_pages(file: Path, most_pixels: int) -> int:
    """Number of pages of an image file; 1 if it cannot be read, which whoever reads it will say."""
    try:
        with open_image(file, most_pixels) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # Pillow's parsers raise many kinds
        return 1


def spread(files: Sequence[T]) -> Sequence[T]:
    """About CONTENT_PROBES of the files, evenly spread."""
    return files[:: max(1, len(files) // CONTENT_PROBES)]


def content_digest(file: Path) -> str:
    """SHA-256 of a file; empty if it cannot be read, because then no image comes from it."""
    try:
        return digest(file)
    except OSError:
        return ""
