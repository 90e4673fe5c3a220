"""The space of vectors and codes: applied to both before lookup, losses and output."""

from __future__ import annotations

from torch import Tensor, nn

from vqvae.quantizers.base import unit


class Space(nn.Module):
    """forward: (N, d) -> (N, d)."""


class Raw(Space):
    """Vectors as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class UnitSphere(Space):
    """Vectors scaled to norm 1, so that euclidean lookup is by cosine and losses live in unit space.

    Source: ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627, section 3.2).
    """

    def forward(self, x: Tensor) -> Tensor:
        return unit(x)
