"""Transformer layers for grids of any number of dims."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.networks.blocks import Block, attend
from vqvae.networks.marks import mark_matrices
from vqvae.ranges import Count, PositiveInt, checked


class TransformerBlock(Block):
    """x + attention(norm(x)), then x + MLP(norm(x)): a pre-norm block, (B, N, width) -> same.

    Queries and keys are rotated by their positions (arXiv 2104.09864). The MLP has 4 width hidden channels and GELU.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def compute(self, x: Tensor, angles: Tensor) -> Tensor:
        """angles (N, width / heads / 2): see `angles_of`."""
        qkv = self.qkv(self.norm(x)).unflatten(2, (3 * self.heads, -1))  # (B, N, 3 heads, head_dim)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)  # 3 x (B, heads, N, head_dim)
        mixed = attend(rotate(q, angles), rotate(k, angles), v, causal=False)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))  # (B, N, width)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


@checked
class Transformer(nn.Module):
    """`depth` blocks and a last norm, over the positions of a grid and, after them, others without a place.

    (B, N or more, width) -> same; N is the product of the dims `grid`. The blocks' matrices are what optimizers.Muon is for.
    Raises UserError for a width that the heads cannot share in pairs of channels.
    """

    def __init__(self, width: PositiveInt, depth: Count, heads: PositiveInt) -> None:
        super().__init__()
        if width % (2 * heads):
            raise UserError(f"heads must divide half of width={width}, got {heads}")
        self.width, self.head_dim = width, width // heads
        blocks = [TransformerBlock(width, heads) for _ in range(depth)]
        with torch.no_grad():
            for block in blocks:
                block.out.weight /= math.sqrt(2 * depth)  # 2 x depth branches are summed
                block.down.weight /= math.sqrt(2 * depth)
                mark_matrices(block)
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width)

    def check_dims(self, ndim: int) -> None:
        """Raise UserError unless each head has a pair of channels for every dim of a grid, which tell places apart."""
        if self.head_dim < 2 * ndim:
            raise UserError(
                f"width={self.width} gives each head {self.head_dim} channels, and {ndim} dims need {2 * ndim}"
            )

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        angles = angles_of(grid, self.head_dim, x.device)  # (N, head_dim / 2)
        angles = F.pad(angles, (0, 0, 0, x.shape[1] - len(angles)))
        for block in self.blocks:
            x = block(x, angles)
        return self.norm(x)


def angles_of(grid: tuple[int, ...], head_dim: int, device: torch.device | None = None) -> Tensor:
    """Dims *s -> (N, head_dim / 2): by how much pairs of channels turn at each position, in raster order.

    Each axis has an equal share of the pairs, from a quarter turn a place to a quarter turn over the whole axis; what is left
    over does not turn.
    """
    share = head_dim // 2 // len(grid)
    angles = torch.zeros(*grid, head_dim // 2, device=device)
    for axis, length in enumerate(grid):
        speeds = math.pi / 2 * float(length) ** -torch.linspace(0, 1, share, device=device)  # (share,)
        turns = torch.arange(length, device=device)[:, None] * speeds  # (length, share)
        shape = [length if axis == other else 1 for other in range(len(grid))]
        angles[..., axis * share : (axis + 1) * share] = turns.view(*shape, share)
    return angles.flatten(0, -2)  # (N, head_dim / 2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns channel i of x (B, heads, N, head_dim) together with channel i + head_dim / 2."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
