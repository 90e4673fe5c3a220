"""An encoder and decoder that do all their work at the resolution of the codes."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from vqvae.networks import blocks
from vqvae.networks.blocks import DepthToSpace, ReluResidual, SpaceToDepth, conv
from vqvae.ranges import Count, Ge, Le, PositiveInt, checked


def residual_stack(ndim: int, width: int, hidden: int, depth: int) -> list[nn.Module]:
    """`depth` blocks of two 3x3 convolutions. (B, width, *s) -> same."""
    return [ReluResidual(ndim, width, hidden, last_kernel=3) for _ in range(depth)]


@checked
class Encoder(blocks.Encoder):
    """Patches to channels, a 3x3 convolution, residual blocks, 1x1 to `dim`. (B, channels, *S) -> (B, dim, *S / patch).

    At full resolution a convolution of few channels costs memory traffic, not arithmetic: this pair has none, which on CPUs
    buys several times the capacity at the speed of the strided network of conv.py. Patches as in vision transformers
    (arXiv 2010.11929) and sub-pixel convolutions (arXiv 1609.05158). Raises UserError for sizes that make no network.
    """

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        patch: Annotated[int, Ge(1), Le(1024)],
        width: PositiveInt,
        hidden: PositiveInt,
        depth: Count,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.stride = patch
        self.layers = nn.Sequential(
            SpaceToDepth(patch),
            conv(ndim, channels * patch**ndim, width, 3, padding=1),
            *residual_stack(ndim, width, hidden, depth),
            nn.ReLU(inplace=True),
            conv(ndim, width, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@checked
class Decoder(blocks.Decoder):
    """The mirror of `Encoder`. (B, dim, *s) -> (B, channels, *s x patch)."""

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        patch: Annotated[int, Ge(1), Le(1024)],
        width: PositiveInt,
        hidden: PositiveInt,
        depth: Count,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(
            conv(ndim, dim, width, 3, padding=1),
            *residual_stack(ndim, width, hidden, depth),
            nn.ReLU(inplace=True),
            conv(ndim, width, channels * patch**ndim, 3, padding=1),
            DepthToSpace(patch),
        )

    def forward(self, z_q: Tensor) -> Tensor:
        return self.layers(z_q)
