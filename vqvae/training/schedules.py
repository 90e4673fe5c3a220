"""Learning-rate schedules: pure functions of (step, steps), so a checkpoint has nothing to remember."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from vqvae.metrics.registry import figure
from vqvae.ranges import NonNegativeInt, Share, checked

figure("{stage}/learning_rate", "that of the logged step", panel="learning rate", report=False, dashboard=True)
figure(
    "{stage}/learning_rate_{network}", "the same, of a stage with several networks", panel="learning rate", report=False
)


@checked
class Schedule(ABC):
    """Linear warm-up over the first `warmup_steps`, then `decay`. Called with a 0-based step -> factor on the rate."""

    def __init__(self, warmup_steps: NonNegativeInt) -> None:
        self.warmup_steps = warmup_steps

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Progress 0 .. 1 after the warm-up -> factor."""

    def __call__(self, step: int, steps: int) -> float:
        warmup = self.warmup(steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.decay((step - warmup) / max(1, steps - warmup))

    def warmup(self, steps: int) -> int:
        """Steps of the warm-up in a run of `steps`."""
        return self.warmup_steps


class Constant(Schedule):
    """Stays at the full rate."""

    def decay(self, progress: float) -> float:
        return 1.0


@checked
class Cosine(Schedule):
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts).

    The warm-up takes at most the share `most_warmup` of a run, so that short runs decay too. None: no limit, as up to 0.1.
    """

    def __init__(self, warmup_steps: NonNegativeInt, final: Share, most_warmup: Share | None = None) -> None:
        super().__init__(warmup_steps)
        self.final, self.most_warmup = final, most_warmup

    def warmup(self, steps: int) -> int:
        return self.warmup_steps if self.most_warmup is None else min(self.warmup_steps, int(self.most_warmup * steps))

    def decay(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
