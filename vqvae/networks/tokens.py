"""Images as a fixed number of tokens without places."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.networks import blocks
from vqvae.networks.attention import Transformer
from vqvae.networks.blocks import DepthToSpace, SpaceToDepth, conv
from vqvae.networks.vit import Patch
from vqvae.ranges import NotEmpty, PositiveInt, Share, checked

START_STD = 0.02  # of learned tokens and positions, as in vision transformers
Sides = PositiveInt | Annotated[list[PositiveInt], NotEmpty]


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(START_STD * torch.randn(*shape))


@checked
class Encoder(blocks.Encoder):
    """Patches and learned queries through one transformer, of which the queries are kept (TiTok, arXiv 2406.07550).

    (B, channels, *S) -> (B, dim, tokens), for data of any size that the patch divides.
    Raises UserError for sizes that make no network.
    """

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        patch: Patch,
        tokens: PositiveInt,
        transformer: Transformer,
    ) -> None:
        super().__init__()
        self.channels = channels
        transformer.check_dims(ndim)
        width = transformer.width
        self.stride, self.tokens = patch, tokens
        self.embed = nn.Sequential(SpaceToDepth(patch), conv(ndim, channels * patch**ndim, width, 1))
        self.queries = learned(tokens, width)
        self.transformer = transformer
        self.out = nn.Linear(width, dim)

    def latent_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Dims of the latents: the number of tokens, whatever the data dims *S."""
        return (self.tokens,)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x)  # (B, width, *s)
        grid = tuple(patches.shape[2:])
        queries = self.queries.to(patches.dtype).expand(len(x), -1, -1)
        mixed = self.transformer(torch.cat([patches.flatten(2).transpose(1, 2), queries], 1), grid)
        return self.out(mixed[:, -self.tokens :]).transpose(1, 2)  # (B, dim, tokens)


@checked
class Decoder(blocks.Decoder):
    """Tokens and a learned vector for each patch through one transformer, of which the patches are kept.

    (B, dim, n) -> (B, channels, *size), n up to `tokens`: tokens that are missing at the end are replaced by a learned one.

    size: data dims, or the side of all. nested_dropout: share of training items of which only a random number of first tokens
    is kept, so that the first ones come to say the most (arXiv 1402.0915) and any of them make an image.
    Raises UserError for sizes that make no network.
    """

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        size: Sides,
        patch: Patch,
        tokens: PositiveInt,
        transformer: Transformer,
        nested_dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        transformer.check_dims(ndim)
        width = transformer.width
        self.channels, self.tokens, self.nested_dropout = channels, tokens, nested_dropout
        sides = [size] * ndim if isinstance(size, int) else size
        if len(sides) != ndim or any(side % patch for side in sides):
            raise UserError(f"size={size} must be {ndim} multiples of patch={patch}, or one for all")
        self.grid = tuple(side // patch for side in sides)
        self.patches, self.places = learned(math.prod(self.grid), width), learned(tokens, width)
        self.missing = learned(width)
        self.embed = nn.Linear(dim, width)
        self.transformer = transformer
        self.out = nn.Sequential(conv(ndim, width, channels * patch**ndim, 1), DepthToSpace(patch))

    def forward(self, z_q: Tensor) -> Tensor:
        given = z_q.shape[2]
        tokens = self.embed(z_q.transpose(1, 2))  # (B, n, width)
        tokens = F.pad(tokens, (0, 0, 0, self.tokens - given))  # (B, tokens, width)
        kept = torch.arange(self.tokens, device=z_q.device) < given
        if self.training and self.nested_dropout:
            kept = kept & self._draw_kept(len(z_q), z_q.device)  # (B, tokens)
        tokens = torch.where(kept[..., None], tokens, self.missing.to(tokens.dtype)) + self.places.to(tokens.dtype)
        patches = self.patches.to(tokens.dtype).expand(len(z_q), -1, -1)
        mixed = self.transformer(torch.cat([patches, tokens], 1), self.grid)[:, : -self.tokens]  # (B, N, width)
        return self.out(mixed.transpose(1, 2).unflatten(2, self.grid))  # (B, channels, *size)

    def _draw_kept(self, rows: int, device: torch.device) -> Tensor:
        """bool (rows, tokens): the first tokens that a training item keeps, at least one."""
        chance, share = distributed.draw_of_rank(lambda n: torch.rand(n, 2, device=device), rows).unbind(1)
        first = torch.where(chance < self.nested_dropout, 1 + (share * self.tokens).floor(), self.tokens)
        return torch.arange(self.tokens, device=device) < first[:, None]
