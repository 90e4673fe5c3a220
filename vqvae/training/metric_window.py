"""Means of training metrics between two logs, kept on the device so that no step waits for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.storage.forms import Dense, Each, mistake

SUMS, COUNTED = Dense(torch.float32, None, finite=False), Dense(torch.float32, ())


class MetricWindow:
    """Sums of named 0-d metrics over the steps since the last log; a step that was skipped does not count."""

    def __init__(self, device: torch.device) -> None:
        self.step: dict[str, Tensor] = {}  # of the step at hand
        self.names: list[str] = []  # known from the first step on
        self.sums = torch.zeros(0, device=device)  # (names,)
        self.counted = torch.zeros((), device=device)  # steps in the sums
        self.steps = 0  # since the last log, skipped ones too

    def begin_step(self) -> None:
        self.step, self.steps = {}, self.steps + 1

    def add(self, metrics: dict[str, Tensor], weight: float = 1.0) -> None:
        """Adds to the step at hand."""
        for name, value in metrics.items():
            term = value.detach() if weight == 1 else value.detach() * weight
            self.step[name] = self.step[name] + term if name in self.step else term

    def end_step(self, applied: Tensor) -> None:
        """Adds the step at hand to the sums, in place, if `applied` (0-d bool)."""
        names, values = list(self.step), torch.stack([value.float() for value in self.step.values()])
        if not self.names:
            self.names, self.sums = names, torch.zeros_like(values)
        if self.names != names:  # a stage has the same metrics in every step
            raise UserError(
                f"this run's last checkpoint has other metrics ({', '.join(self.names)[:80]}): it is of another version"
            )
        self.sums += torch.where(applied, values, 0.0)
        self.counted += applied

    def close(self) -> dict[str, float]:
        """Means over steps and ranks, by name in order (none where all steps were skipped); the window is empty then.

        The host waits for the device.
        """
        shared = distributed.all_reduce_sum([self.sums])[0] / distributed.world_size() if self.names else self.sums
        counted, *sums = torch.cat([self.counted[None], shared]).tolist()
        means = {name: total / counted for name, total in zip(self.names, sums)} if counted else {}
        self.steps = 0
        self.sums.zero_()
        self.counted.zero_()
        return dict(sorted(means.items()))

    def state_dict(self) -> dict[str, Any]:
        """With the sums of every rank (ranks, names): a mean would round otherwise than in a run that was not stopped."""
        names = self.names if self.steps else []
        sums = distributed.gather_rows(self.sums[None]) if names else self.sums[None]
        return {"names": names, "sums": sums, "counted": self.counted, "steps": self.steps}

    @staticmethod
    def mistake_in(state: Any) -> str | None:
        """What keeps a value from being a state of a window, in words that follow its name; None if it is one."""
        if said := mistake(state, {"names": Each(str, list), "sums": SUMS, "counted": COUNTED, "steps": int}):
            return f"is no window of metrics: {said}"
        sums = state["sums"]
        good = sums.ndim in (1, 2) and (not state["names"] or sums.shape[-1] == len(state["names"]))
        return None if good else "is no window of metrics: its sums do not go with its names"

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.counted.device
        self.names, sums, self.counted, self.steps = (state[k] for k in ("names", "sums", "counted", "steps"))
        if sums.ndim == 2:  # version 0.1 saved the mean of the ranks
            sums = sums[distributed.rank()] if len(sums) == distributed.world_size() else sums.mean(0)
        self.sums, self.counted = sums.to(device), self.counted.to(device)
