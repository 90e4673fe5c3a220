"""The registry of figures: everything that a run logs is declared once, beside the code that computes it.

A name is `<section>/<figure>`, for example `autoencoder/psnr_db`. In logs the split stands second, `autoencoder/val/psnr_db`.
A family has placeholders in its name, and one entry: `codebook/perplexity_{m}`. `{m}` is a code map and `{level}` a level of
the model, both numbers; any other placeholder is a word. Reports, plots, wandb's settings, the table of a sweep and
docs/metrics.md are made from the entries.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Literal

from vqvae.ranges import checked

NUMBERS = ("m", "level")  # placeholders that stand for a number


@checked
@dataclass(frozen=True)
class Figure:
    """One entry.

    Args:
        name: `<section>/<figure>`, perhaps with placeholders.
        protocol: a phrase that says how it is measured.
        better: the better direction. wandb keeps the best value of a figure that has one.
        panel: title of the plot that shows it; for a histogram, the label of its axis. None: no plot.
        report: True if it is part of summary.json, evaluations and their tables.
        sweep: True if the table of a sweep shows it (of a family, its first member).
        dashboard: True if wandb and tensorboard show it by default (logger.detail=summary). None where it is declared: yes,
            but for the figures of this package, which are many.
    """

    name: str
    protocol: str
    better: Literal["lower", "higher", "none"] = "none"
    panel: str | None = None
    report: bool = True
    sweep: bool = False
    dashboard: bool = False

    def matches(self, name: str) -> bool:
        parts = re.split(r"\{(\w+)\}", self.name)  # text, placeholder, text, ...
        patterns = [r"\d+" if part in NUMBERS else r"\w+" for part in parts[1::2]]
        pattern = "".join(re.escape(text) + slot for text, slot in zip(parts[::2], [*patterns, ""]))
        return re.fullmatch(pattern, name) is not None


FIGURES: dict[str, Figure] = {}  # by name, in the order in which they were declared


def figure(
    name: str,
    protocol: str,
    better: Literal["lower", "higher", "none"] = "none",
    panel: str | None = None,
    report: bool = True,
    sweep: bool = False,
    dashboard: bool | None = None,
) -> str:
    """Declare a figure; see Figure. Returns its name."""
    if dashboard is None:
        dashboard = not is_own(sys._getframe(1).f_globals.get("__name__", ""))
    assert "/" in name, f"{name} has no section"
    assert name not in FIGURES, f"{name} is declared twice"
    FIGURES[name] = Figure(name, protocol, better, panel, report, sweep, dashboard)
    return name


def is_own(module: str) -> bool:
    """True for a module of this package."""
    return module.split(".")[0] == __name__.split(".")[0]


def find(name: str) -> Figure | None:
    """The entry of a figure by its whole name; of several families, that with the most text of its own."""
    if name in FIGURES:
        return FIGURES[name]
    matching = [entry for entry in FIGURES.values() if entry.matches(name)]
    return max(matching, key=lambda entry: len(re.sub(r"\{\w+\}", "", entry.name)), default=None)


def in_split(name: str, split: str) -> str:
    """The name of a figure of this split in logs: autoencoder/psnr_db -> autoencoder/val/psnr_db."""
    section, rest = name.split("/", 1)
    return f"{section}/{split}/{rest}"


def without_split(name: str) -> tuple[str, str]:
    """A name in logs -> the figure's name and the split: autoencoder/val/psnr_db -> (autoencoder/psnr_db, val).

    The split of names that have none, such as timing/seconds, is "".
    """
    parts = name.split("/", 2)
    return (f"{parts[0]}/{parts[2]}", parts[1]) if len(parts) == 3 else (name, "")
