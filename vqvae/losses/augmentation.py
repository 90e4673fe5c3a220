"""Differentiable augmentation of what a discriminator sees, data and reconstructions alike (arXiv 2006.10738).

A small set is then not learned by heart, and gradients still reach the decoder. Draws are made for the batch of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vqvae import distributed

SHIFT, HOLE = 1 / 8, 1 / 2  # shares of a side
Augmentation = Literal["color", "translation", "cutout"]


def augmented(x: Tensor, names: Sequence[Augmentation]) -> Tensor:
    """Items (B, C, *S) in [-1, 1] -> the same, each changed by chance in the ways that are named."""
    for name in names:
        x = WAYS[name](x)
    return x


def color(x: Tensor) -> Tensor:
    """Brightness moved by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = draw(x, 3)
    x = x + (brightness - 0.5)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * (2 * saturation)
    mean = x.mean([*range(1, x.ndim)], keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translation(x: Tensor) -> Tensor:
    """Moved along each dim by up to an eighth of it; zeros come in."""
    for dim, share in enumerate(draw(x, x.ndim - 2), 2):
        length = x.shape[dim]
        most = int(length * SHIFT + 0.5)
        moved = (
            torch.arange(length, device=x.device) + (share.view(-1, 1) * (2 * most + 1)).long() - most
        )  # (B, length)
        shape = [-1 if axis in (0, dim) else 1 for axis in range(x.ndim)]
        inside = ((moved >= 0) & (moved < length)).view(len(x), *shape[1:])
        index = moved.clamp(0, length - 1).view(len(x), *shape[1:])
        x = x.gather(dim, index.expand_as(x)) * inside  # (B, C, *S)
    return x


def cutout(x: Tensor) -> Tensor:
    """A box of half the length of each dim, anywhere, also across the border, is 0."""
    hole = x.new_ones(len(x), *[1] * (x.ndim - 1), dtype=torch.bool)
    for dim, share in enumerate(draw(x, x.ndim - 2), 2):
        length = x.shape[dim]
        distance = torch.arange(length, device=x.device) + 0.5 - share.view(-1, 1) * length  # (B, length)
        inside = distance.abs() <= length * HOLE / 2
        hole = hole & inside.view(len(x), *[length if axis == dim else 1 for axis in range(1, x.ndim)])
    return x * ~hole


def draw(x: Tensor, count: int) -> list[Tensor]:
    """`count` numbers in [0, 1) for each item, each (B, 1, 1, ...)."""
    numbers = distributed.draw_of_rank(lambda rows: torch.rand(rows, count, device=x.device), len(x))  # (B, count)
    return [one.view(-1, *[1] * (x.ndim - 1)) for one in numbers.unbind(1)]


WAYS = {"color": color, "translation": translation, "cutout": cutout}
