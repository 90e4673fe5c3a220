"""Vision transformers as encoder and decoder."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from vqvae.networks import blocks
from vqvae.networks.attention import Transformer
from vqvae.networks.blocks import DepthToSpace, SpaceToDepth, conv
from vqvae.ranges import Ge, Le, PositiveInt, checked

Patch = Annotated[int, Ge(1), Le(1024)]


@checked
class Encoder(blocks.Encoder):
    """Patches, a transformer with rotary positions, 1x1 to `dim` (arXiv 2010.11929; as a tokenizer: arXiv 2110.04627).

    (B, channels, *S) -> (B, dim, *S / patch), of any size that the patch divides. Raises UserError for sizes that make no
    network.
    """

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        patch: Patch,
        transformer: Transformer,
    ) -> None:
        super().__init__()
        self.channels = channels
        transformer.check_dims(ndim)
        width = transformer.width
        self.stride = patch
        self.embed = nn.Sequential(SpaceToDepth(patch), conv(ndim, channels * patch**ndim, width, 1))
        self.transformer = transformer
        self.out = conv(ndim, width, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(over_positions(self.transformer, self.embed(x)))


@checked
class Decoder(blocks.Decoder):
    """The mirror of `Encoder`. (B, dim, *s) -> (B, channels, *s x patch)."""

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        patch: Patch,
        transformer: Transformer,
    ) -> None:
        super().__init__()
        transformer.check_dims(ndim)
        width = transformer.width
        self.channels = channels
        self.embed = conv(ndim, dim, width, 1)
        self.transformer = transformer
        self.out = nn.Sequential(conv(ndim, width, channels * patch**ndim, 1), DepthToSpace(patch))

    def forward(self, z_q: Tensor) -> Tensor:
        return self.out(over_positions(self.transformer, self.embed(z_q)))


def over_positions(transformer: Transformer, x: Tensor) -> Tensor:
    """A transformer over the positions of a map, (B, width, *s) -> same."""
    grid = tuple(x.shape[2:])
    mixed = transformer(x.flatten(2).transpose(1, 2), grid)  # (B, N, width)
    return mixed.transpose(1, 2).unflatten(2, grid)  # (B, width, *s)
