"""What an optimizer is told about weights, and what it must forget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Weights of matrices and filters decay; biases, norms and codebooks (`no_weight_decay`) do not."""
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and not getattr(p, "no_weight_decay", False)]
    kept = {id(p) for p in decayed}
    other = [p for p in trained if id(p) not in kept]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": other, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def reset_rows(optimizers: Iterable[torch.optim.Optimizer], replaced: dict[nn.Parameter, Tensor]) -> None:
    """Zeroes the moments of rows that were replaced, for they belong to the past. replaced: {parameter: (rows,) bool}."""
    for parameter, rows in replaced.items():
        for optimizer in optimizers:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(rows.view(-1, *[1] * (value.ndim - 1)), 0)
