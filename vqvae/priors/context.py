"""What the condition of a code map is made of: the maps before it, and the places in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.networks.blocks import conv

MEANS: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
POSITION_STD = 0.3  # of the learned vectors of each axis at the start; those of classes have 1


class ContextNetwork(nn.Module):
    """The condition of a map by the ones before it: their embeddings, brought to its grid, mixed by 3x3.

    Along a dim that grows by nearest neighbor, along one that shrinks by means, so that every code of theirs counts.
    maps (B, *s_i) -> (B, width, *s). Not causal, because those maps are complete when this one begins.
    """

    def __init__(self, ndim: int, codebook_sizes: list[int], width: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size in codebook_sizes)
        self.mix = nn.Sequential(
            conv(ndim, len(codebook_sizes) * width, width, 3, padding=1),
            nn.ReLU(),
            conv(ndim, width, width, 3, padding=1),
        )

    def forward(self, coarser: list[Tensor], grid: tuple[int, ...]) -> Tensor:
        features = [to_grid(embed(codes).movedim(-1, 1), grid) for embed, codes in zip(self.embeddings, coarser)]
        return self.mix(torch.cat(features, dim=1))


def to_grid(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """x (B, width, *s_i) -> (B, width, *grid), each value of which counts in every value that it lies below."""
    smaller = tuple(min(lengths) for lengths in zip(x.shape[2:], grid))
    if smaller != x.shape[2:]:
        x = MEANS[len(grid)](x, smaller)  # (B, width, *smaller)
    return F.interpolate(x, size=grid, mode="nearest")


class Positions(nn.Module):
    """A learned vector for each place on each axis; those of a position are summed. () -> (width, *s)."""

    def __init__(self, grid: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.axes = nn.ParameterList(
            POSITION_STD * torch.randn(width, *(length if axis == other else 1 for other in range(len(grid))))
            for axis, length in enumerate(grid)
        )

    def forward(self) -> Tensor:
        total = self.axes[0]
        for axis in list(self.axes)[1:]:
            total = total + axis  # broadcast over the other axes
        return total
