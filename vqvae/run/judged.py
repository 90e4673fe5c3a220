"""A run judged by a pretrained network: perceptual distances, and distances between sets of images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data.cache import claim
from vqvae.data.items import ItemBatch, ItemEvaluationSet
from vqvae.data.loader import ItemLoader
from vqvae.errors import UserError
from vqvae.inference.trained_model import TrainedModel
from vqvae.judging.drawn import DrawnSamples
from vqvae.judging.figures import KINDS, Sets, compared, floors, frechet_figures, is_enough, named
from vqvae.judging.judge import Judge
from vqvae.judging.statistics import Statistics, collect
from vqvae.losses.perceptual import perceptual_distance, slices
from vqvae.metrics.frechet import Gaussian
from vqvae.metrics.registry import figure
from vqvae.run.run import Run
from vqvae.training.stage import evaluate

log = logging.getLogger(__name__)
figure(
    "autoencoder/perceptual_{backbone}",
    "mean over items of the distance in the features of that pretrained network (0 to 4, with vgg16_lpips LPIPS); "
    "images below 64 pixels are enlarged",
    better="lower",
)


METRICS = ("reconstruction", "codebook", "likelihood", "perceptual", *KINDS)


@dataclass(frozen=True)
class Wanted:
    """What a run is judged by.

    Args:
        metrics: groups of figures, of METRICS.
        backbone: name of a pretrained network, or None.
        file: its weights; None: those of its package, or a download.
        samples: number of samples; 0: none.
        settings: of sampling, where they differ from the run's own.
        reference: .npz file with `mu` (F,) and `sigma` (F, F) in place of the split's items, or None.
    """

    metrics: tuple[str, ...] = METRICS
    backbone: str | None = None
    file: str | None = None
    samples: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None


@dataclass
class Judgment:
    """Judges one split of a run. Its methods are called on all ranks."""

    run: Run
    trained: TrainedModel
    split: str
    judge: Judge
    wanted: Wanted

    @classmethod
    def of(cls, run: Run, trained: TrainedModel, split: str, wanted: Wanted) -> Judgment:
        """Load the network. Raises UserError for what cannot be judged, before anything takes long."""
        assert wanted.backbone is not None
        judge = Judge.load(wanted.backbone, wanted.file, run.data.channels, run.data.size, run.device)
        samples = wanted.samples
        if samples and trained.prior is None:
            raise UserError(f"samples={samples} need a prior, and {run.folder.path} has no finished one")
        if samples and not is_enough(judge, samples * judge.views):
            needed = f"{judge.name} has {judge.width} features, and needs more than that"
            raise UserError(f"samples={samples} are too few: {needed}")
        return cls(run, trained, split, judge, wanted)

    def figures(self) -> dict[str, Any]:
        """All figures that are asked for, on rank 0.

        Distances of sets are left out, with a warning, where the split has no more images than the network has features.
        """
        found: dict[str, Any] = {}
        kinds = set(self.wanted.metrics) & set(KINDS)
        if "perceptual" in self.wanted.metrics and self.judge.has_perceptual_distance:
            distances, items = Distances(self.trained, self.judge), self.items(self.split)
            at_once = self.judge.items_at_a_time
            found |= evaluate(distances, items, at_once, len(items.loader), "comparing images")
        count = len(self.run.loader(self.split)) * self.judge.views
        if kinds and not is_enough(self.judge, count):
            width, name = self.judge.width, self.judge.name
            log.warning("no distances: %s has %d features, and needs more images than %d", name, width, count)
            return found
        return found | self.of_sets(kinds) if kinds else found

    def of_sets(self, kinds: set[str]) -> dict[str, float]:
        """Figures of sets of images."""
        found: dict[str, float] = {}
        made = {"autoencoder/r": self.collected(self.split, "reconstructions", self.trained.reconstruct)}
        if self.wanted.samples:
            made["prior/g"] = self.of_samples()
        if self.wanted.reference is not None:
            given = read_reference(self.wanted.reference, self.judge)
            for start, one in made.items():
                found |= named(self.judge, start, frechet_figures(self.judge, one, given))
            return found
        real, other = self.real(self.split, None), self.others()
        if real is None:  # rank 0 alone has what was kept
            return found
        for start, one in made.items():
            found |= compared(self.judge, start, Sets(one, real, other), kinds)
        return found | ({} if other is None else floors(self.judge, real, other, kinds))

    def protocol(self) -> dict[str, Any]:
        """How it was judged: for those who compare figures."""
        side = "x".join(map(str, self.judge.backbone.size or ()))
        return {
            "network": self.judge.name,
            "network_fingerprint": self.judge.fingerprint,
            "resize": f"to {side}, antialiased bicubic as Pillow does"
            if not self.judge.has_perceptual_distance
            else "images with a side below 64 pixels to 64, bilinear",
            "images": "float32 in [-1, 1], not rounded to bytes, given the network's own mean and range",
            "reconstructions": len(self.run.loader(self.split)),
            "samples": self.wanted.samples,
            "seeds": f"0 .. {self.wanted.samples - 1}, classes in turn" if self.wanted.samples else None,
            "sampling": asdict(self.trained.sampling_with(self.wanted.settings)) if self.wanted.samples else None,
            "reference": self.wanted.reference
            or f"{len(self.run.loader(self.split))} items of split '{self.split}', {self.run.known.fingerprint(self.split)}",
        }

    def items(self, split: str, limit: int | None = None) -> ItemEvaluationSet:
        loader = self.run.loader(split)
        if limit is not None and limit < len(loader):
            loader = ItemLoader(self.run.data, self.run.split(split).limited(limit), self.run.device)
        return ItemEvaluationSet(self.run.data, loader)

    def collected(
        self, split: str, what: str, change: Callable[[Tensor], Tensor] | None = None, limit: int | None = None
    ) -> Statistics:
        items = self.items(split, limit)
        return collect(self.judge, items, len(items.loader), len(self.run.data.class_names), what, change)

    def of_samples(self) -> Statistics:
        """Statistics of samples, which are drawn unless they are there."""
        samples = DrawnSamples(
            self.trained, self.wanted.samples, self.wanted.settings, self.run.folder.path / "drawn_samples"
        )
        samples.draw()
        return collect(self.judge, samples, self.wanted.samples, len(self.run.data.class_names), "samples")

    def others(self) -> Statistics | None:
        """Statistics of as many items of the other split, if they are enough."""
        split = "val" if self.split == "train" else "train"
        count = min(len(self.run.loader(self.split)), len(self.run.split(split)))
        return self.real(split, count) if is_enough(self.judge, count * self.judge.views) else None

    def real(self, split: str, limit: int | None) -> Statistics | None:
        """Statistics of items, kept beside the decoded ones for all runs on the same data: then on rank 0 alone."""
        folder = Path(self.run.data.cache_dir).expanduser()
        key = f"{self.run.known.fingerprint(split)}-{self.judge.fingerprint}-{limit or 'all'}"
        file = folder / f"{key}-statistics-2.npz"
        kept = Statistics.read(file) if distributed.is_main() else None
        if distributed.broadcast_object(kept is not None):
            return kept
        fresh = self.collected(split, f"items of split '{split}'", limit=limit)
        if distributed.is_main():
            claim(folder)
            fresh.save(file)
        return fresh


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


def read_reference(file: str, judge: Judge) -> Gaussian:
    """Published statistics: arrays `mu` (F,) and `sigma` (F, F) of an .npz file. Raises UserError for others."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
    except Exception as error:  # numpy and zipfile raise many kinds
        raise UserError(f"reference={file} holds no arrays mu and sigma ({error})") from error
    if mean.shape != (judge.width,) or covariance.shape != (judge.width, judge.width):
        raise UserError(
            f"reference={file} has mu of the shape {tuple(mean.shape)} and sigma of {tuple(covariance.shape)}, and "
            f"{judge.name} has {judge.width} features: it is of another network"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"reference={file} holds NaN or infinite numbers")
    return Gaussian(mean.to(distributed.device()), covariance.to(distributed.device()))
