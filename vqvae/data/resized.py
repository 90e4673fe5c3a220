"""Base class of data sets of images of any size, type and number of channels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from torch import Tensor

from vqvae.data.depth import (
    FULL,
    Looked,
    Ranges,
    ValueRange,
    as_value_range,
    choose_ranges,
    look_at,
    range_notes,
    recalled_ranges,
)
from vqvae.data.formats import MOST_PIXELS, SUFFIXES
from vqvae.data.framing import ImageSize, Size, in_proportion, sides
from vqvae.data.images import Images, read_image
from vqvae.data.levels import (
    DType,
    Levels,
    Seen,
    choose_levels,
    level_notes,
    look_at_values,
    read_values,
    recalled_levels,
)
from vqvae.data.planes import ARRAY_SUFFIXES, suffix_for, write_planes
from vqvae.data.shown import Show, check_show, shown
from vqvae.errors import UserError
from vqvae.ranges import Count, Gt, Lt, PositiveInt, checked


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

    With another dtype than uint8, or other channels than 1 and 3, values are read as they are: see vqvae/data/levels.py.
    show: the channel, or the three, that pictures show; null: the first or the first three.
    """

    channels: Count
    resize: ImageSize
    val_share: Annotated[float, Gt(0), Lt(1)]
    split_seed: int
    held_out: Literal["hash", "shuffle"] = "hash"
    value_range: ValueRange = "auto"
    most_pixels: PositiveInt = MOST_PIXELS
    draft: bool = False
    fit: Literal["crop", "pad", "stretch"] = "crop"
    dtype: DType = "uint8"
    show: Show = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recalled: dict[str, Any] = {}
        if any(read < kept for read, kept in zip(self.read_size, self.size)):
            raise UserError(f"resize must be at least image_size={self.image_size}, got {self.resize}")
        self.value_range = as_value_range(self.value_range)
        check_show(self.show, self.channels)

    @property
    def is_plain(self) -> bool:
        """True for gray and color images of 8 bits, which are converted to each other. Others are read as they are."""
        return self.dtype == "uint8" and self.channels in (1, 3)

    @property
    def value_type(self) -> str:
        return self.dtype

    @property
    def value_levels(self) -> Levels | None:
        return None if self.is_plain else self.levels

    @property
    def item_suffixes(self) -> frozenset[str]:
        return SUFFIXES if self.is_plain else SUFFIXES | ARRAY_SUFFIXES

    @property
    def suffix(self) -> str:
        return ".png" if self.is_plain else suffix_for(self.dtype, self.channels)

    def picture(self, items: Tensor) -> Tensor:
        """The channels to show, as 8 bits."""
        return shown(items, self.show)

    def save(self, path: Path, item: Tensor) -> Path:
        """Write a PNG file; of other types or channels PNG, TIFF or .npy, whichever holds the values."""
        if self.is_plain:
            return super().save(path, item)
        file = path.with_name(path.name + self.suffix)
        write_planes(file, self.values(item))
        return file

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
        if not self.is_plain:
            return {**super().facts(), "value_range": list(self.levels[1:])}
        integers, floats, clips = self.ranges
        return {**super().facts(), "ranges": [*integers, *floats, clips]}

    def recall(self, facts: dict[str, Any]) -> None:
        self.recalled = facts
        if "ranges" in facts:
            self.ranges = recalled_ranges(facts["ranges"])
        if "value_range" in facts:
            self.levels = recalled_levels(self.dtype, facts["value_range"])

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

    @cached_property
    def seen(self) -> Seen:
        """Values of the probes, where they are read as they are."""
        return look_at_values(self.probes(), self.channels, self.most_pixels)

    @cached_property
    def levels(self) -> Levels:
        """Type and range of values that are read as they are. Raises UserError where they cannot be told."""
        return choose_levels(self.dtype, self.value_range, self.seen)

    @property
    def read_file(self) -> Callable[..., Tensor]:
        size, channels, limit, fit = self.read_size, self.channels, self.most_pixels, self.fit
        if not self.is_plain:
            return partial(read_values, size=size, channels=channels, levels=self.levels, most_pixels=limit, fit=fit)
        ranges, draft = self.ranges, self.draft
        return partial(read_image, size=size, channels=channels, ranges=ranges, most_pixels=limit, draft=draft, fit=fit)

    @property
    def reading(self) -> list[object]:
        """What a fingerprint holds beside the files, where it differs from earlier versions."""
        if not self.is_plain:
            return [tuple(self.levels), *([self.fit] if self.fit != "crop" else [])]
        ranges = [] if self.ranges == FULL else [tuple(self.ranges)]
        return [*ranges, *(["draft"] if self.draft else []), *([self.fit] if self.fit != "crop" else [])]

    def notes(self) -> list[str]:
        if not self.is_plain:
            return level_notes(self.seen, self.levels, self.value_range)
        return [*self.looked.notes(), *range_notes(self.looked, self.ranges)]
