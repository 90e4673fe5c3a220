"""What people give to a trained model: tensors, pictures, codes.

Numbers out of range are a plain ValueError, because no program here makes such.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from vqvae.data.images import as_item, read_image
from vqvae.errors import UserError
from vqvae.images import normalize

Picture = Image | str | Path
SLACK = 0.01  # beyond [-1, 1], for images that were resized


def as_input(x: Tensor | Sequence[Picture], channels: int, size: tuple[int, ...]) -> Tensor:
    """x (B, C, *S), or pictures to make it of -> x, checked. channels, size: of the data that the model was trained on.

    Raises UserError for other dims, channels or types, ValueError for values outside of [-1, 1] and NaN.
    """
    if not isinstance(x, Tensor):
        return from_pictures(x, channels, size)
    if x.dtype != torch.float32 or x.ndim != len(size) + 2 or x.shape[1] != channels:
        wanted = ", ".join(map(str, (channels, *size)))
        raise UserError(f"x must be float32 in [-1, 1] of shape (B, {wanted}), got {x.dtype} of {tuple(x.shape)}")
    if not bool((x.abs() <= 1 + SLACK).all()):  # not for NaN either
        raise ValueError(f"x must lie in [-1, 1], got {extremes(x)}: scale bytes by x / 127.5 - 1")
    return x


def from_pictures(pictures: Sequence[Picture], channels: int, size: tuple[int, ...]) -> Tensor:
    """Images of Pillow, or paths of image files -> x (n, C, H, W): upright, resized, cropped at the center.

    Raises UserError where the data is no images, OSError for a file that cannot be read.
    """
    if isinstance(pictures, (str, Path, Image)):
        raise UserError("give images as a list, such as model.encode([image])")
    if len(size) != 2 or channels not in (1, 3):
        raise UserError(
            f"this model's data is no images of 1 or 3 channels: give x as a tensor (B, {channels}, *{size})"
        )
    height, width = size
    items = [
        as_item(one, (height, width), channels)
        if isinstance(one, Image)
        else read_image(Path(one), (height, width), channels)
        for one in pictures
    ]
    return normalize(torch.stack(items))


def check_codes(codes: Tensor, size: int) -> None:
    """Raise ValueError for codes that are no integers of 0 .. size - 1."""
    if codes.is_floating_point() or (codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size):
        raise ValueError(f"codes must be integers of 0 .. {size - 1}, got {codes.dtype} of {extremes(codes)}")


def extremes(values: Tensor) -> str:
    """The smallest and the largest value, for a message."""
    return f"{values.min().item():.4g} .. {values.max().item():.4g}" if values.numel() else "nothing"
