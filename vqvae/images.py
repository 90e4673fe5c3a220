"""Pictures as tensors, and as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vqvae.storage.files import write_bytes

Show = Callable[[Tensor], Tensor]  # items uint8 (n, C, *S) -> pictures uint8 (n, 1 or 3, H, W)


def normalise(images: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float32 -1 .. 1."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """float -1 .. 1 -> uint8 0 .. 255: the inverse of `normalise`."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(rows: list[Tensor]) -> Tensor:
    """Rows of pictures uint8 (n, C, H, W) -> one picture (C, ., .); small ones are enlarged to at least 64 pixels."""
    from torchvision.utils import make_grid

    pictures = torch.cat(rows).cpu()
    scale = max(1, 64 // pictures.shape[-1])
    pictures = pictures.repeat_interleave(scale, 2).repeat_interleave(scale, 3)  # (n, C, scale H, scale W)
    return make_grid(pictures, nrow=len(rows[0]), padding=2, pad_value=255)


def rows_of(pictures: Tensor, columns: int) -> list[Tensor]:
    """Pictures (n, C, H, W) -> rows of equal length, the last filled up with white."""
    missing = -len(pictures) % columns
    white = pictures.new_full((missing, *pictures.shape[1:]), 255)
    return list(torch.cat([pictures, white]).split(columns))


def write_png(path: Path, picture: Tensor) -> None:
    """uint8 (1 or 3, H, W) -> a PNG file that appears under its name when it is whole."""
    from torchvision.io import encode_png

    write_bytes(path, encode_png(picture.cpu().contiguous()).numpy().tobytes())
