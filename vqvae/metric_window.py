"""Means of training metrics between two logs, kept on the device so that no step waits for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae import distributed


class MetricWindow:
    """Sums of named 0-d metrics over the steps since the last log."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, metrics: dict[str, Tensor], weight: float = 1.0) -> None:
        for name, value in metrics.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), device=self.device)
            self.sums[name].add_(value.detach(), alpha=weight)

    def share(self) -> None:
        """Every rank's sums become the mean over ranks, so that a checkpoint holds what all of them need."""
        names = sorted(self.sums)
        if names:
            sums = distributed.all_reduce_sum([torch.stack([self.sums[name] for name in names])])[0]
            self.sums = dict(zip(names, (sums / distributed.world_size()).unbind()))

    def close(self) -> dict[str, float]:
        """Means over steps and ranks, by name in order; the window is empty then. The host waits for the device."""
        self.share()
        names = sorted(self.sums)
        means = (torch.stack([self.sums[name] for name in names]) / self.steps).tolist()
        self.sums, self.steps = {}, 0
        return dict(zip(names, means))

    def state_dict(self) -> dict[str, Any]:
        self.share()
        return {"sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.steps = state["sums"], state["steps"]
