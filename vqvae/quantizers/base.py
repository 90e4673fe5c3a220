"""The contract of every quantizer, and the path from grids to flat vectors and back that all of them share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

MAX_CODEBOOK_SIZE = 2**18


class Loss(NamedTuple):
    """A scalar before its weight, and the weight; both the plain and the weighted value are logged."""

    value: Tensor
    weight: float


@dataclass
class Quantized:
    """What a quantizer returns. z_q (B, D, *s) float32; codes: M maps (B, *s_m) int64; losses and stats by name."""

    z_q: Tensor
    codes: list[Tensor]
    losses: dict[str, Loss] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class FlatQuantized:
    """The same on flat vectors: q (N, d), codes (N, M)."""

    q: Tensor
    codes: Tensor
    losses: dict[str, Loss] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module):
    """Maps latents (B, D, *s) to codes and back. A variant writes `quantize` and `lookup` on flat vectors.

    Args:
        dim: latent width D at the interface.
        code_dim: width d inside; where it differs from D, linear layers project in and out (factorised codes).
        codebook_sizes: K of each code map, coarse to fine.

    `forward` never moves a codebook: it adds to accumulators, and `after_step` applies them. In eval, `z_q` equals
    `decode(codes)` bit for bit. `init_vectors` is how many latent vectors `begin_run` wants to see (0: none).
    Raises ValueError for sizes below 1 or above 2^18 (split larger vocabularies into several maps).
    """

    init_vectors: int = 0

    def __init__(self, dim: int, code_dim: int, codebook_sizes: list[int]) -> None:
        super().__init__()
        if dim < 1 or code_dim < 1:
            raise ValueError(f"latent width and code width must be at least 1, got dim={dim}, code_dim={code_dim}")
        for size in codebook_sizes:
            if not 1 <= size <= MAX_CODEBOOK_SIZE:
                raise ValueError(
                    f"a codebook has 1 to {MAX_CODEBOOK_SIZE} codes, got {size}; split it into several maps"
                )
        self.dim, self.code_dim, self.codebook_sizes = dim, code_dim, list(codebook_sizes)
        same = dim == code_dim
        self.project_in: nn.Module = nn.Identity() if same else nn.Linear(dim, code_dim)
        self.project_out: nn.Module = nn.Identity() if same else nn.Linear(code_dim, dim)

    @abstractmethod
    def quantize(self, z: Tensor) -> FlatQuantized:
        """z (N, d) float32 -> q (N, d), codes (N, M), losses, stats."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """codes (N, M) -> q (N, d), the same values as `quantize` gives in eval."""

    def forward(self, z_e: Tensor) -> Quantized:
        """z_e (B, D, *s), any float dtype -> Quantized, computed in float32 whatever the autocast."""
        batch, grid = z_e.shape[0], z_e.shape[2:]
        with torch.autocast(z_e.device.type, enabled=False):
            flat = self.quantize(self.flatten(z_e))
            z_q = self.unflatten(flat.q, batch, grid)
        maps = [m.view(batch, *grid) for m in flat.codes.unbind(1)]  # M x (B, *s)
        return Quantized(z_q, maps, flat.losses, flat.stats)

    def decode(self, codes: list[Tensor]) -> Tensor:
        """codes: M maps (B, *s) -> z_q (B, D, *s)."""
        batch, grid = codes[0].shape[0], codes[0].shape[1:]
        flat = torch.stack([m.reshape(-1) for m in codes], dim=1)  # (N, M)
        with torch.autocast(codes[0].device.type, enabled=False):
            return self.unflatten(self.lookup(flat), batch, grid)

    def flatten(self, z_e: Tensor) -> Tensor:
        """(B, D, *s) -> (N, d) float32; no copy where the layout is channels_last already."""
        return self.project_in(z_e.float().movedim(1, -1).reshape(-1, self.dim))  # (N, d)

    def unflatten(self, q: Tensor, batch: int, grid: torch.Size) -> Tensor:
        """(N, d) -> (B, D, *s), channels_last in memory."""
        return self.project_out(q).view(batch, *grid, self.dim).movedim(-1, 1)  # (B, D, *s)

    def code_shapes(self, grid: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Latent dims *s -> the dims of each code map."""
        return [tuple(grid) for _ in self.codebook_sizes]

    def bits_per_vector(self) -> float:
        """log2 of the number of different outputs of one vector."""
        return sum(math.log2(size) for size in self.codebook_sizes)

    def begin_run(self, z_e: Tensor) -> None:
        """Starts codes from latents (B, D, *s) of the training data, gathered over ranks; once, before step 0."""

    def begin_step(self, step: int, steps: int) -> None:
        """Sets schedules for step `step` of `steps` and empties the accumulators."""

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        """Applies what the step's forwards accumulated. `applied`: 0-d bool, False leaves all as it was.

        Returns {parameter: (K,) bool mask of rows that were replaced}; the trainer resets their optimizer state.
        """
        return {}
