"""What a checkpoint of a stage must hold (storage/forms.py), compared before anything of it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vqvae.storage.forms import Each, Form, Keys, form_of
from vqvae.training.logger import is_line
from vqvae.training.metric_window import MetricWindow
from vqvae.training.optimizers import Muon

NewOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def checkpoint_form(state: dict[str, Any], steps: int, extras: Sequence[str], moments: dict[str, Form]) -> Form:
    """The form of the checkpoints of a trainer whose own state is `state` now.

    Args:
        state: as it would be saved before the first step.
        steps: of the whole training.
        extras: what may be left to do after a step.
        moments: the form of each network's optimizer.
    """
    step = partial(mistake_in_step, steps)
    return {
        **form_of(state),
        **form_of({"meters": state["meters"], "skipped": state["skipped"]}, finite=False),
        "step": step,
        "todo": partial(mistake_in_todo, extras),
        "steps": mistake_in_end,
        "optimizers": moments,
        "window": MetricWindow.mistake_in,
        "best": mistake_in_best,
        "alerted": Each(str, list),
    }


def moments_form(optimizer: torch.optim.Optimizer, new: NewOptimizer) -> Form:
    """What a checkpoint must hold of an optimizer; `new` makes one of the same kind from parameter groups.

    Fused steps trust the shapes of moments. Which there are is seen in a step of a parameter of that shape, because every
    optimizer has its own.
    """
    if isinstance(optimizer, Muon):
        return {name: moments_form(part, new) for name, part in optimizer.parts.items()}
    seen: dict[Any, Form] = {}
    moments: dict[int, Form] = {}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        kind = parameter.shape, parameter.dtype, getattr(parameter, "hidden_matrix", False)
        if kind not in seen:
            twin = nn.Parameter(torch.zeros_like(parameter))
            twin.grad, twin.hidden_matrix = torch.zeros_like(twin), kind[2]  # type: ignore[attr-defined]
            stepped = new([{"params": [twin]}])
            stepped.step()
            seen[kind] = form_of(dict(stepped.state[twin]))
        moments[index] = seen[kind]
    groups = partial(mistake_in_groups, len(moments))
    return Keys({"state": Keys(moments, missing=True), "param_groups": groups}, more=True)


def mistake_in_groups(parameters: int, value: Any) -> str | None:
    """Only the numbers count: which parameters share a group differs between versions, and the config's settings are used."""
    groups = (
        [group.get("params") if isinstance(group, dict) else None for group in value] if type(value) is list else []
    )
    numbers = [number for group in groups if type(group) is list for number in group]
    sound = all(type(number) is int for number in numbers) and numbers == list(range(parameters))
    return None if sound else f"does not number {parameters} parameters"


def mistake_in_step(most: int, value: Any) -> str | None:
    return None if type(value) is int and 0 <= value <= most else f"is no number of steps up to {most}"


def mistake_in_end(value: Any) -> str | None:
    return None if value is None or (type(value) is int and value >= 0) else "is no number of steps"


def mistake_in_todo(extras: Sequence[str], value: Any) -> str | None:
    return None if isinstance(value, list) and all(one in extras for one in value) else f"is not of {extras}"


def mistake_in_best(value: Any) -> str | None:
    """Of `Trainer.best`: empty, or a step with its figures."""
    return None if value == {} or is_line(value) else "is not a step and its figures"
