"""Figures in the features of a pretrained network: how alike reconstructions and samples look to it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqvae.backbones.base import Backbone
from vqvae.backbones.named import load_backbone
from vqvae.data.items import ItemBatch, ItemEvaluationSet
from vqvae.data.loader import ItemLoader
from vqvae.data.sampler import chunks_of_rank
from vqvae.errors import UserError
from vqvae.inference.trained_model import TrainedModel
from vqvae.losses.perceptual import check_images, perceptual_distance, slices
from vqvae.metrics.frechet import frechet_distance, moments
from vqvae.metrics.registry import figure
from vqvae.run.run import Run
from vqvae.training.stage import evaluate

log = logging.getLogger(__name__)
AT_A_TIME = 128  # items
ENLARGED = "images below 64 pixels are enlarged"
figure(
    "autoencoder/perceptual_{backbone}",
    "mean over items of the distance in the features of that pretrained network (0 to 4, with vgg16_lpips LPIPS); "
    + ENLARGED,
    better="lower",
)
figure(
    "autoencoder/rfd_{backbone}",
    "Frechet distance of the reconstructions of all items of the split to the items, in the pooled features of that network "
    f"(no FID, which is of another network); {ENLARGED}",
    better="lower",
)
figure(
    "autoencoder/rfd_floor_{backbone}",
    "the same distance of as many training items (for split=train: validation items) to the items: what is reached by images "
    "as real as they are",
)
figure(
    "prior/gfd_{backbone}",
    "the same distance of samples to the items of the split: seeds 0 .. samples - 1, classes in turn, the run's own guidance",
    better="lower",
)


@dataclass
class Judge:
    """A pretrained network that looks at a set of images; its name as figures have it."""

    backbone: Backbone
    name: str
    width: int  # features F

    @classmethod
    def load(cls, run: Run, name: str, file: str | None) -> Judge:
        """Raises UserError where the network cannot be loaded, or sees no such items."""
        try:
            check_images(run.data.channels, run.data.size)
            backbone = load_backbone(name, file).to(run.device)
        except UserError as error:
            raise UserError(f"backbone={name}: {str(error).replace('file=', 'backbone_file=')}") from error
        blank = torch.zeros(1, run.data.channels, *run.data.size[-2:], device=run.device)
        return cls(backbone, re.sub(r"\W", "_", name), backbone.pooled(blank).shape[1])

    def moments(self, images: Any, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Moments of a whole set's features, after `change`; on all ranks the same. images: an evaluation set."""
        measured: Tensor = evaluate(Features(self.backbone, change), images, AT_A_TIME)["moments"]
        return measured


@dataclass
class Features:
    """Moments of features, for `evaluate`."""

    backbone: Backbone
    change: Callable[[Tensor], Tensor] | None

    def evaluate(self, batch: ItemBatch) -> dict[str, Tensor]:
        x = batch.x if self.change is None else self.change(batch.x)
        return {"moments": moments(self.backbone.pooled(slices(x)))}

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        return sums


@dataclass
class Distances:
    """Distances between items and their reconstructions, for `evaluate`."""

    trained: TrainedModel
    judge: Judge

    def evaluate(self, batch: ItemBatch) -> dict[str, Tensor]:
        distances = perceptual_distance(self.judge.backbone, slices(self.trained.reconstruct(batch.x)), slices(batch.x))
        return {"distance": distances.double().sum(), "images": distances.new_tensor(float(len(distances))).double()}

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        return {f"autoencoder/perceptual_{self.judge.name}": float(sums["distance"] / sums["images"])}


@dataclass
class Samples:
    """The first `count` samples of a model, as an evaluation set; classes in turn."""

    trained: TrainedModel
    count: int

    def batches(self, chunk: int) -> Iterator[ItemBatch]:
        classes = len(self.trained.class_names)
        for seeds in chunks_of_rank(self.count, chunk):
            labels = seeds % classes if classes else torch.full_like(seeds, -1)
            x = self.trained.sample(seeds.tolist(), labels)
            yield ItemBatch(x.to(self.trained.device), labels)


def judged_figures(run: Run, trained: TrainedModel, split: str, judge: Judge, samples: int) -> dict[str, Any]:
    """Figures of a split and of `samples` samples by a pretrained network. Call it on all ranks.

    Frechet distances are left out, with a warning, where the split has no more items than the network has features.
    Raises UserError for samples without a prior, and for too few of them.
    """
    loader, name = run.loader(split), judge.name
    items = ItemEvaluationSet(run.data, loader)
    if samples and trained.prior is None:
        raise UserError(f"samples={samples} need a prior, and {run.folder.path} has no finished one")
    if 0 < samples <= judge.width:
        raise UserError(f"samples={samples} are too few: {name} has {judge.width} features, and needs more than that")
    metrics = evaluate(Distances(trained, judge), items, AT_A_TIME)
    if len(loader) <= judge.width:
        log.warning(
            "no Frechet distances: %s has %d features, and needs more items than %d", name, judge.width, len(loader)
        )
        return metrics
    real = judge.moments(items)
    made = judge.moments(items, trained.reconstruct)
    metrics[f"autoencoder/rfd_{name}"] = frechet_distance(made, real)
    others = run.split("val" if split == "train" else "train").limited(len(loader))
    if len(others) > judge.width:
        other = judge.moments(ItemEvaluationSet(run.data, ItemLoader(run.data, others, run.device)))
        metrics[f"autoencoder/rfd_floor_{name}"] = frechet_distance(other, real)
    if samples:
        metrics[f"prior/gfd_{name}"] = frechet_distance(judge.moments(Samples(trained, samples)), real)
    return metrics
