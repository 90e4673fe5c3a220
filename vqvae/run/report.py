"""The figures of a run, each with the protocol that it was measured by."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae import __version__, distributed
from vqvae.data.code_store import CodeStore
from vqvae.data.codes import bits_of_uniform
from vqvae.errors import UserError
from vqvae.images import Captions, grid, rows_of, write_png
from vqvae.inference.trained_model import TrainedModel
from vqvae.metrics.codebook import count_codes
from vqvae.metrics.registry import figure, find, without_split
from vqvae.run.evaluation import UNIFORM, bits_per_dim, searched_figures
from vqvae.run.folder import STAGES
from vqvae.run.plots import plot_codes, plot_curves
from vqvae.run.run import Run
from vqvae.run.tables import table
from vqvae.stages.autoencoder import AutoencoderStage
from vqvae.storage.files import path_part, read_own_text, write_json
from vqvae.surroundings.terminal import say
from vqvae.training.hardware import RATE, SECONDS
from vqvae.training.logger import is_number, read_lines

SAMPLES_PER_CLASS = 8
PASSED = "autoencoder/identity_mapped_"  # the figure of a level

for stage in STAGES:
    figure(
        f"{stage}/seconds",
        "wall clock of training steps, evaluation and checkpoints left out",
        better="lower",
        sweep=stage == "autoencoder",
    )
    figure(
        f"{stage}/items_per_second",
        "items (or their codes) trained on per second, median over log intervals",
        better="higher",
    )


def figures(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics by name -> {name: {value, protocol}} of those that are reported; loss terms and histograms are not."""
    entries = {name: find(name) for name in metrics}
    return {
        name: {"value": metrics[name], "protocol": entry.protocol}
        for name, entry in entries.items()
        if entry is not None and entry.report
    }


def print_figures(title: str, reported: dict[str, dict[str, Any]]) -> None:
    """A table on the terminal, grouped by section. The protocols are in the JSON files and in docs/metrics.md."""
    sections: dict[str, list[list[Any]]] = {}
    for name, entry in reported.items():
        sections.setdefault(name.split("/")[0], []).append([name, entry["value"]])
    rows = [row for section in sections.values() for row in (["", ""], *section)]
    say(f"\n{title}\n{table(['figure', 'value'], rows)}")


def summarize(run: Run, trained: TrainedModel) -> dict[str, Any] | None:
    """Write images of curves, codes and samples, and summary.json. Returns its figures by name, on rank 0."""
    folder = run.folder
    metrics: dict[str, Any] = {}
    store = run.code_store(trained, "val") if trained.codebook_sizes else None
    searched = searched_figures(run, trained, "val", run.cfg.search_sweeps)
    unreadable = run.unreadable_items()
    if not distributed.is_main():
        return None
    for stage in STAGES:
        if folder.weights_file(stage):
            images = folder.stage(stage) / "images"
            metrics |= stage_figures(run, stage)
            plot_curves(read_lines(folder.stage(stage) / "metrics.jsonl"), images / "curves.png")
    if store is not None:
        histograms = {name: value for name, value in metrics.items() if is_plotted_histogram(name, value)}
        passed = max((value for name, value in metrics.items() if name.startswith(PASSED)), default=0.0)
        plot_codes(store_counts(store), histograms, passed, folder.path / "codebook.png")
    if trained.prior is not None and store is not None:
        metrics[UNIFORM] = bits_of_uniform(store.codebook_sizes, store.code_shapes)
        draw_samples(run, trained)
    metrics |= searched | bits_per_dim(metrics, run.data)
    reported = figures(metrics)
    write_summary(folder.path, unreadable, reported, sources(run))
    for split, count in unreadable.items():
        if count:
            say(f"{count} items of the split '{split}' could not be read: others took their place, see train.log")
    return {name: entry["value"] for name, entry in reported.items()}


def monitored(figures: dict[str, Any]) -> float | None:
    """The figure that Hydra's sweepers go by: that of the last stage."""
    monitors = ("prior/bits_per_code", "prior/bits_per_code_bound", AutoencoderStage.monitor)
    return next((figures[name] for name in monitors if name in figures), None)


def write_summary(
    folder: Path, unreadable: dict[str, int], reported: dict[str, dict[str, Any]], made_of: dict[str, Any] | None = None
) -> None:
    """Write summary.json of a run: the number of unreadable items of each split, figures, what they were made of. On rank 0."""
    if distributed.is_main():
        about = {"version": __version__, "unreadable_items": unreadable, "figures": reported, "made_of": made_of}
        write_json(folder / "summary.json", about)


def sources(run: Run) -> dict[str, Any]:
    """What a summary is made of: the files of weights, whose names have their checksums, and how they are searched."""
    files = {stage: run.folder.weights_file(stage) for stage in STAGES}
    weights = {stage: file.name for stage, file in files.items() if file is not None}
    return {"weights": weights, "search_sweeps": run.cfg.search_sweeps}


def kept_figures(run: Run) -> dict[str, Any] | None:
    """The figures in summary.json, if it was made by this version, of these weights, and its pictures are there; else None.

    The same on all ranks.
    """
    path, figures = run.folder.path, None
    if distributed.is_main():
        pictures = ["codebook.png", "samples.png"] if run.folder.weights_file("prior") else []
        try:
            about = json.loads(read_own_text(path / "summary.json") or "{}")
            if about["version"] == __version__ and about["made_of"] == sources(run):
                found = {str(name): entry["value"] for name, entry in about["figures"].items()}
                figures = found if all(map(is_number, found.values())) else None
        except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            figures = None
        if not all((path / name).is_file() for name in pictures):
            figures = None
    return distributed.broadcast_object(figures)


def stage_figures(run: Run, stage: str) -> dict[str, Any]:
    """Validation metrics of the step whose weights were kept, seconds and speed of training."""
    folder = run.folder.stage(stage)
    weights = run.folder.weights(stage)
    metrics: dict[str, Any] = {}
    for line in read_lines(folder / "metrics.jsonl"):
        if line["step"] == weights["step"]:
            figures_of_line = {without_split(name): value for name, value in line.items()}
            metrics |= {name: value for (name, split), value in figures_of_line.items() if split == "val"}
    timing = read_lines(folder / "timing.jsonl")
    if timing:
        file = folder / "timing.jsonl"
        metrics[f"{stage}/seconds"] = number_in(timing[-1], SECONDS, file)
        metrics[f"{stage}/items_per_second"] = statistics.median(number_in(line, RATE, file) for line in timing)
    return metrics


def number_in(line: dict[str, Any], name: str, file: Path) -> float:
    if not is_number(line.get(name)):
        raise UserError(f"{file} is damaged: it has no {name} at step {line['step']}; remove it to go on without it")
    return line[name]


def is_plotted_histogram(name: str, value: Any) -> bool:
    entry = find(name)
    return isinstance(value, dict) and entry is not None and entry.panel is not None


def store_counts(store: CodeStore) -> list[Tensor]:
    """Count the codes of a store: M x (K_m,)."""
    counts = [torch.zeros(size, dtype=torch.int64) for size in store.codebook_sizes]
    for indices in torch.arange(len(store)).split(1000):
        for total, codes in zip(counts, store.codes(indices)):
            total += count_codes(codes, len(total))
    return counts


def draw_samples(run: Run, trained: TrainedModel) -> None:
    """Draw samples of the finished prior into samples.png, one row per class, or per value of its first category.

    Data that is not images of 8 bits is also written to samples/<class>.<suffix>, one item per class; without classes, one
    per row.
    """
    names, labels_of_rows = run.sample_rows()
    count = SAMPLES_PER_CLASS * (len(names) or 4)
    labels = labels_of_rows.repeat_interleave(SAMPLES_PER_CLASS, dim=0) if names else None
    items = run.data.to_items(trained.sample(range(count), labels))
    captions = Captions(
        rows=names or [f"from seed {row * SAMPLES_PER_CLASS}" for row in range(count // SAMPLES_PER_CLASS)]
    )
    write_png(run.folder.path / "samples.png", grid(rows_of(run.data.picture(items), SAMPLES_PER_CLASS), captions))
    if run.data.suffix != ".png" or items.dtype != torch.uint8:
        firsts = range(0, count, SAMPLES_PER_CLASS)
        titles = names or [str(seed) for seed in firsts]
        for title, i in zip(titles, firsts):
            run.data.save(run.folder.path / "samples" / path_part(title), items[i])
