"""The figures of a run, each with the protocol that it was measured by."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae import __version__, distributed
from vqvae.data.code_store import CodeStore
from vqvae.data.codes import bits_of_uniform
from vqvae.images import grid, rows_of, to_uint8, write_png
from vqvae.inference.trained_model import TrainedModel
from vqvae.metrics.codebook import count_codes
from vqvae.run.evaluation import bits_per_dim, searched_figures
from vqvae.run.folder import STAGES
from vqvae.run.plots import HISTOGRAMS, plot_codes, plot_curves
from vqvae.run.run import Run
from vqvae.run.tables import table
from vqvae.storage.files import write_json
from vqvae.training.logger import read_lines

SAMPLES_PER_CLASS = 8

PROTOCOLS = {
    "mse": "mean squared error over all pictures, values in [0, 1] (sounds: companded), reconstructions clamped, float32",
    "mse_over_variance": "mse over the variance of the training pictures",
    "psnr_db": "PSNR of the mean squared error over the split",
    "psnr_mean_db": "mean over pictures of each picture's PSNR",
    "ssim": "mean SSIM over pictures, gaussian window 11, sigma 1.5, data range 1, per channel",
    "searched_*": "the figure of that name with the codes found by code search (search_sweeps), in place of the encoder's",
    "codebook*/perplexity": "exp of the entropy of the code counts summed over the whole split",
    "codebook*/usage": "share of codes that occur in the split",
    "codebook*/used_codes": "codes that occur in the split",
    "codebook*/dead_codes": "codes that do not occur in the split",
    "bits_per_code": "mean negative log2-likelihood of the prior over all codes of the split, teacher-forced",
    "bits_per_code_bound": "an upper bound on bits_per_code, of a prior whose likelihood is not known",
    "bits_per_picture": "bits_per_code times codes per picture",
    "bits_per_picture_bound": "bits_per_code_bound times codes per picture",
    "overfitting_gap": "bits per code of the validation split less those of as many training pictures, spread over the set",
    "bits_per_dim_reconstruction": "mean -log2 p(x | codes) over channels times positions, x in 0 .. 255",
    "bits_per_dim_codes": "bits_per_picture over channels times positions",
    "bits_per_dim_codes_bound": "bits_per_picture_bound over channels times positions",
    "bits_per_dim": "reconstruction + codes: an upper bound on the model's mean -log2 p(x), given the class if there is one",
    "bits_per_dim_bound": "reconstruction + the bound of the codes: an upper bound as bits_per_dim is",
    "bits_per_code_uniform": "mean log2 K: a prior that knows nothing",
    "*_seconds": "wall clock of training steps, evaluation and checkpoints left out",
    "*_pictures_per_second": "pictures (or their codes) trained on per second, median over log intervals",
    "*_parameters": "trained weights",
}


def figures(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics -> {name: {value, protocol}} of those that have a protocol; loss terms and histograms have none."""
    found = {}
    for name, value in metrics.items():
        for pattern, protocol in PROTOCOLS.items():
            if re.fullmatch(pattern.replace("*", r"\w+?"), name):
                found[name] = {"value": value, "protocol": protocol}
    return found


def print_figures(title: str, found: dict[str, dict[str, Any]]) -> None:
    """A table on the terminal."""
    rows = [[name, one["value"], one["protocol"]] for name, one in found.items()]
    print(f"\n{title}\n{table(['figure', 'value', 'protocol'], rows)}")


def summarise(run: Run, trained: TrainedModel) -> float | None:
    """Write images of curves, codes and samples, summary.json, and a table. Returns the last stage's monitored metric."""
    folder = run.folder
    looks: list[Path] = []
    metrics: dict[str, Any] = {}
    store = run.code_store(trained, "val") if trained.codebook_sizes else None
    searched = searched_figures(run, trained, "val", run.cfg.search_sweeps)
    if not distributed.is_main():
        return None
    for stage in STAGES:
        if folder.weights_file(stage):
            pictures = folder.stage(stage) / "pictures"
            metrics |= stage_figures(run, stage)
            plot_curves(read_lines(folder.stage(stage) / "metrics.jsonl"), pictures / "curves.png")
            looks += [*sorted(pictures.glob("reconstructions_*.png"))[-1:], pictures / "curves.png"]
    if store is not None:
        looks.append(folder.path / "codebook.png")
        histograms = {name: value for name, value in metrics.items() if name.split("/")[-1] in HISTOGRAMS}
        plot_codes(store_counts(store), histograms, looks[-1])
    if trained.prior is not None and store is not None:
        metrics["bits_per_code_uniform"] = bits_of_uniform(store.codebook_sizes, store.code_shapes)
        looks += draw_samples(run, trained)
    metrics |= searched | bits_per_dim(metrics, run.data)
    found = figures(metrics)
    write_json(folder.path / "summary.json", {"version": __version__, "figures": found})
    print_figures(f"{folder.path}, on its validation pictures", found)
    print("\nlook at:\n" + "\n".join(f"  {path}" for path in looks))
    monitors = ("bits_per_code", "bits_per_code_bound", "mse")
    return next((metrics[name] for name in monitors if name in metrics), None)


def stage_figures(run: Run, stage: str) -> dict[str, Any]:
    """Validation metrics of the step whose weights were kept, seconds and speed of training."""
    folder = run.folder.stage(stage)
    weights = run.folder.weights(stage)
    metrics: dict[str, Any] = {}
    for line in read_lines(folder / "metrics.jsonl"):
        if line["step"] == weights["step"]:
            metrics |= {name.removeprefix("val/"): value for name, value in line.items() if name.startswith("val/")}
    timing = read_lines(folder / "timing.jsonl")
    if timing:
        metrics[f"{stage}_seconds"] = timing[-1]["timing/seconds"]
        rates = [line["timing/pictures_per_second"] for line in timing]
        metrics[f"{stage}_pictures_per_second"] = statistics.median(rates)
    return metrics


def store_counts(store: CodeStore) -> list[Tensor]:
    """Count the codes of a store: M x (K_m,)."""
    counts = [torch.zeros(size, dtype=torch.int64) for size in store.codebook_sizes]
    for indices in torch.arange(len(store)).split(1000):
        for total, codes in zip(counts, store.codes(indices)):
            total += count_codes(codes, len(total))
    return counts


def draw_samples(run: Run, trained: TrainedModel) -> list[Path]:
    """Draw samples of the finished prior into samples.png, one row per class. Returns the files that were written.

    Data that is not images is also written to samples/<class>.<suffix>, one item per class; without classes, one per row.
    """
    names = run.data.class_names[:10]
    count = SAMPLES_PER_CLASS * (len(names) or 4)
    labels = torch.arange(len(names)).repeat_interleave(SAMPLES_PER_CLASS) if names else None
    items = to_uint8(trained.sample(range(count), labels))
    files = [run.folder.path / "samples.png"]
    write_png(files[0], grid(rows_of(run.data.show(items), SAMPLES_PER_CLASS)))
    if run.data.suffix != files[0].suffix:
        firsts = range(0, count, SAMPLES_PER_CLASS)
        titles = names or [str(seed) for seed in firsts]
        files += [run.data.save(run.folder.path / "samples" / title, items[i]) for title, i in zip(titles, firsts)]
    return files
