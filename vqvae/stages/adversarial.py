"""Stage 1 with an adversary: a VQ-VAE whose reconstructions a second network must not tell from the data (VQGAN)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqvae.metrics.registry import figure
from vqvae.model import Output
from vqvae.stages.adversary import BEFORE, NETWORK, Adversary
from vqvae.stages.autoencoder import LOSS, AutoencoderStage

DECODER = figure(
    "autoencoder/adversarial",
    f"the decoder's loss against the adversary before its weight{BEFORE}",
    panel="adversary",
    report=False,
)
WEIGHTED = figure(
    "autoencoder/adversarial_weighted", "the decoder's loss against the adversary times its weight", report=False
)
WEIGHT = figure("autoencoder/adversarial_weight", f"that weight, constant or adaptive{BEFORE}", report=False)


class AdversarialStage(AutoencoderStage):
    """An autoencoder's stage (arXiv 2012.09841) in which the decoder and `adversary` are trained against each other.

    parts: the other arguments of AutoencoderStage.
    """

    def __init__(self, adversary: Adversary, *parts: Any) -> None:
        super().__init__(*parts)
        self.adversary = adversary
        self.networks[NETWORK] = adversary

    def begin_step(self, step: int, steps: int) -> Hashable:
        return super().begin_step(step, steps), self.adversary.begin_step(step)

    def losses_of(
        self, x: Tensor, output: Output, terms: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The decoder's loss, then that of the adversary, which sees what the decoder made before it is updated."""
        if not self.adversary.started:
            none = dict.fromkeys([DECODER, WEIGHTED, WEIGHT], terms[LOSS].new_zeros(()))
            yield "model", terms[LOSS], {**terms, **none, **self.adversary.no_losses(x)}
            return
        x_hat = self.objective.head.reconstruct(output.decoded)
        loss = self.adversary.decoder_loss(x_hat)
        reconstruction = torch.stack(
            [terms[f"autoencoder/reconstruction_{n}_weighted"] for n in self.objective.weights]
        )
        weight = self.adversary.decoder_weight(reconstruction.sum(), loss, self.model.decoders[0].last_weight)
        total = terms[LOSS] + weight * loss
        yield "model", total, {**terms, LOSS: total, DECODER: loss, WEIGHTED: weight * loss, WEIGHT: weight}
        yield NETWORK, *self.adversary.losses(self.forwards[NETWORK], x, x_hat.detach())

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        self.adversary.after_step(applied)
        return super().after_step(applied)

    def warnings(self, metrics: dict[str, Any], best: dict[str, Any]) -> dict[str, str]:
        return super().warnings(metrics, best) | self.adversary.warnings()
