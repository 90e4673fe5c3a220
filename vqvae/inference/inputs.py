"""What people give to a trained model: tensors, pictures, codes.

Numbers out of range are a plain ValueError, because no program here makes such.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from vqvae.data.framing import Size
from vqvae.data.images import as_item, read_image
from vqvae.data.levels import Levels, item_of, read_values
from vqvae.data.planes import checked_values, first_or_last, from_pillow
from vqvae.errors import UserError
from vqvae.images import x_of

Picture = Image | str | Path | np.ndarray
SLACK = 0.01  # beyond [-1, 1], for images that were resized


class DataInfo(NamedTuple):
    """Data that a model was trained on: its class, channels C, dims *S, class names, and the sample rate of sounds.

    fit: how images were brought to their size. levels: type and range of values that were read as they are; None: 8 bits.
    """

    name: str
    channels: int
    size: tuple[int, ...]
    class_names: list[str]
    sample_rate: int | None = None
    fit: str = "crop"
    levels: Levels | None = None


def as_input(x: Tensor | Sequence[Picture], data: DataInfo) -> Tensor:
    """x (B, C, *S), or pictures to make it of -> x, checked. data: what the model was trained on.

    Raises UserError for other dims, channels or types, ValueError for values outside of [-1, 1] and NaN.
    """
    if not isinstance(x, Tensor):
        return from_pictures(x, data)
    if x.dtype != torch.float32 or x.ndim != len(data.size) + 2 or x.shape[1] != data.channels:
        wanted = ", ".join(map(str, (data.channels, *data.size)))
        raise UserError(f"x must be float32 in [-1, 1] of shape (B, {wanted}), got {x.dtype} of {tuple(x.shape)}")
    if not bool((x.abs() <= 1 + SLACK).all()):  # not for NaN either
        raise ValueError(f"x must lie in [-1, 1], got {extremes(x)}: scale bytes by x / 127.5 - 1")
    return x


def from_pictures(pictures: Sequence[Picture], data: DataInfo) -> Tensor:
    """Images of Pillow, paths of image files, or arrays in the data's units -> x (n, C, H, W), read as the data was.

    Raises UserError where the data is no images, OSError for a file that cannot be read.
    """
    if isinstance(pictures, (str, Path, Image)):
        raise UserError("give images as a list, such as model.encode([image])")
    if len(data.size) != 2 or (data.levels is None and data.channels not in (1, 3)):
        raise UserError(f"this model's data is no images: give x as a tensor (B, {data.channels}, *{data.size})")
    height, width = data.size
    items = [item_from(one, data, (height, width)) for one in pictures]
    if len({item.shape for item in items}) > 1:
        raise UserError("give images of different sizes one by one, or have them resized: leave tile out")
    return x_of(torch.stack(items))


def item_from(picture: Picture, data: DataInfo, size: Size) -> Tensor:
    """One of them -> an item."""
    if data.levels is not None:
        if isinstance(picture, (str, Path)):
            return read_values(Path(picture), size, data.channels, data.levels, fit=data.fit)
        array = (
            first_or_last(picture, data.channels)
            if isinstance(picture, np.ndarray)
            else from_pillow(picture, data.channels)
        )
        return item_of(checked_values(array), size, data.levels, data.fit)
    if isinstance(picture, np.ndarray):
        picture = fromarray(picture)
    if isinstance(picture, Image):
        return as_item(picture, size, data.channels, fit=data.fit)
    return read_image(Path(picture), size, data.channels, fit=data.fit)


def check_codes(codes: Tensor, size: int) -> None:
    """Raise ValueError for codes that are no integers of 0 .. size - 1."""
    if codes.is_floating_point() or (codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size):
        raise ValueError(f"codes must be integers of 0 .. {size - 1}, got {codes.dtype} of {extremes(codes)}")


def extremes(values: Tensor) -> str:
    """The smallest and the largest value, for a message."""
    return f"{values.min().item():.4g} .. {values.max().item():.4g}" if values.numel() else "nothing"
