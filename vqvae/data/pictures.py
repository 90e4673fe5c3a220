"""What a data set of pictures offers to the rest of the program."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

RESIDENT = ("auto", "device", "memory", "stream")


@dataclass
class Split(ABC):
    """One split of a data set: `len`, labels (n,) int64 (-1 without classes), and pictures by index.

    `fingerprint` identifies the pictures and how they are read, not where they lie.
    """

    name: str
    labels: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """uint8 (C, H, W). Raises OSError where the picture cannot be decoded."""

    @abstractmethod
    def title(self, index: int) -> str:
        """What to call a picture in a message: its path, or its number."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Split:
        """The split of the pictures at `indices` (m,) alone."""

    def limited(self, count: int) -> Split:
        """`count` pictures evenly spread over the split; the split itself where it has no more."""
        if count >= len(self):
            return self
        chosen = self.subset(torch.arange(count) * len(self) // count)
        chosen.fingerprint = fingerprint([self.fingerprint, count])
        return chosen


@dataclass
class TensorSplit(Split):
    """A split that lies in memory: images uint8 (n, C, H, W)."""

    images: Tensor

    def read(self, index: int) -> Tensor:
        return self.images[index]

    def title(self, index: int) -> str:
        return f"picture {index}"

    def subset(self, indices: Tensor) -> Split:
        return replace(self, labels=self.labels[indices], images=self.images[indices])


@dataclass(kw_only=True)
class Pictures(ABC):
    """Base of all picture data sets; the fields are the keys of the `data` config group.

    ndim: 2. channels: C, 1 or 3. image_size: side of the square pictures that the model sees. flip: mirror training
    pictures at random. limit: use only that many pictures of each split, evenly spread; null: all. resident: "device" or
    "memory" hold all pictures as one uint8 tensor there, "stream" decodes them as they are needed, "auto" decides by size.
    workers: processes that decode. cache_dir: where decoded pictures are kept. Raises ValueError for values out of range.
    """

    ndim: int
    channels: int
    image_size: int
    flip: bool
    limit: int | None
    resident: str
    workers: int
    cache_dir: str

    def __post_init__(self) -> None:
        if self.ndim != 2:
            raise ValueError(f"pictures have ndim=2, got {self.ndim}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 or null, got {self.limit}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if self.resident not in RESIDENT:
            raise ValueError(f"resident must be one of {', '.join(RESIDENT)}, got {self.resident!r}")

    @property
    def size(self) -> tuple[int, ...]:
        """Data dims *S of a picture as the model sees it."""
        return (self.image_size,) * self.ndim

    @property
    def read_size(self) -> int:
        """Side of the pictures as they are read: crops to `image_size` are made from these."""
        return self.image_size

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes; empty for data without labels."""

    @abstractmethod
    def split(self, name: str) -> Split:
        """name: train, val or test. Raises ValueError where there is no such split."""


def fingerprint(parts: Sequence[object]) -> str:
    """A short digest of the printed parts."""
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:16]


def no_labels(count: int) -> Tensor:
    return torch.full((count,), -1, dtype=torch.int64)
