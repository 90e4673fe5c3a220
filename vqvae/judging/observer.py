"""The Frechet distance of reconstructions while a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from vqvae.errors import UserError
from vqvae.judging.figures import is_enough
from vqvae.judging.judge import Judge
from vqvae.metrics.frechet import Gaussian, frechet_distance, moments
from vqvae.metrics.registry import figure

figure(
    "autoencoder/observed_fd_{backbone}",
    "Frechet distance of about evaluation.frechet reconstructions, those of the first items of each batch, to these items, in "
    "the pooled features of that network; the fewer, the larger",
    better="lower",
    panel="Frechet distance",
    dashboard=True,
)
figure(
    "autoencoder/observed_fid_inception",
    "the same in the features of Inception",
    better="lower",
    panel="Frechet distance",
    dashboard=True,
)


@dataclass
class FrechetObserver:
    """Adds a distance to the evaluation of a stage.

    Args:
        judge: the pretrained network.
        share: of each batch that it sees.
    """

    judge: Judge
    share: float
    real: Gaussian | None = field(default=None, init=False)  # of the items, from the first evaluation on

    @classmethod
    def of(cls, judge: Judge, wanted: int, items: int) -> FrechetObserver:
        """Raises UserError where `wanted` of the `items` of the validation split are too few."""
        if not is_enough(judge, min(wanted, items) * judge.views):
            raise UserError(
                f"evaluation.frechet={wanted} of {items} validation items are too few: {judge.name} has {judge.width} "
                "features, and needs more images than that"
            )
        return cls(judge, min(1.0, wanted / items))

    @property
    def monitor(self) -> str:
        """Name of the figure."""
        return self.judge.figure("autoencoder/observed_fd").replace("observed_fd_inception", "observed_fid_inception")

    def sums(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Sums over a batch of items (B, C, *S) and their reconstructions."""
        seen = math.ceil(self.share * len(x))
        sums = {"made": moments(self.judge.features(x_hat[:seen]))}
        return sums if self.real is not None else {**sums, "real": moments(self.judge.features(x[:seen]))}

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The distance, from sums over the set."""
        if self.real is None:
            self.real = Gaussian.of(sums["real"])
        return {self.monitor: frechet_distance(Gaussian.of(sums["made"]), self.real)}
