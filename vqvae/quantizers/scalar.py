"""Quantizers that round each coordinate by itself: no codebook to learn, none to collapse."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.networks.marks import mark
from vqvae.quantizers.base import FlatQuantized, Loss, Quantizer
from vqvae.quantizers.regularizers import mean_square_error
from vqvae.ranges import Ge, NonNegativeFloat, NotEmpty, PositiveInt, Share, checked


@checked
class ScalarQuantizer(Quantizer):
    """Base: coordinate i takes one of levels[i] values; one map of K = prod(levels) codes, d = len(levels).

    The index of a vector is sum_i level_i prod_{j<i} levels[j].
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, dim: PositiveInt, levels: Annotated[list[Annotated[int, Ge(1)]], NotEmpty]) -> None:
        super().__init__(dim, len(levels), [math.prod(levels)])
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("basis", basis, persistent=False)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.values(codes // self.basis % self.levels)  # (N, 1) -> (N, d)

    def factors(self) -> list[list[int]]:
        return [[levels for levels in self.levels.tolist() if levels > 1] or [1]]

    def index(self, level: Tensor) -> Tensor:
        """Levels (N, d), 0 .. levels - 1 -> codes (N, 1)."""
        return (level * self.basis).sum(1, keepdim=True)

    def to_level(self, position: Tensor) -> Tensor:
        """Whole numbers (N, d) as floats -> levels (N, d) int64; NaN, which a skipped step may hold, gives some level."""
        return position.nan_to_num(0).long().clamp_min(0).minimum(self.levels - 1)

    def values(self, level: Tensor) -> Tensor:
        """Levels (N, d) -> coordinates (N, d)."""
        raise NotImplementedError


@checked
class FSQ(ScalarQuantizer):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505, section 3 and appendix A.1).

    Coordinate i is bounded by tanh and rounded to one of levels[i] values in [-1, 1]. No losses.

    Raises UserError for levels below 3: with 2 the paper's shift atanh(0.5 / 0.4995) does not exist.

    >>> quantizer = FSQ(dim=64, levels=[8, 5, 5, 5])
    >>> out = quantizer(torch.randn(2, 64, 4, 4))
    >>> out.z_q.shape, out.codes[0].shape, quantizer.codebook_sizes
    (torch.Size([2, 64, 4, 4]), torch.Size([2, 4, 4]), [1000])
    """

    epsilon = 1e-3  # keeps the outermost levels within reach of tanh, as in the paper's code
    half_range: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, dim: PositiveInt, levels: Annotated[list[Annotated[int, Ge(3)]], NotEmpty]) -> None:
        super().__init__(dim, levels)
        counts = self.levels
        half = (counts - 1) * (1 - self.epsilon) / 2
        offset = torch.where(counts % 2 == 0, 0.5, 0.0)  # even counts sit between the integers
        self.register_buffer("half_range", half, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", torch.atanh(offset / half), persistent=False)  # makes z = 0 a level's middle

    def bound(self, z: Tensor) -> Tensor:
        """(N, d) -> (N, d), whose nearest integers are the levels, counted from -(levels // 2)."""
        return torch.tanh(z + self.shift) * self.half_range - self.offset

    def quantize(self, z: Tensor) -> FlatQuantized:
        level = self.to_level(self.bound(z.detach()).round() + self.levels // 2)  # (N, d)
        return FlatQuantized(self.values(level), self.index(level))

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return super().estimate(self.bound(z) / (self.levels // 2), q)  # straight-through the rounding alone

    def values(self, level: Tensor) -> Tensor:
        half_width = self.levels // 2
        return (level - half_width).float() / half_width


@checked
class SymmetricFSQ(ScalarQuantizer):
    """FSQ with levels at -1, .., 1 in equal steps, even counts too (Parker et al. 2024, arXiv 2411.19842, section 3.2).

    In training the share `noise` of the vectors gets uniform noise of half a step's width to either side instead of rounding;
    their code is the rounded one. Raises UserError for levels below 2.

    >>> SymmetricFSQ(dim=8, levels=[2, 2, 4], noise=0.5).codebook_sizes
    [16]
    """

    def __init__(
        self, dim: PositiveInt, levels: Annotated[list[Annotated[int, Ge(2)]], NotEmpty], noise: Share
    ) -> None:
        super().__init__(dim, levels)
        self.noise = noise

    def quantize(self, z: Tensor) -> FlatQuantized:
        level = self.to_level(((torch.tanh(z.detach()) + 1) * (self.levels - 1) / 2).round())  # (N, d)
        return FlatQuantized(self.values(level), self.index(level))

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        bounded = torch.tanh(z)
        out = super().estimate(bounded, q)
        if self.noise == 0:
            return out
        width = self.code_dim + 1  # one more decides whether the vector gets any
        uniform = distributed.draw_of_rank(lambda rows: torch.rand(rows, width, device=z.device), len(z))  # (N, d + 1)
        noise = (2 * uniform[:, 1:] - 1) / (self.levels - 1)
        return torch.where(uniform[:, :1] < self.noise, bounded + noise, out)

    def values(self, level: Tensor) -> Tensor:
        return 2 * level.float() / (self.levels - 1) - 1


@checked
class LatentQuantizer(ScalarQuantizer):
    """Each coordinate takes the nearest of its own learned values (Hsu et al. 2023, arXiv 2305.18378, section 3).

    Losses, means over elements: `quantization` (the values move) and `commitment` (the encoder does). The paper adds a
    strong weight decay on both networks, which is optimizer.weight_decay here. Values start evenly over [-0.5, 0.5].

    >>> quantizer = LatentQuantizer(8, levels=[8, 8], quantization_weight=0.1, commitment_weight=0.1)
    >>> sorted(quantizer(torch.randn(2, 8, 4)).losses)
    ['commitment', 'quantization']
    """

    def __init__(
        self,
        dim: PositiveInt,
        levels: Annotated[list[Annotated[int, Ge(2)]], NotEmpty],
        quantization_weight: NonNegativeFloat,
        commitment_weight: NonNegativeFloat,
    ) -> None:
        super().__init__(dim, levels)
        self.quantization_weight = quantization_weight
        self.commitment_weight = commitment_weight
        rows = [torch.linspace(-0.5, 0.5, n) for n in levels]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.inf)  # (d, most levels)
        self.codebook = nn.Parameter(torch.where(padded.isinf(), 0, padded))
        mark(self, "codebook", "no_weight_decay")
        self.register_buffer("missing", padded.isinf(), persistent=False)

    def quantize(self, z: Tensor) -> FlatQuantized:
        distance = (z.detach()[:, :, None] - self.codebook).abs()  # (N, d, most levels)
        level = distance.masked_fill(self.get_buffer("missing"), torch.inf).argmin(2)  # (N, d)
        q = self.values(level)
        losses = {
            "quantization": Loss(mean_square_error(q, z.detach()), self.quantization_weight),
            "commitment": Loss(mean_square_error(z, q.detach()), self.commitment_weight),
        }
        return FlatQuantized(q, self.index(level), losses)

    def values(self, level: Tensor) -> Tensor:
        return self.codebook.gather(1, level.t()).t()  # (N, d)
