"""The VQ-VAE paper's convolutional encoder and decoder."""

from __future__ import annotations

from torch import Tensor, nn

from vqvae.networks import blocks
from vqvae.networks.blocks import ReluResidual, Widths, conv, conv_transpose
from vqvae.ranges import CountOrZero, PositiveInt, checked


@checked
class Encoder(blocks.Encoder):
    """Strided 4x4 convolutions, one per entry of `widths`, then residual blocks (arXiv 1711.00937, section 4.1).

    (B, channels, *S) -> (B, dim, *S / stride), stride = 2^len(widths). widths [256, 256] with residual_width 256 is the
    paper's network; [64, 128] with 32 is Sonnet's published CIFAR-10 example, whose 3x3 convolution after the strided
    ones and 1x1 convolution to `dim` are kept in both.
    """

    def __init__(
        self,
        ndim: int,
        channels: PositiveInt,
        dim: PositiveInt,
        widths: Widths,
        residual_width: PositiveInt,
        residual_blocks: CountOrZero,
    ) -> None:
        super().__init__()
        self.stride = 2 ** len(widths)
        layers: list[nn.Module] = []
        for width_in, width in zip([channels, *widths], widths):
            layers += [conv(ndim, width_in, width, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
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
    ) -> None:
        super().__init__()
        self.channels = channels
        widths = widths[::-1]
        layers: list[nn.Module] = [conv(ndim, dim, widths[0], 3, padding=1)]
        layers += [ReluResidual(ndim, widths[0], residual_width) for _ in range(residual_blocks)]
        for width_in, width in zip(widths, [*widths[1:], channels]):
            layers += [nn.ReLU(inplace=True), conv_transpose(ndim, width_in, width, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z_q: Tensor) -> Tensor:
        return self.layers(z_q)
