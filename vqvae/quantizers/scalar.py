"""Quantizers that round each coordinate by itself: no codebook to learn, none to collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqvae.quantizers.base import FlatQuantized, Quantizer


class FSQ(Quantizer):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505, section 3 and appendix A.1).

    Coordinate i is bounded by tanh and rounded to one of levels[i] values in [-1, 1]; the index of a vector is
    sum_i level_i prod_{j<i} levels[j]. One map of K = prod(levels) codes, no losses. The code width is len(levels).

    Raises ValueError for levels below 3: with 2 the paper's shift atanh(0.5 / 0.4995) does not exist.
    """

    epsilon = 1e-3  # keeps the outermost levels within reach of tanh, as in the paper's code
    levels: Tensor
    basis: Tensor
    half_range: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, dim: int, levels: list[int]) -> None:
        if not levels or min(levels) < 3:
            raise ValueError(
                f"every FSQ level must be at least 3, got {levels}; the paper's 1,024 codes are [8, 5, 5, 5]"
            )
        super().__init__(dim, len(levels), [math.prod(levels)])
        counts = torch.tensor(levels)
        self.register_buffer("levels", counts, persistent=False)
        basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("basis", basis, persistent=False)
        half = (counts - 1) * (1 - self.epsilon) / 2
        offset = torch.where(counts % 2 == 0, 0.5, 0.0)  # even counts sit between the integers
        self.register_buffer("half_range", half, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", torch.atanh(offset / half), persistent=False)  # makes z = 0 a level's middle

    def quantize(self, z: Tensor) -> FlatQuantized:
        bounded = torch.tanh(z + self.shift) * self.half_range - self.offset  # (N, d)
        level = bounded.detach().round().long() + self.levels // 2  # (N, d), 0 .. levels - 1
        q = self.values(level)
        if self.training:
            q = q + (bounded - bounded.detach()) / (self.levels // 2)  # straight-through, value unchanged
        return FlatQuantized(q, (level * self.basis).sum(1, keepdim=True))

    def lookup(self, codes: Tensor) -> Tensor:
        return self.values(codes // self.basis % self.levels)  # (N, 1) -> (N, d)

    def values(self, level: Tensor) -> Tensor:
        """Levels (N, d), 0 .. levels - 1 -> coordinates in [-1, 1]."""
        half_width = self.levels // 2
        return (level - half_width).float() / half_width
