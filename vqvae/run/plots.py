"""Plots of a run: its curves, and the use of its codes."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from vqvae.metrics.registry import FIGURES, find, without_split
from vqvae.storage.files import write_bytes

PANELS_A_ROW = 4


def plot_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """The metrics of one stage over its steps, one panel a subject -> PNG. lines: those of metrics.jsonl."""
    plt = pyplot()
    panels = panels_of({name for line in lines for name, value in line.items() if not isinstance(value, dict)})
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for axis, (title, names) in zip(axes[0], panels.items()):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points), label=name, marker="." if len(points) < 20 else "", linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=6)
    save(figure, path)


def plot_codes(counts: list[Tensor], histograms: dict[str, dict[str, list[float]]], path: Path) -> None:
    """How often each code of each map is used, most used first, beside uniform use; then histograms by figure -> PNG.

    counts: M x (K_m,). histograms: as made in metrics.codebook, of registered figures.
    """
    plt = pyplot()
    panels = len(counts) + len(histograms)
    columns = min(panels, PANELS_A_ROW)
    rows = math.ceil(panels / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.8 * columns, 3.2 * rows), squeeze=False)
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    for m, (axis, one) in enumerate(zip(axes, counts)):
        share = one.double().sort(descending=True).values / one.sum().clamp_min(1) * len(one)
        axis.fill_between(range(len(share)), share.tolist(), step="mid", alpha=0.6)
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--", label="uniform use")
        used = int((one > 0).sum())
        axis.set_title(f"codebook {m}: {used} of {len(one)} codes used", fontsize=10)
        axis.set_xlabel("codes, most used first", fontsize=8)
        axis.set_ylabel("use relative to uniform", fontsize=8)
        axis.legend(fontsize=7)
    for axis, (name, bins) in zip(axes[len(counts) :], histograms.items()):
        axis.stairs(bins["counts"], bins["edges"], fill=True, alpha=0.6)
        entry = find(name)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(entry.panel if entry else "", fontsize=8)
        axis.set_yticks([])
    for axis in axes:
        axis.tick_params(labelsize=7)
    save(figure, path)


def panels_of(names: set[str]) -> dict[str, list[str]]:
    """Names in metrics.jsonl -> {title of a panel: its names}, as the registry says, panels in its order."""
    panels: dict[str, list[str]] = {entry.panel: [] for entry in FIGURES.values() if entry.panel}
    for name in sorted(names):
        entry = find(without_split(name)[0])
        if entry and entry.panel:
            panels[entry.panel].append(name)
    return {title: members for title, members in panels.items() if members}


def pyplot() -> Any:
    """matplotlib.pyplot on a backend that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png")
    write_bytes(path, png.getvalue())
    pyplot().close(figure)
