"""Means of training metrics between two logs, kept on the device so that no step waits for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae import distributed


class MetricWindow:
    """Sums of named 0-d metrics over the steps since the last log; a step that was skipped does not count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.step: dict[str, Tensor] = {}  # of the step at hand
        self.counted = torch.zeros((), device=device)  # steps in the sums
        self.steps = 0  # since the last log, skipped ones too

    def add(self, metrics: dict[str, Tensor], weight: float = 1.0) -> None:
        """Adds to the step at hand."""
        for name, value in metrics.items():
            if name not in self.step:
                self.step[name] = torch.zeros((), device=self.device)
            self.step[name].add_(value.detach(), alpha=weight)

    def end_step(self, applied: Tensor) -> None:
        """Adds the step at hand to the sums if `applied` (0-d bool)."""
        for name, value in self.step.items():
            kept = torch.where(applied, value, 0.0)
            self.sums[name] = self.sums[name] + kept if name in self.sums else kept
        self.counted += applied
        self.step, self.steps = {}, self.steps + 1

    def share(self) -> None:
        """Every rank's sums become the mean over ranks, so that a checkpoint holds what all of them need."""
        names = sorted(self.sums)
        if names:
            sums = distributed.all_reduce_sum([torch.stack([self.sums[name] for name in names])])[0]
            self.sums = dict(zip(names, (sums / distributed.world_size()).unbind()))

    def close(self) -> dict[str, float]:
        """Means over steps and ranks, by name in order (none where all steps were skipped); the window is empty then.

        The host waits for the device.
        """
        self.share()
        names = sorted(self.sums)
        counted, *sums = torch.stack([self.counted, *(self.sums[name] for name in names)]).tolist()
        self.sums, self.steps = {}, 0
        self.counted.zero_()
        return {name: total / counted for name, total in zip(names, sums)} if counted else {}

    def state_dict(self) -> dict[str, Any]:
        self.share()
        return {"sums": self.sums, "counted": self.counted, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.counted, self.steps = state["sums"], state["counted"], state["steps"]
