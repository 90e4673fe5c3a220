"""The contract of a data set, whatever its items are."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqvae.data.attributes import Attribute
from vqvae.data.levels import Levels
from vqvae.errors import UserError
from vqvae.images import to_uint8, x_of
from vqvae.ranges import CountOrZero, PositiveInt, Share, checked


class Items(NamedTuple):
    """Files of n items: names, relative to the data set and with forward slashes; bytes (n,); times of change in ns (n,)."""

    names: list[str]
    sizes: np.ndarray
    times: np.ndarray


@dataclass
class Split(ABC):
    """One split of a data set: `len`, labels (n,) int64 (-1 without classes), and items by index.

    `fingerprint` identifies the items and how they are read, not where they are stored.
    """

    name: str
    labels: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Item (C, *R), of the type that `Data.item_type` tells. Raises OSError if it cannot be decoded."""

    @abstractmethod
    def title(self, index: int) -> str:
        """Name of an item in messages: its path or number."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Split:
        """Split with only the items at `indices` (m,)."""

    def items(self) -> Items | None:
        """Files of the items as they are now; None where items are no files of their own. Raises OSError."""
        return None

    def digest(self, index: int) -> bytes:
        """SHA-256 of an item's file, where `items` tells of files. Raises OSError if it cannot be read."""
        raise NotImplementedError

    def limited(self, count: int) -> Split:
        """Split of `count` items spread evenly over this one; the split itself if it has no more."""
        if count >= len(self):
            return self
        chosen = self.subset(torch.arange(count) * len(self) // count)
        chosen.fingerprint = fingerprint([self.fingerprint, count])
        return chosen


@dataclass
class TensorSplit(Split):
    """Split in memory: images uint8 (n, C, *S)."""

    images: Tensor

    def read(self, index: int) -> Tensor:
        return self.images[index]

    def title(self, index: int) -> str:
        return f"item {index}"

    def subset(self, indices: Tensor) -> Split:
        return replace(self, labels=self.labels[indices], images=self.images[indices])


class Whole(NamedTuple):
    """All items that may belong to a split, class names of their labels, and whether other splits are of the same items."""

    split: Split
    class_names: list[str]
    shared: bool


@checked
@dataclass(kw_only=True)
class Data(ABC):
    """Base of all data sets; the fields are the keys of the `data` config group.

    Items (C, *S) are uint8, or float32 in [-1, 1] where 8 bits are too few.

    Files are looked at when they are first asked for, not before: a finished run needs none, see `recall`.
    ndim: number of data dims. channels: C. flip: mirror training items at random along their last dim. limit: use only that
    many items of each split, evenly spread; null: all. resident: "device" and "memory" keep all items there as one
    tensor, "disk" reads decoded items from the file in cache_dir, "stream" decodes them when needed, and "auto" takes the
    first of these that has room. workers: decoding processes. cache_dir: folder for
    decoded items. most_unreadable: a run ends where a larger share of a split cannot be read.
    Raises UserError for values out of range.
    """

    size_key: ClassVar[str]  # the config key that sets `size`, for messages
    writes_singles: ClassVar[bool] = (
        False  # sample.py writes each item to a file of its own: it must be heard, or moves
    )

    ndim: int
    channels: int
    flip: bool
    limit: PositiveInt | None
    resident: Literal["auto", "device", "memory", "disk", "stream"]
    workers: CountOrZero
    cache_dir: str
    most_unreadable: Share = 1.0

    def __post_init__(self) -> None:
        if os.path.expanduser(self.cache_dir).startswith("~"):
            raise UserError(f"cache_dir={self.cache_dir} is the folder of a user that this machine does not know")

    @property
    @abstractmethod
    def size(self) -> tuple[int, ...]:
        """Data dims *S of an item that the model sees."""

    @property
    def read_size(self) -> tuple[int, ...]:
        """Data dims *R of an item as read from disk; crops of `size` are taken from it."""
        return self.size

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes; empty for data without labels."""

    @abstractmethod
    def split(self, name: str) -> Split:
        """Split by name: train, val or test. Raises UserError if there is none."""

    def whole(self, name: str) -> Whole:
        """All items that may belong to a split, in whose data set files may have been added."""
        return Whole(self.split(name), self.class_names, shared=False)

    def attribute(self, name: str, split: Split) -> Attribute:
        """What the items of a split have beside their class, by its name. Raises UserError where there is no such thing."""
        raise UserError(
            f"prior.conditions names {name}, and {type(self).__name__} brings no more than classes: data=table reads columns, "
            "and data.vectors=... a file of vectors for data=table and data=folder"
        )

    def facts(self) -> dict[str, Any]:
        """What was found in the files and holds for all items, as plain values, for `recall`."""
        return {"class_names": self.class_names}

    def recall(self, facts: dict[str, Any]) -> None:
        """Take up what `facts` has found in an earlier start, instead of looking. Raises UserError for other values."""

    def notes(self) -> list[str]:
        """Sentences about what was understood of the data and what was left out, once its splits are there."""
        return []

    @property
    def value_type(self) -> str:
        """Type of the data's own values, such as uint16."""
        return "uint8"

    @property
    def value_levels(self) -> Levels | None:
        """Type and range of values that are read as they are; None: values are the levels 0 .. 255 of 8 bits."""
        return None

    @property
    def item_type(self) -> torch.dtype:
        """torch.uint8 or torch.float32."""
        return torch.uint8 if self.value_type == "uint8" else torch.float32

    @property
    def value_bounds(self) -> tuple[float, float]:
        """The values that are -1 and 1 for the model: the range that PSNR refers to."""
        levels = self.value_levels
        return (0.0, 255.0) if levels is None else (levels.low, levels.high)

    def to_items(self, x: Tensor) -> Tensor:
        """x (n, C, *S) in [-1, 1] -> items (n, C, *S): the inverse of vqvae.images.x_of."""
        return to_uint8(x) if self.item_type == torch.uint8 else x.float()

    def values(self, items: Tensor) -> np.ndarray:
        """Items (n, C, *S), or one (C, *S) -> their values in the data's own units and type."""
        levels = self.value_levels
        return items.cpu().numpy() if levels is None else levels.values(x_of(items))

    @abstractmethod
    def picture(self, items: Tensor) -> Tensor:
        """Draw items (n, C, *S), of 8 bits or in [-1, 1], as images uint8 (n, 1 or 3, H, W)."""

    def picture_of(self, x: Tensor) -> Tensor:
        """Draw x (n, C, *S) in [-1, 1] as images uint8 (n, 1 or 3, H, W)."""
        return self.picture(self.to_items(x))

    @property
    def noun(self) -> str:
        """What an item is called in messages."""
        return {2: "image", 3: "volume"}.get(len(self.size), "item")

    @property
    @abstractmethod
    def suffix(self) -> str:
        """Suffix of the files that `save` writes."""

    def write_as(self, file_format: str) -> None:
        """Have `save` write another format. Raises UserError for one that it does not write."""
        raise UserError(f"format={file_format} is for clips, and this run's data is {type(self).__name__}")

    @property
    def item_suffixes(self) -> frozenset[str] | None:
        """Suffixes of the files that `load` reads; None: it tries any file."""
        return None

    @abstractmethod
    def save(self, path: Path, item: Tensor) -> Path:
        """Write an item (C, *S) to `path`, given without suffix. Returns the file."""

    @abstractmethod
    def load(self, path: Path) -> Tensor:
        """Read any file as an item of this data set, (C, *R). Raises OSError if it cannot be decoded."""

    def load_whole(self, path: Path) -> Tensor:
        """Read a file as `load` does, at its own size. Raises UserError for data that has one size alone."""
        raise UserError(
            f"size=original is for images and sounds of files, and this run's data is {type(self).__name__}"
        )


def fingerprint(parts: Sequence[object]) -> str:
    """Short digest of the printed parts."""
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:16]


def no_labels(count: int) -> Tensor:
    return torch.full((count,), -1, dtype=torch.int64)
