"""What is kept of a set of images as a pretrained network sees them: sums that do not grow with the set, and some vectors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.data.sampler import chunks_of_rank
from vqvae.judging.judge import Judge
from vqvae.metrics.frechet import moments
from vqvae.storage.files import write_bytes

FOLDS = 5  # parts of a set, for the error of its distances
PARTS = 10  # of the Inception score
KEPT = 10_000  # vectors


class ImageSet(Protocol):
    """Batches of images `x` with labels: this rank's share, in chunks dealt to ranks in turn."""

    def batches(self, chunk: int) -> Iterator[Any]: ...


@dataclass
class Statistics:
    """Sums over the feature vectors of a set, and some of the vectors. All in float64 but `kept`.

    Parts of the set, and the vectors that are kept, are random, because samples, for one, are of each class in turn.

    Args:
        folds: moments (FOLDS, 1 + F, 1 + F) of each fifth of the vectors.
        kept: at most KEPT vectors (n, F), float32.
        labels: of the kept vectors (n,), -1 for no class.
        class_sums: sums of (1, vector) over each class (C, 1 + F).
        class_moments: moments of each class (C, 1 + F, 1 + F); C is 0 where the set has too few images for that.
        probabilities: sums of a classifier's probabilities p and of p log p (PARTS, 1 + K); K is 0 without a classifier.
    """

    folds: Tensor
    kept: Tensor
    labels: Tensor
    class_sums: Tensor
    class_moments: Tensor
    probabilities: Tensor

    @property
    def moments(self) -> Tensor:
        """Moments of the whole set (1 + F, 1 + F)."""
        return self.folds.sum(0)

    def __len__(self) -> int:
        return round(float(self.folds[:, 0, 0].sum()))

    @classmethod
    def empty(cls, judge: Judge, count: int, classes: int) -> Statistics:
        """Of `count` vectors that are still to come."""
        double: dict[str, Any] = {"dtype": torch.float64, "device": distributed.device()}
        side = judge.width + 1
        known = judge.backbone.classes
        return cls(
            torch.zeros(FOLDS, side, side, **double),
            torch.zeros(min(count, KEPT), judge.width, device=distributed.device()),
            torch.zeros(min(count, KEPT), **double),
            torch.zeros(classes, side, **double),
            torch.zeros(classes if count >= classes * side else 0, side, side, **double),
            torch.zeros(PARTS, known + 1 if known else 1, **double),
        )

    def add(self, judge: Judge, features: Tensor, labels: Tensor, places: Tensor) -> None:
        """Add vectors (B, F) with labels (B,) at `places` (B,) of the set in random order."""
        for fold in range(FOLDS):
            self.folds[fold] += moments(features[places % FOLDS == fold])
        is_kept = places < len(self.kept)
        self.kept[places[is_kept]] = features[is_kept]
        self.labels[places[is_kept]] = labels[is_kept].double()
        ones = torch.cat([features.new_ones(len(features), 1), features], 1).double()
        has_class = labels >= 0
        if len(self.class_sums):
            self.class_sums.index_add_(0, labels[has_class], ones[has_class])
        for label in labels[has_class].unique().tolist() if len(self.class_moments) else []:
            self.class_moments[label] += moments(features[labels == label])
        if self.probabilities.shape[1] > 1:
            p = judge.backbone.probabilities(features).double()  # (B, K)
            both = torch.cat([p, torch.special.xlogy(p, p).sum(1, keepdim=True)], 1)
            self.probabilities.index_add_(0, places % PARTS, both)

    def over_ranks(self) -> Statistics:
        """The sums of all ranks' statistics, on all ranks."""
        return Statistics(*(distributed.all_reduce_sum([getattr(self, field.name)])[0] for field in fields(self)))

    def save(self, file: Path) -> None:
        """Write to a file, whole or not at all."""
        written = io.BytesIO()
        np.savez(written, **{field.name: getattr(self, field.name).cpu().numpy() for field in fields(self)})
        write_bytes(file, written.getvalue())

    @classmethod
    def read(cls, file: Path) -> Statistics | None:
        """Read what `save` wrote; None where the file is not there or is damaged."""
        try:
            with np.load(file, allow_pickle=False) as arrays:
                tensors = [torch.from_numpy(arrays[field.name]).to(distributed.device()) for field in fields(cls)]
        except Exception:  # numpy and zipfile raise many kinds
            return None
        return cls(*tensors)


def collect(
    judge: Judge,
    images: ImageSet,
    count: int,
    classes: int,
    what: str,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Statistics:
    """Statistics of `count` items, after `change` of x (B, C, *S). Call it on all ranks; all get the same.

    classes: number of classes C. what: said beside the progress bar.
    """
    statistics, views = Statistics.empty(judge, count * judge.views, classes), judge.views
    order = torch.randperm(count * views, generator=torch.Generator().manual_seed(0))  # the same on all ranks
    starts = [int(chunk[0]) for chunk in chunks_of_rank(count, judge.items_at_a_time)]
    bar = tqdm(starts, desc=f"judging {what}", leave=False, disable=distributed.bar_hidden())
    for start, batch in zip(bar, images.batches(judge.items_at_a_time)):
        features = judge.features(batch.x if change is None else change(batch.x))
        places = order[start * views : start * views + len(features)].to(features.device)
        labels = batch.labels.to(features.device).repeat_interleave(views)
        statistics.add(judge, features, labels, places)
    return statistics.over_ranks()
