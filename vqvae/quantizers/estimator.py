"""How the gradient passes the lookup."""

from __future__ import annotations

from torch import Tensor, nn


class Estimator(nn.Module):
    """forward: z (N, d), attached q (N, d) -> the quantizer's training output (N, d)."""


class StraightThrough(Estimator):
    """Value q, gradient of z copied (Bengio et al. 2013, arXiv 1308.3432).

    Written q + (z - z) instead of the usual z + (q - z), which rounds: the output is the code itself, bit for bit.
    """

    def forward(self, z: Tensor, q: Tensor) -> Tensor:
        return q.detach() + (z - z.detach())
