"""The encoder and decoder of neural audio codecs: strided convolutions with dilated residual units between them."""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor, nn

from vqvae.networks import blocks
from vqvae.networks.blocks import Block, conv, conv_transpose
from vqvae.ranges import Bound, Count, Ge, NotEmpty, PositiveInt, checked

Strides = Annotated[list[Annotated[int, Ge(2)]], NotEmpty]
Odd = Annotated[int, Ge(1), Bound("be odd", lambda value: value % 2 == 1)]


class Unit(Block):
    """x + [ELU, dilated convolution to width / 2, ELU, 1x1 back]. (B, width, *s) -> same."""

    def __init__(self, ndim: int, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        hidden = max(width // 2, 1)
        dilated = conv(ndim, width, hidden, kernel, dilation=dilation, padding=dilation * (kernel // 2))
        self.layers = nn.Sequential(nn.ELU(), dilated, nn.ELU(), conv(ndim, hidden, width, 1))

    def compute(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def units(ndim: int, width: int, kernel: int, dilations: list[int]) -> list[nn.Module]:
    """One residual unit for each dilation. (B, width, *s) -> same."""
    return [Unit(ndim, width, kernel, dilation) for dilation in dilations]


@checked
class Encoder(blocks.Encoder):
    """SEANet (arXiv 2009.02095), as in SoundStream (2107.03312) and EnCodec (2210.13438), without norms and not causal.

    (B, channels, *S) -> (B, dim, *S / stride), stride = the product of `strides`, in the order from the data to the codes.
    Before each stride come residual units, one for each of `dilations`; each stride, a convolution of twice its length, doubles
    the width, which begins as `width`. kernel: of the residual units, odd.
    """

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        width: PositiveInt,
        strides: Strides,
        dilations: list[Count],
        kernel: Odd,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.stride = math.prod(strides)
        layers: list[nn.Module] = [conv(ndim, channels, width, 7, padding=3)]
        for stride in strides:
            layers += [*units(ndim, width, kernel, dilations), nn.ELU()]
            layers.append(conv(ndim, width, 2 * width, 2 * stride, stride=stride, padding=(stride + 1) // 2))
            width *= 2
        self.layers = nn.Sequential(*layers, nn.ELU(), conv(ndim, width, dim, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@checked
class Decoder(blocks.Decoder):
    """The mirror of `Encoder`. (B, dim, *s) -> (B, channels, *s x stride); arguments as the encoder's."""

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        width: PositiveInt,
        strides: Strides,
        dilations: list[Count],
        kernel: Odd,
    ) -> None:
        super().__init__()
        self.channels = channels
        wide = width * 2 ** len(strides)
        layers: list[nn.Module] = [conv(ndim, dim, wide, 7, padding=3)]
        for stride in reversed(strides):
            padding = {"padding": (stride + 1) // 2, "output_padding": stride % 2}
            layers += [nn.ELU(), conv_transpose(ndim, wide, wide // 2, 2 * stride, stride=stride, **padding)]
            wide //= 2
            layers += units(ndim, wide, kernel, dilations)
        self.layers = nn.Sequential(*layers, nn.ELU(), conv(ndim, width, channels, 7, padding=3))

    def forward(self, z_q: Tensor) -> Tensor:
        return self.layers(z_q)
