"""Plots of a run: its curves, and the use of its codes."""

from __future__ import annotations

import io
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vqvae.metrics.registry import FIGURES, find, without_split
from vqvae.storage.files import write_bytes
from vqvae.surroundings.own_folder import own_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_A_ROW = 4
LEFT, RIGHT, BOTTOM, TOP = 0.6, 0.15, 0.45, 0.35  # inches around each panel, for its labels


def plot_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """The metrics of one stage over its steps, one panel a subject -> PNG. lines: those of metrics.jsonl."""
    panels = panels_of({name for line in lines for name, value in line.items() if not isinstance(value, dict)})
    figure, axes = subplots(len(panels))
    for axis, (title, names) in zip(axes, panels.items()):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points), label=name, marker="." if len(points) < 20 else "", linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=6)
    save(figure, path)


def plot_codes(counts: list[Tensor], histograms: dict[str, dict[str, list[float]]], passed: float, path: Path) -> None:
    """How often each code of each map is used, most used first, beside uniform use; then histograms by figure -> PNG.

    counts: M x (K_m,), of the validation set. histograms: as made in metrics.codebook, of registered figures. passed: share of
    the vectors that are passed on unquantized, which are among the counts with the code that they are stored by.
    """
    among = f", {passed:.0%} of them passed on" if passed else ""
    figure, axes = subplots(len(counts) + len(histograms))
    for m, (axis, uses) in enumerate(zip(axes, counts)):
        share = uses.double().sort(descending=True).values / uses.sum().clamp_min(1) * len(uses)
        axis.fill_between(range(len(share)), share.tolist(), step="mid", alpha=0.6)
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--", label="uniform use")
        used = int((uses > 0).sum())
        axis.set_title(f"codebook {m}: {used} of {len(uses)} codes used", fontsize=10)
        axis.set_xlabel(f"codes, most used first, by {int(uses.sum()):,} validation vectors{among}", fontsize=8)
        axis.set_ylabel("use relative to uniform", fontsize=8)
        axis.legend(fontsize=7)
    for axis, (name, bins) in zip(axes[len(counts) :], histograms.items()):
        axis.stairs(bins["counts"], bins["edges"], fill=True, alpha=0.6)
        entry = find(name)
        counted = entry.protocol.split(";")[0] if entry else name
        kind = "level" if entry and "{level}" in entry.name else "codebook"
        title = f"{kind} {name.rpartition('_')[2]}: {counted}"
        axis.set_title(textwrap.shorten(title, 72, placeholder=" ..."), fontsize=8)
        axis.set_xlabel((entry.panel or "") if entry else "", fontsize=8)
        axis.set_yticks([])
    for axis in axes:
        axis.tick_params(labelsize=7)
    save(figure, path)


def panels_of(names: set[str]) -> dict[str, list[str]]:
    """Names in metrics.jsonl -> {title of a panel: its names}, first those with a better direction, then by name."""
    entries = sorted(FIGURES.values(), key=lambda entry: (entry.better == "none", entry.name))
    panels: dict[str, list[str]] = {entry.panel: [] for entry in entries if entry.panel}
    for name in sorted(names):
        entry = find(without_split(name)[0])
        if entry and entry.panel:
            panels[entry.panel].append(name)
    return {title: members for title, members in panels.items() if members}


def subplots(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row. Fixed margins: matplotlib's layouts take as long as the drawing."""
    with own_folder():  # whose matplotlibrc counts otherwise
        from matplotlib.figure import Figure

    columns = max(1, min(panels, PANELS_A_ROW))  # a log may be empty
    rows = max(1, math.ceil(panels / columns))
    width, height = 4.5, 3.2  # inches of a panel with its margins
    figure = Figure(figsize=(width * columns, height * rows), dpi=110)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=LEFT / width / columns,
        right=1 - RIGHT / width / columns,
        bottom=BOTTOM / height / rows,
        top=1 - TOP / height / rows,
        wspace=(LEFT + RIGHT) / (width - LEFT - RIGHT),
        hspace=(BOTTOM + TOP) / (height - BOTTOM - TOP),
    )
    for axis in grid.flat[panels:]:
        axis.set_visible(False)
    return figure, list(grid.flat[:panels])


def save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    write_bytes(path, png.getvalue())
