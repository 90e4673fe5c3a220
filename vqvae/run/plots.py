"""Plots of a run."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from vqvae.storage.files import write_bytes

PANELS = {  # title -> metrics; a panel without any of its metrics is left out
    "loss": ["train/loss", "val/loss"],
    "reconstruction, dB": ["val/psnr_db"],
    "perplexity": ["train/codebook{m}/window_perplexity", "val/codebook{m}/perplexity"],
    "distance between codes": ["train/codebook{m}/spacing_mean", "train/codebook{m}/closest_mean"],
    "bits per code": ["train/bits_per_code{bound}", "val/bits_per_code{bound}", "val/train_bits_per_code{bound}"],
    "learning rate": ["train/{name}/learning_rate"],
    "gradient norm": ["train/{name}/grad_norm"],
}
HISTOGRAMS = {  # of an evaluation -> what is counted, and by what
    "similarity_histogram": ("vectors", "cosine of vector and code"),
    "relative_error_histogram": ("vectors", "|vector - code| / |vector|, 2 and beyond at the end"),
    "spacing_histogram": ("pairs of codes", "distance / mean distance, 2 and beyond at the end"),
}
PANELS_A_ROW = 4


def plot_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Plot the metrics of one stage over its steps, one panel per subject -> PNG."""
    plt = pyplot()
    names = {name for line in lines for name in line}
    panels = {}
    for title, patterns in PANELS.items():
        found = sorted(name for name in names if any(matches(name, pattern) for pattern in patterns))
        if found:
            panels[title] = found
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for axis, (title, found) in zip(axes[0], panels.items()):
        for name in found:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points), label=name, marker="." if len(points) < 20 else "", linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=6)
    save(figure, path)


def plot_codes(counts: list[Tensor], histograms: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Plot the use of each code of each map, most used first, and histograms by name -> PNG.

    counts: M x (K_m,). histograms: as made in metrics.codebook.
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
        owner, kind = name.split("/")
        title, subject = HISTOGRAMS[kind]
        axis.set_title(f"{owner}: {title}", fontsize=10)
        axis.set_xlabel(subject, fontsize=8)
        axis.set_yticks([])
    for axis in axes:
        axis.tick_params(labelsize=7)
    save(figure, path)


def matches(name: str, pattern: str) -> bool:
    """True if a metric's name fits a pattern, in which {m}, {name} and {bound} stand for text without a slash."""
    if "{" not in pattern:
        return name == pattern
    start, end = pattern.split("{")[0], pattern.split("}")[1]
    middle = name[len(start) : len(name) - len(end)]
    return name.startswith(start) and name.endswith(end) and "/" not in middle


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
