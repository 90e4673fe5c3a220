"""Residual encoder and decoder with GroupNorm, SiLU and attention: the VQGAN family."""

from __future__ import annotations

from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.networks import blocks
from vqvae.networks.blocks import NormResidual, SelfAttention, Upsample, Widths, conv, group_norm
from vqvae.ranges import Count, LessThanOne, PositiveInt, checked


def residual_stage(
    ndim: int, width_in: int, width: int, depth: int, attention: bool, dropout: float
) -> list[nn.Module]:
    """Residual blocks at one resolution, each followed by attention if asked for. (B, width_in, *s) -> (B, width, *s)."""
    layers: list[nn.Module] = []
    for block in range(depth):
        layers.append(NormResidual(ndim, width_in if block == 0 else width, width, dropout))
        layers += [SelfAttention(ndim, width)] if attention else []
    return layers


@checked
class Encoder(blocks.Encoder):
    """One stage of residual blocks per entry of `widths`, halving the grid between stages (arXiv 2012.09841).

    (B, channels, *S) -> (B, dim, *S / stride), stride = 2^(len(widths) - 1). `attention_strides` lists the down-sampling
    factors, powers of 2 up to the stride, at which blocks are followed by attention. `dropout`: share of the values that
    blocks drop in training.
    """

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        widths: Widths,
        depth: Count,
        attention_strides: list[int],
        dropout: LessThanOne = 0.0,
    ) -> None:
        super().__init__()
        self.channels = channels
        check_attention_strides(widths, attention_strides)
        self.stride = 2 ** (len(widths) - 1)
        layers: list[nn.Module] = [conv(ndim, channels, widths[0], 3, padding=1)]
        for level, (width_in, width) in enumerate(zip([widths[0], *widths], widths)):
            if level:
                layers.append(conv(ndim, width_in, width_in, 4, stride=2, padding=1))
            layers += residual_stage(ndim, width_in, width, depth, 2**level in attention_strides, dropout)
        self.layers = nn.Sequential(*layers, group_norm(widths[-1]), nn.SiLU(), conv(ndim, widths[-1], dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@checked
class Decoder(blocks.Decoder):
    """The mirror of `Encoder`. (B, dim, *s) -> (B, channels, *s x stride); `widths` in the encoder's order."""

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        widths: Widths,
        depth: Count,
        attention_strides: list[int],
        dropout: LessThanOne = 0.0,
    ) -> None:
        super().__init__()
        check_attention_strides(widths, attention_strides)
        self.channels = channels
        layers: list[nn.Module] = [conv(ndim, dim, widths[-1], 3, padding=1)]
        width_in = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            layers += residual_stage(ndim, width_in, width, depth, 2**level in attention_strides, dropout)
            if level:
                layers.append(Upsample(ndim, width))
            width_in = width
        self.layers = nn.Sequential(
            *layers, group_norm(widths[0]), nn.SiLU(), conv(ndim, widths[0], channels, 3, padding=1)
        )

    def forward(self, z_q: Tensor) -> Tensor:
        return self.layers(z_q)


def check_attention_strides(widths: list[int], attention_strides: list[int]) -> None:
    """Raises UserError for a stride that no level has."""
    strides = [2**level for level in range(len(widths))]
    for chosen in attention_strides:
        if chosen not in strides:
            raise UserError(f"attention_strides may hold {strides} with {len(widths)} widths, got {chosen}")
