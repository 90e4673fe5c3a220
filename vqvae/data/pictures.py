"""What is common to data sets of pictures."""

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
class Pictures(Data):
    """Base of all picture data sets: square, uint8 (C, H, W).

    ndim: 2. channels: C, 1 or 3. image_size: side of the pictures that the model sees. Raises ValueError for values out of
    range.
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
        """Pictures are what to look at."""
        return items

    def save(self, path: Path, item: Tensor) -> Path:
        """A PNG file."""
        file = path.with_name(path.name + self.suffix)
        write_png(file, item)
        return file

    def load(self, path: Path) -> Tensor:
        """Any size and format that Pillow reads."""
        return read_picture(path, self.read_size[0], self.channels)


@checked
@dataclass(kw_only=True)
class ResizedPictures(Pictures):
    """Base of picture data sets whose files have any size.

    Pictures are resized (shorter side to `resize`) and cut to the middle square; where `resize` is larger than `image_size`,
    training sees random crops and everything else the middle crop. Where nothing else is there to validate on, `split_seed`
    chooses a share `val_share`. Raises ValueError for values out of range.
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


def read_picture(path: Path | BinaryIO, side: int, channels: int) -> Tensor:
    """A file, decoded, turned upright, resized and cropped to the middle square -> uint8 (channels, side, side).

    Of an animation the first frame; colours and greys become what `channels` asks for.
    Raises OSError where it cannot be decoded, and for more pixels than Pillow thinks safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                picture = eight_bits(ImageOps.exif_transpose(opened))
                picture = fit(picture.convert("RGB" if channels == 3 else "L"), side)
    except Exception as error:  # Pillow's parsers raise whatever they run into: struct.error, AttributeError, ...
        raise OSError(f"{type(error).__name__}: {error}") from error
    array = np.asarray(picture).reshape(side, side, channels)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)  # (C, H, W)


def eight_bits(picture: Image.Image) -> Image.Image:
    """Any mode -> 8 bits a channel, on white where it is transparent.

    Integers of more bits (0 .. 65535) and floats (0 .. 1) are greys; Pillow's own conversion would clip them.
    Raises ValueError for values beyond that.
    """
    if picture.mode.startswith(("I", "F")):
        values, most = np.asarray(picture).astype(np.float32), 1 if picture.mode == "F" else 65535
        if not ((values >= 0) & (values <= most)).all():  # so are NaNs found
            raise UserError(f"its values go from {values.min():g} to {values.max():g}, and must lie in 0 .. {most}")
        return Image.fromarray(np.round(values * (255 / most)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture


def fit(picture: Image.Image, size: int) -> Image.Image:
    """Shrinks or grows the shorter side to `size`, then cuts out the middle square."""
    width, height = picture.size
    if (width, height) == (size, size):
        return picture
    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
