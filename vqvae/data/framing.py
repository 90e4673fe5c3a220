"""From an image of any size to the size of the items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from PIL import Image, ImageOps

from vqvae.ranges import Bound, PositiveInt

Size = tuple[int, int]  # height, width
TwoSides = Bound("be one side, or [height, width]", lambda value: len(value) == 2)
ImageSize = PositiveInt | Annotated[tuple[PositiveInt, PositiveInt], TwoSides]  # of settings
Fit = Callable[
    [Image.Image, Size, float], Image.Image
]  # image, size, value of black -> an image of that size, unless kept


def sides(size: int | Sequence[int]) -> Size:
    """Height and width of a setting: one number stands for a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def as_setting(size: Size) -> int | Size:
    """The shortest setting of a size: of squares the side. Fingerprints hold it."""
    return size[0] if size[0] == size[1] else size


def in_proportion(shorter: int, size: Size) -> Size:
    """A size with the proportions of `size` whose shorter side is `shorter`."""
    height, width = (round(shorter * side / min(size)) for side in size)
    return height, width


def crop(image: Image.Image, size: Size, black: float) -> Image.Image:
    """Resize until the image just covers `size`, then crop the center."""
    wanted = size[::-1]
    return image if image.size == wanted else ImageOps.fit(image, wanted, Image.Resampling.BICUBIC)


def pad(image: Image.Image, size: Size, black: float) -> Image.Image:
    """Resize until the whole image just fits into `size`, with black beside it."""
    color = black if image.mode == "F" else None  # None is black in every other mode
    return ImageOps.pad(image, size[::-1], Image.Resampling.BICUBIC, color)  # type: ignore[arg-type]


def stretch(image: Image.Image, size: Size, black: float) -> Image.Image:
    """Resize to `size`, whatever the proportions."""
    return image.resize(size[::-1], Image.Resampling.BICUBIC)


def keep(image: Image.Image, size: Size, black: float) -> Image.Image:
    """Leave the image at its own size."""
    return image


FITS: dict[str, Fit] = {"crop": crop, "pad": pad, "stretch": stretch, "keep": keep}
