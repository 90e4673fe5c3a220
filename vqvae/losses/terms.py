"""Loss terms that compare a reconstruction with the data value by value."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.ranges import NonNegativeFloat, PositiveFloat, checked


@checked
class Term(nn.Module, ABC):
    """Base of loss terms.

    Args:
        weight: factor in the total loss.
        variance: that of the training data in [-1, 1], over all items, channels and positions; every term is told it.
    """

    def __init__(self, weight: NonNegativeFloat, variance: float) -> None:
        super().__init__()
        self.weight, self.variance = weight, variance

    @abstractmethod
    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """x_hat and x (B, C, *S), float32, x in [-1, 1] -> scalar before the weight: a mean over items.

        Autocast is as in training: a term that needs convolutions or matrix products in float32 switches it off.
        """

    def check(self, channels: int, size: tuple[int, ...]) -> None:
        """Raises UserError if the term cannot compare items of C channels and dims *S."""


@checked
class Distance(Term):
    """Base of distances between values, means over all elements, so that they do not depend on the size of the data.

    Args:
        over_variance: divide by the variance, so that 1 is what the mean image scores in `mse`. (The variance of data in
            [0, 1] is 4 times smaller: mixing the two has been printed by several projects.)
    """

    def __init__(self, weight: NonNegativeFloat, over_variance: bool, variance: float) -> None:
        super().__init__(weight, variance)
        self.divisor = variance if over_variance else 1.0


class MSE(Distance):
    """Mean squared error over all elements."""

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return F.mse_loss(x_hat, x) / self.divisor


class L1(Distance):
    """Mean absolute error over all elements."""

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return F.l1_loss(x_hat, x) / self.divisor


@checked
class Huber(Distance):
    """Half the squared error of elements that are off by at most `delta`, and linear beyond: outliers count less."""

    def __init__(self, weight: NonNegativeFloat, over_variance: bool, delta: PositiveFloat, variance: float) -> None:
        super().__init__(weight, over_variance, variance)
        self.delta = delta

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return F.huber_loss(x_hat, x, delta=self.delta) / self.divisor


class Gradient(Term):
    """Mean absolute difference of neighboring values' differences, along each data dim: edges that are blurred or missing."""

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        error = x_hat - x
        dims = [dim for dim in range(2, x.ndim) if x.shape[dim] > 1]
        return sum((error.diff(dim=dim).abs().mean() for dim in dims), x.new_zeros(())) / max(len(dims), 1)
