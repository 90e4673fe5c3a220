"""Base classes of image data sets, and reading image files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vqvae.data.base import Data
from vqvae.data.depth import FULL, Ranges, eight_bits
from vqvae.data.formats import MOST_PIXELS, SUFFIXES, open_image
from vqvae.data.framing import FITS, ImageSize, Size, sides
from vqvae.images import write_png
from vqvae.ranges import In, checked


@checked
@dataclass(kw_only=True)
class Images(Data):
    """Base of image data sets: uint8 (C, H, W).

    ndim: 2. channels: C, 1 or 3. image_size: [height, width] of the images that the model sees, or the side of squares.
    """

    size_key: ClassVar[str] = "image_size"

    ndim: Annotated[int, In(2)]
    channels: Annotated[int, In(1, 3)]
    image_size: ImageSize

    @property
    def size(self) -> Size:
        return sides(self.image_size)

    @property
    def suffix(self) -> str:
        return ".png"

    @property
    def item_suffixes(self) -> frozenset[str]:
        return SUFFIXES

    def picture(self, items: Tensor) -> Tensor:
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

    def load_whole(self, path: Path) -> Tensor:
        """Read an image as `load` does, at its own size."""
        return self.read_file(path, fit="keep")

    @property
    def read_file(self) -> Callable[..., Tensor]:
        """Image file -> uint8 (C, *R). Raises OSError if it cannot be decoded."""
        return partial(read_image, size=self.size, channels=self.channels)


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
    image = eight_bits(ImageOps.exif_transpose(image), ranges)
    image = FITS[fit](image.convert("RGB" if channels == 3 else "L"), sides(size), 0)
    array = np.asarray(image).reshape(image.height, image.width, channels)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)  # (C, H, W)
