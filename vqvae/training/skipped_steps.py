"""Steps whose loss or gradient was not finite: counted on the device and logged, so that they can be repeated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae.metrics.registry import figure

figure("{stage}/skipped_steps", "steps so far whose loss or gradient was not finite", "lower", report=False)

REMEMBERED = 1024  # of the last steps: which of them were skipped


class SkippedSteps:
    """Number and list of skipped steps, kept on the device so that the host never waits."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        # A ring: step n is at n % REMEMBERED if it was skipped.
        self.steps = torch.full((REMEMBERED,), -1, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)  # the step at hand

    def begin_step(self, step: int) -> None:
        self.step.fill_(step)

    def add(self, applied: Tensor) -> None:
        """After the step at hand; `applied` (0-d bool) is False where it was skipped."""
        self.steps.index_copy_(0, self.step % REMEMBERED, torch.where(applied, -1, self.step))
        self.count += ~applied

    def take(self) -> tuple[int, list[int]]:
        """Return the number so far, and the steps since the last call, ascending. The host waits for the device."""
        count, *steps = torch.cat([self.count[None], self.steps]).tolist()
        self.steps.fill_(-1)
        return count, sorted(step for step in steps if step >= 0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.steps = (state[key].to(self.step.device) for key in ("count", "steps"))
