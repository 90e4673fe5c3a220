"""Which code is the nearest, and under which metric."""

from __future__ import annotations

from torch import Tensor, nn

from vqvae.quantizers.nearest import nearest_code


class Lookup(nn.Module):
    """forward: z (N, d), codes (K, d) -> indices (N,) int64; called without gradient."""


class Euclidean(Lookup):
    """The code at the smallest euclidean distance; ties go to the lowest index."""

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(z.detach(), codes.detach())
