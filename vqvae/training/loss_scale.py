"""The scale of losses in float16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vqvae import distributed

START, MOST = 2.0**16, 2.0**24
GROW_AFTER = 2000  # steps in a row without an overflow


class LossScale:
    """A factor on losses, which keeps small gradients from becoming 0 in float16. It does what torch.amp.GradScaler does.

    A step whose gradient overflows is not applied, and halves the scale; it doubles after GROW_AFTER applied steps. All on
    the device, and in place, so that steps can be CUDA graphs: torch's scaler keeps books on the host between its calls.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(START, device=device)
        self.applied_in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        torch._foreach_mul_(list(gradients), 1 / self.value)

    def update(self, applied: Tensor, losses_finite: Tensor) -> Tensor:
        """Adapt the scale after a step (0-d bools: it was applied; this rank's losses were finite).

        Returns whether the step counts as good (0-d bool): it was applied, or a smaller scale may mend it.
        """
        losses_finite = distributed.all_reduce_sum([(~losses_finite).float()])[0] == 0
        good = applied | (losses_finite & (self.value > 1))
        self.applied_in_a_row.copy_(torch.where(applied, self.applied_in_a_row + 1, 0))
        grows = self.applied_in_a_row >= GROW_AFTER
        self.value.mul_(torch.where(applied, 1 + grows.float(), 0.5)).clamp_(1, MOST)
        self.applied_in_a_row.masked_fill_(grows, 0)
        return good

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value, "applied_in_a_row": self.applied_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value.copy_(state["value"])
        self.applied_in_a_row.copy_(state["applied_in_a_row"])
