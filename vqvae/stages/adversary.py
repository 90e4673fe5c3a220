"""An adversary: a discriminator with what it, and the decoder against it, are trained for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.losses.adversarial import AdversarialLoss, DiscriminatorTerm
from vqvae.losses.augmentation import Augmentation, augmented
from vqvae.metrics.registry import figure
from vqvae.networks.discriminator import Discriminator
from vqvae.ranges import checked

MEMORY = 0.99  # of the moving averages: about 100 steps
WON, DEAD = 0.99, 1e-4  # accuracy above which it has won, variance of the logits below which it is dead
SCALE = 2.0**12  # of losses whose gradients are compared: in float16 they would be 0
DELTA = 1e-6  # added to a gradient's norm before it divides another (arXiv 2012.09841)

NETWORK = "adversary"  # name of the network in the stage and in its figures
BEFORE = "; 0 before adversary.start_step"
LOSS = figure(
    "autoencoder/adversary_loss", f"loss of the discriminator{BEFORE}", panel="adversary", report=False, dashboard=True
)
TERM = "autoencoder/adversary_term_{}"
figure(TERM.format("{term}"), f"further loss of the discriminator before its weight{BEFORE}", report=False)
REAL = figure("autoencoder/adversary_logits_real", f"mean logit of data{BEFORE}", panel="logits", report=False)
FAKE = figure(
    "autoencoder/adversary_logits_fake", f"mean logit of reconstructions{BEFORE}", panel="logits", report=False
)
ACCURACY = figure(
    "autoencoder/adversary_accuracy",
    f"share of logits, of data and reconstructions, with the right sign{BEFORE}",
    panel="accuracy of the discriminator",
    report=False,
    dashboard=True,
)


@checked
class Adversary(nn.Module):
    """forward: data or reconstructions (B, C, *S) in [-1, 1] -> logits (B, 1, *s), float32.

    Args:
        network: gives the logits.
        loss: of the network and of the decoder.
        terms: further losses of the network, by their names in the log.
        augment: how what it sees is changed by chance.
        weight: factor of the decoder's loss.
        adaptive_limit: the weight is times the ratio of the norms of two gradients at the decoder's last layer, that of the
            reconstruction over that of the decoder's loss (arXiv 2012.09841), which is this at most; None: it is constant.
        start_step: it takes part from here on.
    """

    averages: Tensor

    def __init__(
        self,
        network: Discriminator,
        loss: AdversarialLoss,
        terms: dict[str, DiscriminatorTerm],
        augment: Sequence[Augmentation],
        weight: float,
        adaptive_limit: float | None,
        start_step: int,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.terms, self.augment = network, loss, terms, augment
        self.weight, self.adaptive_limit, self.start_step = weight, adaptive_limit, start_step
        # Moving averages of the mean logits of data and of reconstructions, of the accuracy, and of the logits' mean square.
        self.register_buffer("averages", torch.tensor([0.0, 0.0, 0.5, 1.0]))
        self.started, self.due = False, set[str]()
        self.seen: list[Tensor] = []  # of the step at hand, a micro-batch each: what is averaged
        self.factor: Tensor | None = None  # of the step at hand: of the decoder's loss

    def begin_step(self, step: int) -> Hashable:
        """Forget the step before. Returns the kind of step: whether it takes part, and the terms that are due."""
        since = step - self.start_step
        self.seen, self.factor, self.started = [], None, since >= 0
        self.due = {name for name, term in self.terms.items() if self.started and since % term.every == 0}
        return self.started, tuple(sorted(self.due))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).float()

    def decoder_loss(self, x_hat: Tensor) -> Tensor:
        """x_hat (B, C, *S) -> scalar before its weight."""
        return self.loss.decoder(self(augmented(x_hat, self.augment)))

    def decoder_weight(self, reconstruction: Tensor, loss: Tensor, last: nn.Parameter) -> Tensor:
        """Weight (0-d) of `decoder_loss` in this step, computed of its first micro-batch.

        reconstruction: the weighted losses of the reconstruction. loss: of `decoder_loss`. last: weight of the last layer.
        """
        if self.factor is None:
            self.factor = (
                loss.new_tensor(1.0) if self.adaptive_limit is None else self._ratio(reconstruction, loss, last)
            )
        return self.weight * self.factor

    def _ratio(self, reconstruction: Tensor, loss: Tensor, last: nn.Parameter) -> Tensor:
        own = [torch.autograd.grad(one * SCALE, last, retain_graph=True)[0].float() for one in (reconstruction, loss)]
        wanted, given = (one.norm() / SCALE / distributed.world_size() for one in distributed.all_reduce_sum(own))
        return (wanted / (given + DELTA)).clamp(max=self.adaptive_limit)

    def losses(self, judge: Callable[[Tensor], Tensor], x: Tensor, x_hat: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x and x_hat (B, C, *S) -> the network's loss, and its figures. judge: this module as wrapped for training."""
        x, x_hat = augmented(x, self.augment), augmented(x_hat, self.augment)
        logits = judge(torch.cat([x, x_hat]))
        real, fake = logits.chunk(2)
        accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        self.seen.append(torch.stack([real.mean(), fake.mean(), accuracy, logits.square().mean()]).detach())
        loss = self.loss.discriminator(real, fake)
        figures = {LOSS: loss, REAL: real.mean(), FAKE: fake.mean(), ACCURACY: accuracy}
        for name, term in self.terms.items():
            value = loss.new_zeros(())
            if name in self.due:
                value = term.value(self, x, real, fake, (self.averages[0], self.averages[1])) * term.every
            figures[TERM.format(name)] = value
            loss = loss + term.weight * value
        return loss, figures

    def no_losses(self, like: Tensor) -> dict[str, Tensor]:
        """The figures of a step in which it takes no part."""
        return dict.fromkeys([LOSS, REAL, FAKE, ACCURACY, *map(TERM.format, self.terms)], like.new_zeros(()))

    def after_step(self, applied: Tensor) -> None:
        """Update what the optimizer does not. `applied` (0-d bool) is False if the step was skipped."""
        if self.started:
            mean = torch.stack(self.seen).mean(0)  # (4,)
            mean = distributed.all_reduce_sum([mean])[0] / distributed.world_size()
            self.averages.copy_(torch.where(applied, mean.lerp(self.averages, MEMORY), self.averages))
            self.network.after_step(applied)

    def warnings(self) -> dict[str, str]:
        """Warnings for the user, {title: advice}."""
        real, fake, accuracy, square = self.averages.tolist()
        if accuracy > WON:
            return {
                "the discriminator has won": f"it tells {accuracy:.1%} of data and reconstructions apart, so its gradient says "
                "little. Try a lower adversary.optimizer.lr, adversary.augment=[color,translation,cutout], "
                "+adversary/term@adversary.terms.lecam=lecam or the same with r1, or a later adversary.start_step"
            }
        if square - ((real + fake) / 2) ** 2 < DEAD:
            return {
                "the discriminator is dead": f"its logits are {real:.3g} for data and {fake:.3g} for reconstructions, whatever "
                "it sees. Try a lower adversary.optimizer.lr, adversary.network.norm=group, a smaller weight of its terms, or "
                "adversary/loss=non_saturating"
            }
        return {}
