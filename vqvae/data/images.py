"""Base classes of image data sets, and reading image files."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vqvae.data.base import Data
from vqvae.data.depth import (
    FULL,
    Looked,
    Ranges,
    ValueRange,
    choose_ranges,
    eight_bits,
    look_at,
    range_notes,
    recalled_ranges,
)
from vqvae.data.formats import MOST_PIXELS, SUFFIXES, open_image
from vqvae.data.framing import FITS, ImageSize, Size, in_proportion, sides
from vqvae.errors import UserError
from vqvae.images import write_png
from vqvae.ranges import Gt, In, Lt, PositiveInt, checked


@checked
@dataclass(kw_only=True)
class Images(Data):
    """Base of image data sets: uint8 (C, H, W).

    ndim: 2. channels: C, 1 or 3. image_size: [height, width] of the images that the model sees, or the side of squares.
    """

    size_key: ClassVar[str] = "image_size"
    suffix: ClassVar[str] = ".png"
    item_suffixes: ClassVar[frozenset[str] | None] = SUFFIXES

    ndim: Annotated[int, In(2)]
    channels: Annotated[int, In(1, 3)]
    image_size: ImageSize

    @property
    def size(self) -> Size:
        return sides(self.image_size)

    def show(self, items: Tensor) -> Tensor:
        """Return the images as they are."""
        return items

    def save(self, path: Path, item: Tensor) -> Path:
        """Write a PNG file."""
        file = path.with_name(path.name + self.suffix)
        write_png(file, item)
        return file

    def load(self, path: Path) -> Tensor:
        """Read an image of any size and raster format that Pillow opens, as those of the data set are read."""
        return self.read_file(path)

    @property
    def read_file(self) -> Callable[[Path | BinaryIO], Tensor]:
        """Image file -> uint8 (C, *R). Raises OSError if it cannot be decoded."""
        return partial(read_image, size=self.size, channels=self.channels)


@checked
@dataclass(kw_only=True)
class ResizedImages(Images):
    """Base of data sets of images of any size.

    Images are resized (shorter side to `resize`) and cropped at the center to the proportions of `image_size`; fit=pad keeps
    the whole image, with black beside it, and fit=stretch changes its proportions. If `resize`, a number or [height, width],
    is larger than `image_size`, training takes random crops and everything else the center crop. Without a validation set, a
    share `val_share` of the images is held out by `held_out`: a hash of each name with `split_seed`, or a shuffled order, as
    earlier versions did.
    value_range: values of black and white in images of more than 8 bits; auto looks at some; null: the whole range of their
    type. most_pixels: of an image; larger ones count as unreadable. draft: large JPEG files are decoded at a half, a quarter
    or an eighth of their size, where that is not below `resize`.
    """

    resize: ImageSize
    val_share: Annotated[float, Gt(0), Lt(1)]
    split_seed: int
    held_out: Literal["hash", "shuffle"] = "hash"
    value_range: ValueRange = "auto"
    most_pixels: PositiveInt = MOST_PIXELS
    draft: bool = False
    fit: Literal["crop", "pad", "stretch"] = "crop"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recalled: dict[str, Any] = {}
        if any(read < kept for read, kept in zip(self.read_size, self.size)):
            raise UserError(f"resize must be at least image_size={self.image_size}, got {self.resize}")
        if self.value_range is not None and self.value_range != "auto":
            pair = () if isinstance(self.value_range, str) else tuple(map(float, self.value_range))
            if len(pair) != 2 or not -math.inf < pair[0] < pair[1] < math.inf:
                raise UserError(f"value_range must be auto, null, or two numbers in order, got {self.value_range}")
            self.value_range = pair

    @property
    def read_size(self) -> Size:
        return in_proportion(self.resize, self.size) if isinstance(self.resize, int) else sides(self.resize)

    @property
    def class_names(self) -> list[str]:
        return self.recalled["class_names"] if "class_names" in self.recalled else self.found_class_names()

    @abstractmethod
    def found_class_names(self) -> list[str]:
        """Names of the classes, looked up."""

    def facts(self) -> dict[str, Any]:
        integers, floats, clips = self.ranges
        return {**super().facts(), "ranges": [*integers, *floats, clips]}

    def recall(self, facts: dict[str, Any]) -> None:
        self.recalled = facts
        if "ranges" in facts:
            self.ranges = recalled_ranges(facts["ranges"])

    @abstractmethod
    def probes(self) -> Iterable[Path | BinaryIO]:
        """Some training images, spread over the set. They decide what holds for all."""

    @cached_property
    def looked(self) -> Looked:
        """What the probes show."""
        return look_at(self.probes(), self.most_pixels)

    @cached_property
    def ranges(self) -> Ranges:
        """Values of black and white, of all images. Raises UserError where they cannot be told."""
        return choose_ranges(self.looked, self.value_range)

    @property
    def read_file(self) -> Callable[[Path | BinaryIO], Tensor]:
        size, channels, ranges = self.read_size, self.channels, self.ranges
        limit, draft, fit = self.most_pixels, self.draft, self.fit
        return partial(read_image, size=size, channels=channels, ranges=ranges, most_pixels=limit, draft=draft, fit=fit)

    @property
    def reading(self) -> list[object]:
        """What a fingerprint holds beside the files, where it differs from earlier versions."""
        ranges = [] if self.ranges == FULL else [tuple(self.ranges)]
        return [*ranges, *(["draft"] if self.draft else []), *([self.fit] if self.fit != "crop" else [])]

    def notes(self) -> list[str]:
        return [*self.looked.notes(), *range_notes(self.looked, self.ranges)]


def read_image(
    file: Path | BinaryIO,
    size: int | Size,
    channels: int,
    ranges: Ranges = FULL,
    most_pixels: int = MOST_PIXELS,
    page: int = 0,
    draft: bool = False,
    fit: str = "crop",
) -> Tensor:
    """Decode a page of a file, turn it upright, and bring it to a size -> uint8 (channels, height, width).

    size: (height, width), or the side of a square. Converts to gray or RGB as `channels` asks. `ranges` says which values of
    images of more than 8 bits are black and white. draft: a JPEG file may be decoded at a part of its size. fit: one of
    FITS. Raises OSError if it cannot be decoded, and for more than `most_pixels`.
    """
    try:
        with open_image(file, most_pixels) as opened:
            opened.seek(page)
            if draft:
                opened.draft(None, sides(size)[::-1])  # not below that; only JPEG has it
            return as_item(opened, size, channels, ranges, fit)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise OSError(f"{type(error).__name__}: {error}; data.most_pixels is the limit") from error
    except Exception as error:  # Pillow's parsers raise many kinds: struct.error, AttributeError, ...
        raise OSError(f"{type(error).__name__}: {error}") from error


def as_item(image: Image.Image, size: int | Size, channels: int, ranges: Ranges = FULL, fit: str = "crop") -> Tensor:
    """An opened image -> uint8 (channels, height, width), as `read_image` does with a file's."""
    height, width = sides(size)
    image = eight_bits(ImageOps.exif_transpose(image), ranges)
    image = FITS[fit](image.convert("RGB" if channels == 3 else "L"), (height, width), 0)
    array = np.asarray(image).reshape(height, width, channels)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)  # (C, H, W)
