"""Base classes of image data sets, and reading image files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vqvae.data.base import Data
from vqvae.errors import UserError
from vqvae.images import write_png
from vqvae.ranges import Gt, In, Lt, PositiveInt, checked


@checked
@dataclass(kw_only=True)
class Images(Data):
    """Base of image data sets: square, uint8 (C, H, W).

    ndim: 2. channels: C, 1 or 3. image_size: side of the images that the model sees.
    """

    size_key: ClassVar[str] = "image_size"
    suffix: ClassVar[str] = ".png"

    ndim: Annotated[int, In(2)]
    channels: Annotated[int, In(1, 3)]
    image_size: PositiveInt

    @property
    def size(self) -> tuple[int, ...]:
        return (self.image_size,) * self.ndim

    def show(self, items: Tensor) -> Tensor:
        """Return the images as they are."""
        return items

    def save(self, path: Path, item: Tensor) -> Path:
        """Write a PNG file."""
        file = path.with_name(path.name + self.suffix)
        write_png(file, item)
        return file

    def load(self, path: Path) -> Tensor:
        """Read an image of any size and format that Pillow knows."""
        return read_image(path, self.read_size[0], self.channels)


@checked
@dataclass(kw_only=True)
class ResizedImages(Images):
    """Base of data sets of images of any size.

    Images are resized (shorter side to `resize`) and cropped to the center square. If `resize` is larger than `image_size`,
    training takes random crops and everything else the center crop. Without a validation set, `split_seed` holds out a
    share `val_share` of the images.
    """

    resize: PositiveInt
    val_share: Annotated[float, Gt(0), Lt(1)]
    split_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._class_names: list[str] = []
        if self.resize < self.image_size:
            raise UserError(f"resize must be at least image_size={self.image_size}, got {self.resize}")

    @property
    def read_size(self) -> tuple[int, ...]:
        return (self.resize,) * self.ndim

    @property
    def class_names(self) -> list[str]:
        return self._class_names


def read_image(path: Path | BinaryIO, side: int, channels: int) -> Tensor:
    """Decode a file, turn it upright, resize and crop to the center square -> uint8 (channels, side, side).

    Takes the first frame of an animation, and converts to gray or RGB as `channels` asks.
    Raises OSError if it cannot be decoded, and for more pixels than Pillow considers safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                image = eight_bits(ImageOps.exif_transpose(opened))
                image = fit(image.convert("RGB" if channels == 3 else "L"), side)
    except Exception as error:  # Pillow's parsers raise many kinds: struct.error, AttributeError, ...
        raise OSError(f"{type(error).__name__}: {error}") from error
    array = np.asarray(image).reshape(side, side, channels)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)  # (C, H, W)


def eight_bits(image: Image.Image) -> Image.Image:
    """Convert any mode to 8 bits per channel, transparent parts on white.

    Integers of more bits (0 .. 65535) and floats (0 .. 1) are gray images; Pillow's own conversion would clip them.
    Raises UserError for values out of that range.
    """
    if image.mode.startswith(("I", "F")):
        values, most = np.asarray(image).astype(np.float32), 1 if image.mode == "F" else 65535
        if not ((values >= 0) & (values <= most)).all():  # also False for NaN
            raise UserError(f"its values go from {values.min():g} to {values.max():g}, and must lie in 0 .. {most}")
        return Image.fromarray(np.round(values * (255 / most)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size`, then crop the center square."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
