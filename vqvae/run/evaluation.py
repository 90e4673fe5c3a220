"""A finished run measured on any split of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.config.compose import plain
from vqvae.data.base import Data
from vqvae.data.codes import CodeEvaluationSet, bits_of_uniform
from vqvae.data.items import ItemBatch, ItemEvaluationSet
from vqvae.inference.trained_model import TrainedModel
from vqvae.losses.likelihood import BITS
from vqvae.losses.objective import Objective
from vqvae.metrics.reconstruction import (
    MS_SSIM,
    multi_scale_ssim,
    reconstruction_metrics,
    reconstruction_sums,
    scales_of,
)
from vqvae.metrics.registry import figure
from vqvae.run.folder import STAGES
from vqvae.run.judged import Judgment, Wanted
from vqvae.run.run import Run, sound_observers
from vqvae.stages.autoencoder import AutoencoderStage
from vqvae.training.stage import evaluate

SEARCHED_AT_A_TIME = 128  # items

for stage in STAGES:
    figure(f"{stage}/parameters", "trained weights")
UNIFORM = figure("prior/bits_per_code_uniform", "mean log2 K: a prior that knows nothing")
figure(
    "autoencoder/searched_{figure}",
    "the figure of that name with the codes found by code search (search_sweeps), in place of the encoder's",
)
figure("model/bits_per_dim_codes", "prior/bits_per_item over channels times positions", "lower")
figure("model/bits_per_dim_codes_bound", "prior/bits_per_item_bound over channels times positions", "lower")
figure(
    "model/bits_per_dim",
    "reconstruction + codes: an upper bound on the model's mean -log2 p(x), given the class if there is one",
    better="lower",
    sweep=True,
)
figure(
    "model/bits_per_dim_bound",
    "reconstruction + the bound of the codes: an upper bound as bits_per_dim is",
    better="lower",
)


@torch.no_grad()
def evaluate_run(
    run: Run, split: str, batch_size: int, search: int, wanted: Wanted | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics over a whole split, in float32, and what they were measured on. An unfinished prior is left out.

    search: sweeps of code search for a second set of reconstruction metrics; 0: none.
    """
    wanted = wanted or Wanted()
    trained, variance = run.trained_model(), run.variance()
    judgment = None if wanted.backbone is None else Judgment.of(run, trained, split, wanted)
    loader = run.loader(split)
    parts = (trained.model, Objective(trained.head, {}), variance, run.data.picture_of)
    stage = AutoencoderStage(*parts, observers=sound_observers(run.data))
    metrics = evaluate(stage, ItemEvaluationSet(run.data, loader), batch_size, len(loader), "reconstructing")
    metrics |= searched_figures(run, trained, split, search)
    if "perceptual" in wanted.metrics and len(run.data.size) == 2 and scales_of(run.data.size) > 1:
        items = ItemEvaluationSet(run.data, loader)
        metrics |= evaluate(MultiScale(trained), items, SEARCHED_AT_A_TIME, len(loader), "comparing scales")
    metrics["autoencoder/parameters"] = sum(p.numel() for p in trained.model.parameters())
    if (prior := trained.prior) is not None and "likelihood" in wanted.metrics:
        store = run.code_store(trained, split)
        codes = CodeEvaluationSet(store, None, run.device)
        metrics |= evaluate(run.prior_stage(prior, trained), codes, batch_size, len(store), "scoring codes")
        metrics[UNIFORM] = bits_of_uniform(store.codebook_sizes, store.code_shapes)
        metrics["prior/parameters"] = sum(p.numel() for p in prior.parameters())
    metrics |= bits_per_dim(metrics, run.data)
    for section, group in (("autoencoder/", "reconstruction"), ("codebook/", "codebook")):
        if group not in wanted.metrics:
            metrics = {name: value for name, value in metrics.items() if not name.startswith(section)}
    metrics |= {} if judgment is None else judgment.figures()
    about = {
        "run_dir": str(run.folder.path),
        "split": loader.split.name,
        "items": len(loader),
        "unreadable_items": len(distributed.any_row(loader.unreadable, len(loader))),
        "data": plain(run.cfg)["data"],
        "training_variance": variance,
        "value_range": list(run.data.value_bounds),
        "precision": "float32",
        "judged": None if judgment is None else judgment.protocol(),
    }
    return metrics, about


@dataclass
class Reconstructions:
    """Reconstructions by code search, for `evaluate`."""

    trained: TrainedModel
    variance: float
    search: int

    def evaluate(self, batch: ItemBatch) -> dict[str, Tensor]:
        return reconstruction_sums(self.trained.reconstruct(batch.x, self.search), batch.x)

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        return dict(reconstruction_metrics(sums, self.variance))


@dataclass
class MultiScale:
    """MS-SSIM of reconstructions, for `evaluate`."""

    trained: TrainedModel

    def evaluate(self, batch: ItemBatch) -> dict[str, Tensor]:
        found = multi_scale_ssim(self.trained.reconstruct(batch.x), batch.x)
        return {"similarity": found.sum(), "items": found.new_tensor(float(len(found)))}

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        scales = str(scales_of(self.trained.data.size))
        return {MS_SSIM.replace("{scales}", scales): float(sums["similarity"] / sums["items"])}


def searched_figures(run: Run, trained: TrainedModel, split: str, search: int) -> dict[str, Any]:
    """Figures of a split with code search, `autoencoder/searched_<name>`; none for search=0. Call it on all ranks."""
    if not search:
        return {}
    loader, searching = run.loader(split), Reconstructions(trained, run.variance(), search)
    items = ItemEvaluationSet(run.data, loader)
    metrics = evaluate(searching, items, SEARCHED_AT_A_TIME, len(loader), "searching codes")
    return {name.replace("/", "/searched_"): value for name, value in metrics.items()}


def bits_per_dim(metrics: dict[str, Any], data: Data) -> dict[str, float]:
    """Metrics of both stages -> what the codes cost and what the whole item costs, in bits per dim.

    -log p(x) <= -log p(x | codes(x)) - log p(codes(x)), where the prior may give a bound itself (`_bound` in its names).
    Nothing where the reconstruction loss is no likelihood, or there is no prior.
    """
    figures: dict[str, float] = {}
    dims = data.channels * math.prod(data.size)
    for bound in ("", "_bound"):
        if BITS in metrics and f"prior/bits_per_item{bound}" in metrics:
            codes = metrics[f"prior/bits_per_item{bound}"] / dims
            figures[f"model/bits_per_dim_codes{bound}"] = codes
            figures[f"model/bits_per_dim{bound}"] = metrics[BITS] + codes
    return figures
