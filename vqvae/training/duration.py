"""How long a stage will take, said once."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)
MENTIONED_SECONDS = 30  # shorter durations are not worth a line


class Duration:
    """Says once, in the log, how long the rest of the stage `name` will take."""

    def __init__(self, name: str) -> None:
        self.name, self.heard, self.told = name, 0, False

    def hear(self, steps: int, seconds: float, left: int) -> None:
        """Take down that `steps` took `seconds`, and that so many are left.

        The first steps are slow, so they are waited for, unless they have taken long.
        """
        self.heard += 1
        rest = left * seconds / max(steps, 1)
        if not self.told and rest >= MENTIONED_SECONDS and (self.heard > 1 or seconds >= MENTIONED_SECONDS):
            self.told = True
            log.info("%s: the other %d steps will take about %s", self.name, left, rounded(rest))


def rounded(seconds: float) -> str:
    """A duration in words, as 12 minutes or 3.5 hours."""
    lengths = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, length in lengths.items() if seconds >= 2 * length), "seconds")
    number = seconds / lengths[unit]
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
