"""Where a stage's log goes beside its own files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from vqvae.errors import UserError
from vqvae.metrics.registry import find, without_split
from vqvae.ranges import checked


@checked
@dataclass(kw_only=True)
class LogSettings:
    """What is sent to wandb, to tensorboard, and to a table in CSV. metrics.jsonl has everything in any case.

    mode, of wandb: auto: online where this machine is logged in, else offline; never a prompt. What is None or empty comes
    from wandb's own settings, such as WANDB_PROJECT, WANDB_NAME, WANDB_RUN_GROUP and WANDB_TAGS.
    detail, of wandb and tensorboard: the figures that the registry marks for a dashboard, or all.
    """

    mode: Literal["auto", "online", "offline", "off"]
    project: str | None
    entity: str | None
    tags: list[str]
    name: str | None = None
    group: str | None = None
    notes: str | None = None
    detail: Literal["summary", "full"] = "summary"
    tensorboard: bool = False
    csv: bool = False

    def check(self) -> None:
        """Raise UserError for a package that is missing. Without wandb, its log warns and leaves it out."""
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UserError("logger=tensorboard needs the package tensorboard: pip install tensorboard, or logger=csv")

    def chosen(self, values: dict[str, Any]) -> dict[str, Any]:
        """Figures by their names in logs -> those that a dashboard shows."""
        entries = {name: find(without_split(name)[0]) for name in values}
        return {
            name: value
            for name, value in values.items()
            if self.detail == "full" or ((entry := entries[name]) is not None and entry.dashboard)
        }
