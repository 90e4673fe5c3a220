"""Images as tensors and as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vqvae.storage.files import write_bytes

Show = Callable[[Tensor], Tensor]  # items (n, C, *S) -> images uint8 (n, 1 or 3, H, W)


def normalize(images: Tensor) -> Tensor:
    """Scale uint8 0 .. 255 to float32 -1 .. 1."""
    return images.float().div_(127.5).sub_(1)


def x_of(items: Tensor) -> Tensor:
    """Items of a data set -> float32 in -1 .. 1. Those of more than 8 bits are so already."""
    return normalize(items) if items.dtype == torch.uint8 else items


def to_uint8(x: Tensor) -> Tensor:
    """Scale float -1 .. 1 to uint8 0 .. 255: the inverse of `normalize`."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(rows: list[Tensor]) -> Tensor:
    """Rows of images uint8 (n, C, H, W) -> one image (C, ., .); small images are enlarged to at least 64 pixels."""
    from torchvision.utils import make_grid

    images = torch.cat(rows).cpu()
    scale = max(1, 64 // max(images.shape[-2:]))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)  # (n, C, scale H, scale W)
    return make_grid(images, nrow=len(rows[0]), padding=2, pad_value=255)


def rows_of(images: Tensor, columns: int) -> list[Tensor]:
    """Split images (n, C, H, W) into rows of equal length, the last one padded with white."""
    missing = -len(images) % columns
    white = images.new_full((missing, *images.shape[1:]), 255)
    return list(torch.cat([images, white]).split(columns))


def write_png(path: Path, image: Tensor) -> None:
    """Write an image uint8 (1 or 3, H, W) to a PNG file."""
    from torchvision.io import encode_png

    write_bytes(path, encode_png(image.cpu().contiguous()).numpy().tobytes())
