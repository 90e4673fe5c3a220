"""How long a stage will take, said once."""

from __future__ import annotations

import logging

from vqvae.surroundings.terminal import wrapped

log = logging.getLogger(__name__)
MENTIONED_SECONDS = 30  # shorter durations are not worth a line
FORWARD = 1 / 3  # of a training step's time: what as many items of an evaluation take, until one was measured


class Duration:
    """Says once, in the log, how long the rest of the stage `name` will take, with its evaluations.

    Args:
        name: the stage.
        batches: training batches that hold as many items as an evaluation.
        then: what follows, as "the prior", or nothing.
    """

    def __init__(self, name: str, batches: float, then: str) -> None:
        self.name, self.batches, self.then = name, batches, then
        self.heard, self.told = 0, False
        self.evaluation: float | None = None  # seconds of the last one

    def hear(self, steps: int, seconds: float, left: int, evaluations: int) -> None:
        """Take down that `steps` took `seconds`, and that so many steps and evaluations are left.

        The first steps are slow, so they are waited for, unless they have taken long.
        """
        self.heard += 1
        step = seconds / max(steps, 1)
        each = FORWARD * step * self.batches if self.evaluation is None else self.evaluation
        rest = left * step + evaluations * each
        if not self.told and rest >= MENTIONED_SECONDS and (self.heard > 1 or seconds >= MENTIONED_SECONDS):
            self.told = True
            text = f"{self.name}: the other {left} steps will take about {rounded(rest)}"
            text += f", {evaluations} evaluation{'s' * (evaluations != 1)} included" if evaluations else ""
            log.info("%s", wrapped(text + (f"; {self.then} comes after that" if self.then else "")))


def rounded(seconds: float) -> str:
    """A duration in words, as 12 minutes or 3.5 hours."""
    lengths = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, length in lengths.items() if seconds >= 2 * length), "seconds")
    number = seconds / lengths[unit]
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
