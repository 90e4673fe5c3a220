"""What a discriminator and a decoder are trained for, in the discriminator's logits: above 0 for data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.ranges import NonNegativeFloat, PositiveInt, checked


class AdversarialLoss(nn.Module, ABC):
    """A pair of losses, of logits of any shape: means over all of them."""

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of data and of reconstructions -> scalar that falls as they are told apart."""

    @abstractmethod
    def decoder(self, fake: Tensor) -> Tensor:
        """Logits of reconstructions -> scalar that falls as they are taken for data."""


class Hinge(AdversarialLoss):
    """Logits of data count below 1, those of reconstructions above -1 (arXiv 1705.02894); the decoder raises the latter."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def decoder(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class NonSaturating(AdversarialLoss):
    """Cross-entropy, where the decoder maximizes log D instead of minimizing log (1 - D) (arXiv 1406.2661, section 3)."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def decoder(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


@checked
class DiscriminatorTerm(nn.Module, ABC):
    """Base of further losses of a discriminator, which keep it from winning.

    Args:
        weight: factor in the discriminator's loss.
        every: it is computed in one of so many steps, and counts so many times there.
    """

    def __init__(self, weight: NonNegativeFloat, every: PositiveInt = 1) -> None:
        super().__init__()
        self.weight, self.every = weight, every

    @abstractmethod
    def value(
        self, judge: Callable[[Tensor], Tensor], x: Tensor, real: Tensor, fake: Tensor, means: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Scalar before the weight: a mean over items.

        judge: the discriminator. x (B, C, *S): data. real, fake: the logits of data and reconstructions. means: moving averages
        of their means over the steps before.
        """


class R1(DiscriminatorTerm):
    """Half the squared length of the gradient of an item's mean logit at the data (arXiv 1801.04406). In float32."""

    def value(
        self, judge: Callable[[Tensor], Tensor], x: Tensor, real: Tensor, fake: Tensor, means: tuple[Tensor, Tensor]
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(judge(x).flatten(1).mean(1).sum(), x, create_graph=True)  # (B, C, *S)
            return slope.square().flatten(1).sum(1).mean() / 2


class LeCAM(DiscriminatorTerm):
    """Squared distance of the logits of data to the mean of those of reconstructions, and the other way (arXiv 2104.03310)."""

    def value(
        self, judge: Callable[[Tensor], Tensor], x: Tensor, real: Tensor, fake: Tensor, means: tuple[Tensor, Tensor]
    ) -> Tensor:
        return (real - means[1]).square().mean() + (fake - means[0]).square().mean()
