"""Values of images that are read as they are: their type, and which of them are -1 and 1 for the model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqvae.data.depth import Range, ValueRange
from vqvae.data.formats import MOST_PIXELS
from vqvae.data.framing import FITS, Size, sides
from vqvae.data.planes import read_planes
from vqvae.errors import UserError
from vqvae.images import to_uint8

DType = Literal["uint8", "uint16", "float16", "float32"]
FULL: dict[str, Range] = {"uint8": (0, 255), "uint16": (0, 65535), "float16": (0, 1), "float32": (0, 1)}
BITS = {"uint8": 8, "uint16": 16, "float16": 16, "float32": 32}
PERCENTILES = (0.1, 99.9)  # of the values that are looked at: outliers do not decide the range
MOST_LOOKED_AT = 2**16  # values of an image


class Levels(NamedTuple):
    """Values from `low` to `high` are -1 to 1 for the model. clips: values outside are clipped, else an image that has such
    cannot be read. dtype: of the values as they are written."""

    dtype: str
    low: float
    high: float
    clips: bool

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Values of any type -> float32 in [-1, 1]. Raises OSError for values outside that are not clipped."""
        low, high = float(values.min()), float(values.max())
        if not self.clips and (low < self.low or high > self.high):
            raise OSError(
                f"its values go from {low:g} to {high:g}, and must lie in {self.low:g} .. {self.high:g} "
                "(data.value_range=[low,high] sets the range)"
            )
        share = (values.astype(np.float64) - self.low) / (self.high - self.low)
        return (share.clip(0, 1) * 2 - 1).astype(np.float32)

    def values(self, x: Tensor) -> np.ndarray:
        """x in [-1, 1] -> the data's own units and type: the inverse of `unit`. Any shape."""
        values = (x.double().clamp(-1, 1).cpu().numpy() + 1) / 2 * (self.high - self.low) + self.low
        if np.dtype(self.dtype).kind == "u":
            values = values.round().clip(*FULL[self.dtype])
        return values.astype(self.dtype)


class Seen(NamedTuple):
    """Values that some items of a set have, and their number."""

    values: np.ndarray
    items: int


def look_at_values(files: Iterable[Path | BinaryIO], channels: int, most_pixels: int) -> Seen:
    """Read images, and keep values that are evenly spread over each. Unreadable ones show nothing."""
    found = []
    for file in files:
        try:
            values = read_planes(file, channels, most_pixels)
        except OSError:  # whoever reads the image for use says it
            continue
        flat = values.reshape(-1)
        found.append(np.asarray(flat[:: max(1, len(flat) // MOST_LOOKED_AT)], np.float64))
    return Seen(np.concatenate(found) if found else np.empty(0), len(found))


def choose_levels(dtype: str, value_range: ValueRange, seen: Seen) -> Levels:
    """Levels of a set. `value_range` is the user's setting: [low, high]; null: the range of the type; auto: of 8 bits the same,
    else PERCENTILES of the values that were seen. Raises UserError where there is no range.
    """
    if value_range is None or (value_range == "auto" and (dtype == "uint8" or not seen.items)):
        return Levels(dtype, *FULL[dtype], clips=False)
    if value_range != "auto":
        low, high = map(float, value_range)
        check_held(dtype, low, high)
        return Levels(dtype, low, high, clips=True)
    low, high = (float(value) for value in np.percentile(seen.values, PERCENTILES))
    if np.dtype(dtype).kind == "u":
        low, high = math.floor(low), math.ceil(high)
    if not low < high:
        raise UserError(
            f"nearly all values of the images are {low:g}: say which become black and white, as data.value_range=[0,255]"
        )
    check_held(dtype, low, high)
    return Levels(dtype, low, high, clips=True)


def check_held(dtype: str, low: float, high: float) -> None:
    """Raise UserError for a range that values of a type do not reach."""
    about = np.iinfo(dtype) if np.dtype(dtype).kind == "u" else np.finfo(dtype)
    if low < about.min or high > about.max:
        raise UserError(
            f"value_range=[{low:g},{high:g}] has values that {dtype} does not hold: choose dtype=float32, or a smaller range"
        )


def recalled_levels(dtype: str, values: Any) -> Levels:
    """[low, high, clips] -> Levels. Raises UserError for anything else."""
    good = isinstance(values, list) and [type(value) for value in values] in ([float, float, bool], [int, int, bool])
    if not good or not -math.inf < values[0] < values[1] < math.inf:
        raise UserError(f"{str(values)[:100]} are no values of black and white")
    return Levels(dtype, *values)


def level_notes(seen: Seen, levels: Levels, value_range: ValueRange) -> list[str]:
    """Sentences about the range of a set, and about what it clips."""
    chosen = f"data.value_range=[{levels.low:g},{levels.high:g}] ({levels.dtype}) becomes -1 .. 1"
    if not seen.items:
        return [chosen]
    outside = float(np.mean((seen.values < levels.low) | (seen.values > levels.high)))
    found = f"values {seen.values.min():g} .. {seen.values.max():g} of {seen.items} items looked at: {chosen}"
    if value_range == "auto" and levels.clips:
        found += f", their percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}"
    return [found + (f"; {outside:.2%} of them lie outside and are clipped" if outside and levels.clips else "")]


def read_values(
    file: Path | BinaryIO,
    size: int | Size,
    channels: int,
    levels: Levels,
    most_pixels: int = MOST_PIXELS,
    page: int = 0,
    fit: str = "crop",
) -> Tensor:
    """Read an image of any type, and bring it to a size -> (channels, height, width), of 8 bits uint8, else float32 in [-1, 1].

    size: (height, width), or the side of a square. Raises OSError if it cannot be read: see `read_planes`.
    """
    return item_of(read_planes(file, channels, most_pixels, page), size, levels, fit)


def item_of(values: np.ndarray, size: int | Size, levels: Levels, fit: str = "crop") -> Tensor:
    """Values (C, H, W) of any type -> an item, as `read_values` makes it. Raises OSError for values out of range."""
    x = levels.unit(values)
    framed = [np.asarray(FITS[fit](Image.fromarray(plane), sides(size), -1.0)) for plane in x]
    item = torch.from_numpy(np.stack(framed)).clamp_(-1, 1)  # (C, H, W): bicubic resizing overshoots
    return to_uint8(item) if levels.dtype == "uint8" else item
