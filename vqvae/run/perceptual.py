"""The perceptual distance of reconstructions as a figure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vqvae.backbones.base import Backbone
from vqvae.backbones.named import load_backbone
from vqvae.data.items import ItemBatch, ItemEvaluationSet
from vqvae.errors import UserError
from vqvae.inference.trained_model import TrainedModel
from vqvae.losses.perceptual import check_images, perceptual_distance, slices
from vqvae.metrics.registry import figure
from vqvae.run.run import Run
from vqvae.training.stage import evaluate

AT_A_TIME = 128  # items
figure(
    "autoencoder/perceptual_{backbone}",
    "mean over items of the distance in the features of that pretrained network (0 to 4, with vgg16_lpips LPIPS); "
    "images below 64 pixels are enlarged",
    better="lower",
)


@dataclass
class Distances:
    """Distances between items and their reconstructions, for `evaluate`."""

    trained: TrainedModel
    backbone: Backbone
    name: str

    def evaluate(self, batch: ItemBatch) -> dict[str, Tensor]:
        distances = perceptual_distance(self.backbone, slices(self.trained.reconstruct(batch.x)), slices(batch.x))
        return {"distance": distances.double().sum(), "images": distances.new_tensor(float(len(distances))).double()}

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        return {self.name: float(sums["distance"] / sums["images"])}


def perceptual_figures(
    run: Run, trained: TrainedModel, split: str, backbone: str | None, file: str | None
) -> dict[str, Any]:
    """Perceptual distance over a split, by a pretrained network (see `load_backbone`); none for None. Call it on all ranks.

    Raises UserError where the network cannot be loaded, or sees no such items.
    """
    if backbone is None:
        return {}
    try:
        check_images(run.data.channels, run.data.size)
        network = load_backbone(backbone, file).to(run.device)
    except UserError as error:
        raise UserError(f"perceptual={backbone}: {error}") from error
    name = "autoencoder/perceptual_" + re.sub(r"\W", "_", backbone)
    items = ItemEvaluationSet(run.data, run.loader(split))
    return evaluate(Distances(trained, network, name), items, AT_A_TIME)
