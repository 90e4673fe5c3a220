"""Classes that a user asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae.errors import UserError, suggest


def choose_labels(wanted: Any, class_names: list[str], seeds: list[int]) -> Tensor:
    """Labels (n,) for the setting `class`: a number, a name, 'all' for each class in turn, or null.

    null draws each sample's class from its own seed. Data without classes has labels -1. Raises UserError for an unknown class.
    """
    count = len(seeds)
    if not class_names:
        if wanted is not None:
            raise UserError(f"class={wanted}: this run's data has no classes")
        return torch.full((count,), -1)
    if wanted is None:
        generators = (torch.Generator().manual_seed(seed + 1) for seed in seeds)
        return torch.stack([torch.randint(len(class_names), (), generator=g) for g in generators])
    if wanted == "all":
        rows = -(-count // len(class_names))
        return torch.arange(len(class_names)).repeat_interleave(rows)[:count]
    if str(wanted) in class_names:
        return torch.full((count,), class_names.index(str(wanted)))
    if str(wanted).isdecimal() and int(wanted) < len(class_names):
        return torch.full((count,), int(wanted))
    raise UserError(
        f"class={wanted} does not exist; {suggest(str(wanted), class_names)} (or 0 .. {len(class_names) - 1})"
    )
