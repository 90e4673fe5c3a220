"""Reconstruction losses: distances between reconstruction and data."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.ranges import NonNegativeFloat, checked


@checked
class ReconstructionLoss(nn.Module, ABC):
    """forward: decoder output, x (B, C, *S) in [-1, 1] -> scalar before the weight, float32.

    Args:
        weight: factor in the total loss.
        variance: that of the training data in [-1, 1], over all images, channels and positions; every loss is told it.
    """

    name: str

    def __init__(self, weight: NonNegativeFloat, variance: float) -> None:
        super().__init__()
        if variance <= 0:
            raise UserError(f"the training images are all one color (variance {variance}): nothing to learn")
        self.weight = weight

    @abstractmethod
    def value(self, output: Tensor, x: Tensor) -> Tensor:
        """Float32 output, x -> scalar: a mean over elements, so that it does not depend on the size of the data."""

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.value(output.float(), x)

    def decoder_channels(self, channels: int) -> int:
        """Number of decoder channels for data of C channels."""
        return channels

    def to_image(self, output: Tensor) -> Tensor:
        """Decoder output -> data (B, C, *S) in [-1, 1]."""
        return output.float().clamp(-1, 1)

    def figures(self, mean: float) -> dict[str, float]:
        """Further figures from the mean of this loss over a set, by registered names; none by default."""
        return {}


@checked
class Distance(ReconstructionLoss):
    """Base of losses in the units of x, whose decoder puts out x_hat itself.

    Args:
        over_variance: divide by the variance, so that 1 is what the mean image scores. (The variance of data in [0, 1]
            is 4 times smaller: mixing the two has been printed by several projects.)
    """

    def __init__(self, weight: NonNegativeFloat, over_variance: bool, variance: float) -> None:
        super().__init__(weight, variance)
        self.divisor = variance if over_variance else 1.0


class MSE(Distance):
    """Mean squared error over all elements."""

    name = "mse"

    def value(self, output: Tensor, x: Tensor) -> Tensor:
        return F.mse_loss(output, x) / self.divisor


class L1(Distance):
    """Mean absolute error over all elements."""

    name = "l1"

    def value(self, output: Tensor, x: Tensor) -> Tensor:
        return F.l1_loss(output, x) / self.divisor
