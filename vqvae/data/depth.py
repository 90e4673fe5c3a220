"""Images of more than 8 bits a channel: which values are black and white, decided once for a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from vqvae.data.formats import open_image
from vqvae.errors import TooManyUnreadable, UserError

Range = tuple[float, float]
ValueRange = Range | Literal["auto"] | None  # the setting data.value_range
MOST_DECODED = 16  # images whose values are looked at: decoding large ones takes long


def as_value_range(setting: Any) -> ValueRange:
    """The setting data.value_range, checked: auto, null, or two numbers in order. Raises UserError for anything else."""
    if setting is None or setting == "auto":
        return setting
    pair = () if isinstance(setting, str) else tuple(map(float, setting))
    if len(pair) != 2 or not -math.inf < pair[0] < pair[1] < math.inf:
        raise UserError(f"value_range must be auto, null, or two numbers in order, got {setting}")
    return pair[0], pair[1]


class Ranges(NamedTuple):
    """Values that become 0 and 255. clips: values outside become 0 or 255, too; else such an image cannot be read."""

    integers: Range = (0, 65535)
    floats: Range = (0, 1)
    clips: bool = False


FULL = Ranges()  # what the types hold


@dataclass
class Looked:
    """What some images of a set have shown. integers, floats: smallest and largest value of each image that has such."""

    integers: list[Range]
    floats: list[Range]
    deep_colors: list[Range]  # after Pillow has kept the upper 8 bits of 16
    pages: int = 0  # images with further pages
    count: int = 0

    def notes(self) -> list[str]:
        """What is lost or chosen, in sentences."""
        found = []
        if self.pages:
            found.append(f"{self.pages} of {self.count} images looked at have further pages")
        if self.deep_colors:
            found.append(f"{len(self.deep_colors)} of {self.count} images looked at have 16-bit colors, read as 8 bits")
        return found


def look_at(files: Iterable[Path | BinaryIO], most_pixels: int) -> Looked:
    """Open images, and decode those of more than 8 bits, up to MOST_DECODED of them. Unreadable ones show nothing."""
    looked, decoded = Looked([], [], []), 0
    for file in files:
        try:
            with open_image(file, most_pixels) as image:
                looked.count += 1
                looked.pages += getattr(image, "n_frames", 1) > 1
                found = values_of(looked, image)
                if found is not None and decoded < MOST_DECODED:
                    decoded += 1
                    values = np.asarray(image)
                    values = values[..., :3] if values.ndim == 3 else values  # no transparency
                    low, high = float(values.min()), float(values.max())
                    if np.isfinite([low, high]).all():
                        found.append((low, high))
        except Exception:  # Pillow's parsers raise many kinds; whoever reads the image for use says it
            continue
    return looked


def values_of(looked: Looked, image: Image.Image) -> list[Range] | None:
    """The list of `looked` that the values of an image belong in, None for 8 bits."""
    if image.mode.startswith("I"):
        return looked.integers
    if image.mode == "F":
        return looked.floats
    return looked.deep_colors if any(";16" in str(tile) for tile in getattr(image, "tile", [])) else None


def choose_ranges(looked: Looked, value_range: ValueRange) -> Ranges:
    """Ranges for a data set of which some images were looked at; `value_range` is the user's setting.

    auto: integers from 0 on fill as many bits as their largest value needs, 8 at least; floats lie in 0 .. 1.
    Raises UserError where the range cannot be told, TooManyUnreadable for values outside of it.
    """
    if looked.deep_colors and max(high for _, high in looked.deep_colors) < 128:
        raise UserError(
            "the 16-bit color images use only their lower bits, which Pillow drops: convert them to 8 bits a channel first"
        )
    if value_range is None:
        return FULL
    if value_range != "auto":
        return Ranges(value_range, value_range, clips=True)
    check_within(looked.integers, FULL.integers, "integers")
    check_within(looked.floats, FULL.floats, "numbers")
    _, high = bounds(looked.integers, FULL.integers)
    return Ranges((0, 2 ** max(8, int(high).bit_length()) - 1))


def recalled_ranges(values: Any) -> Ranges:
    """[low, high, low, high, clips] of integers and floats -> Ranges. Raises UserError for anything else."""
    good = isinstance(values, list) and [type(value) in (int, float) for value in values] == [True] * 4 + [False]
    if not good or not all(map(math.isfinite, values)) or type(values[4]) is not bool:
        raise UserError(f"{str(values)[:100]} are no values of black and white")
    low, high, low_float, high_float, clips = values
    if low >= high or low_float >= high_float:
        raise UserError(f"{values} are no values of black and white: they must be in order")
    return Ranges((low, high), (low_float, high_float), clips)


def bounds(found: list[Range], default: Range) -> Range:
    """The smallest and the largest value of all images."""
    return (min(low for low, _ in found), max(high for _, high in found)) if found else default


def check_within(found: list[Range], full: Range, kind: str) -> None:
    """Raise TooManyUnreadable, asking for data.value_range, if values of an image lie outside of `full`."""
    outside = [one for one in found if one[0] < full[0] or one[1] > full[1]]
    if outside:
        low, high = bounds(found, full)
        raise TooManyUnreadable(
            f"the values of the images are {kind} from {low:g} to {high:g}: say which become black and white, "
            f"as data.value_range=[{low:g},{high:g}]",
            {"train": len(outside)},
        )


def range_notes(looked: Looked, ranges: Ranges) -> list[str]:
    """Sentences about a range that is not the whole one of its type."""
    found = []
    for found_values, chosen, full in (
        (looked.integers, ranges.integers, FULL.integers),
        (looked.floats, ranges.floats, FULL.floats),
    ):
        if found_values and (chosen != full or ranges.clips):
            low, high = bounds(found_values, full)
            text = f"values {low:g} .. {high:g} of {len(found_values)} images looked at: data.value_range="
            found.append(f"{text}[{chosen[0]:g},{chosen[1]:g}] becomes 0 .. 255")
            if low < chosen[0] or high > chosen[1]:
                found[-1] += ", values outside are clipped"
    return found


def eight_bits(image: Image.Image, ranges: Ranges) -> Image.Image:
    """Convert any mode to 8 bits a channel, transparent parts on white.

    Integers of more bits and floats are gray images; Pillow's own conversion would clip them.
    Raises UserError for values out of their range.
    """
    if image.mode.startswith(("I", "F")):
        low, high = ranges.floats if image.mode == "F" else ranges.integers
        values = np.asarray(image).astype(np.float32 if image.mode == "F" else np.float64)
        if ranges.clips and not np.isnan(values).any():
            values = values.clip(low, high)
        if not ((values >= low) & (values <= high)).all():  # also False for NaN
            raise UserError(
                f"its values go from {values.min():g} to {values.max():g}, and must lie in {low:g} .. {high:g} "
                "(data.value_range=[low,high] sets the range)"
            )
        return Image.fromarray(np.round((values - low) * (255 / (high - low))).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
