"""The VQ-VAE paper's convolutional encoder and decoder."""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.networks import blocks
from vqvae.networks.blocks import ReluResidual, Widths, conv, conv_transpose
from vqvae.ranges import Bound, CountOrZero, PositiveInt, checked

PowerOfTwo = Annotated[PositiveInt, Bound("be a power of 2", lambda value: value & (value - 1) == 0)]
Strides = list[PowerOfTwo] | None


def steps(ndim: int, layers: int, strides: Strides) -> list[tuple[int, ...]]:
    """Stride of each of the layers along each dim, 2 or 1: the first ones halve a dim until its whole stride is reached.

    strides: of the dims, the last `ndim` of which count; None: 2^layers for all. Raises UserError for what layers cannot make.
    """
    if strides is None:
        return [(2,) * ndim] * layers
    own = strides[-ndim:]
    if len(own) != ndim or max(own) != 2**layers:
        raise UserError(
            f"strides={strides} must have one entry for each of ndim={ndim} dims, and the largest must be {2**layers}, "
            f"because there are {layers} widths"
        )
    return [tuple(2 if 2**layer < stride else 1 for stride in own) for layer in range(layers)]


def kernel(step: tuple[int, ...]) -> tuple[int, ...]:
    """Length of a kernel along each dim: 4 where the dim is halved, else 3."""
    return tuple(4 if one == 2 else 3 for one in step)


@checked
class Encoder(blocks.Encoder):
    """Strided 4x4 convolutions, one per entry of `widths`, then residual blocks (arXiv 1711.00937, section 4.1).

    (B, channels, *S) -> (B, dim, *S / stride), stride = 2^len(widths). widths [256, 256] with residual_width 256 is the
    paper's network; [64, 128] with 32 is Sonnet's published CIFAR-10 example, whose 3x3 convolution after the strided
    ones and 1x1 convolution to `dim` are kept in both. strides: powers of 2, one for each dim, such as [2, 4, 4] (the
    last ones count where the data has fewer dims); None: the same for all.
    """

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        widths: Widths,
        residual_width: PositiveInt,
        residual_blocks: CountOrZero,
        strides: Strides = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        each = steps(ndim, len(widths), strides)
        whole = tuple(math.prod(halvings) for halvings in zip(*each))  # along each dim
        self.stride = whole if len(set(whole)) > 1 else whole[0]
        layers: list[nn.Module] = []
        for width_in, width, step in zip([channels, *widths], widths, each):
            layers += [conv(ndim, width_in, width, kernel(step), stride=step, padding=1), nn.ReLU(inplace=True)]
        layers += [conv(ndim, widths[-1], widths[-1], 3, padding=1)]
        layers += [ReluResidual(ndim, widths[-1], residual_width) for _ in range(residual_blocks)]
        self.layers = nn.Sequential(*layers, nn.ReLU(inplace=True), conv(ndim, widths[-1], dim, 1))

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
        residual_width: PositiveInt,
        residual_blocks: CountOrZero,
        strides: Strides = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        widths = widths[::-1]
        layers: list[nn.Module] = [conv(ndim, dim, widths[0], 3, padding=1)]
        layers += [ReluResidual(ndim, widths[0], residual_width) for _ in range(residual_blocks)]
        for width_in, width, step in zip(widths, [*widths[1:], channels], steps(ndim, len(widths), strides)[::-1]):
            layers += [
                nn.ReLU(inplace=True),
                conv_transpose(ndim, width_in, width, kernel(step), stride=step, padding=1),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z_q: Tensor) -> Tensor:
        return self.layers(z_q)
