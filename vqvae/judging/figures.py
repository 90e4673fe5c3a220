"""Figures that compare what a model made with real images, in the features of a pretrained network."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae.judging.judge import Judge
from vqvae.judging.statistics import FOLDS, Statistics
from vqvae.metrics.frechet import Gaussian, frechet_distance
from vqvae.metrics.likeness import inception_score, kernel_distance, manifold_figures
from vqvae.metrics.registry import figure

MADE = {"autoencoder/r": "reconstructions", "prior/g": "samples"}  # start of the figures' names -> of what they are
KINDS = ("frechet", "kernel", "manifold", "classes")  # groups of figures
RIDGE = 1e-3  # of the mean variance of features, added to them by the linear classifier

for start, what in MADE.items():
    figure(
        start + "fd_{backbone}",
        f"Frechet distance of {what} to the items of the split, in the pooled features of that network (no FID, which is of "
        "Inception alone)",
        better="lower",
    )
    figure(
        start + "fd_error_{backbone}",
        "standard error of that distance, the items being given: jackknife over fifths of the images",
    )
    figure(
        start + "kd_{backbone}",
        f"unbiased squared kernel distance of {what} to the items, (x y / F + 1)^3, mean over blocks of 1,000 of at most "
        "10,000 images",
        better="lower",
    )
    figure(start + "kd_error_{backbone}", "standard error of that mean")
    for name, means in {
        "precision": f"share of {what} nearer to an item than its third neighbor among the items",
        "recall": f"share of items nearer to one of the {what} than its third neighbor among them",
        "density": f"how many items have each of the {what} nearer than their fifth neighbor, in the mean, over 5",
        "coverage": f"share of items that have one of the {what} nearer than their fifth neighbor among the items",
    }.items():
        figure(f"{start}{name}_{{backbone}}", f"{means}; of at most 10,000 images each", better="higher")
    figure(
        start + "fd_per_class_{backbone}",
        f"Frechet distance of the {what} of a class to its items, mean over classes",
        better="lower",
    )
    figure(
        start + "accuracy_{backbone}",
        f"share of {what} whose class a linear classifier finds that was fitted to the network's features of as many "
        "training items (ridge regression)",
        better="higher",
    )
    figure(
        start + "inception_score_{backbone}",
        "Inception score with the network's own classes, mean over 10 parts (of Inception's alone is it the published one)",
        better="higher",
    )
    figure(start + "inception_score_std_{backbone}", "its standard deviation over the parts")
    figure(
        start + "fid_inception", f"FID: Frechet distance of {what} to the items, Inception's 2,048 features", "lower"
    )
    figure(
        start + "fid_error_inception",
        "standard error of the FID, the items being given: jackknife over fifths of the images",
    )
    figure(start + "fid_per_class_inception", f"FID of the {what} of a class to its items, mean over classes", "lower")
    figure(start + "kid_inception", f"KID: unbiased squared kernel distance of {what} to the items, as kd_ is", "lower")
    figure(start + "kid_error_inception", "standard error of the KID")
FLOOR = (
    "the same of as many training items (for split=train: validation items) to the items of the split: what is reached by "
    "images as real as they are"
)
figure("autoencoder/rfd_floor_{backbone}", FLOOR)
figure("autoencoder/rkd_floor_{backbone}", FLOOR)
figure("autoencoder/rfid_floor_inception", FLOOR)
figure("autoencoder/rkid_floor_inception", FLOOR)
figure("autoencoder/raccuracy_floor_{backbone}", "the same share of the items of the split themselves")


class Sets(NamedTuple):
    """What is compared: images that a model made, items of the split, and training items to fit a classifier to."""

    made: Statistics
    real: Statistics
    training: Statistics | None


def is_enough(judge: Judge, count: int) -> bool:
    """Whether a covariance of the network's features can be had from so many images."""
    return count > judge.width


def compared(judge: Judge, start: str, sets: Sets, kinds: Collection[str]) -> dict[str, float]:
    """Figures of made images. start: a key of MADE. kinds: the groups of KINDS that are asked for."""
    made, real, training = sets
    found: dict[str, float] = {}
    if "frechet" in kinds:
        found |= frechet_figures(judge, made, Gaussian.of(real.moments))
    if "kernel" in kinds:
        found["kd"], found["kd_error"] = kernel_distance(made.kept, real.kept)
    if "manifold" in kinds:
        found |= manifold_figures(made.kept, real.kept)
    if "classes" in kinds and enough_in_classes(judge, made, real):
        pairs = zip(made.class_moments, real.class_moments)
        distances = [frechet_distance(Gaussian.of(ours), Gaussian.of(theirs)) for ours, theirs in pairs]
        found["fd_per_class"] = sum(distances) / len(distances)
    if "classes" in kinds and training is not None and len(training.class_sums):
        found["accuracy"] = class_accuracy(made, training)
    if "classes" in kinds and judge.backbone.classes:
        found["inception_score"], found["inception_score_std"] = inception_score(made.probabilities)
    return named(judge, start, found)


def named(judge: Judge, start: str, found: dict[str, float]) -> dict[str, float]:
    """Figures under their whole names; those that could not be had are left out."""
    return {judge.figure(start + name): value for name, value in found.items() if not math.isnan(value)}


def frechet_figures(judge: Judge, made: Statistics, real: Gaussian) -> dict[str, float]:
    """Frechet distance and its standard error, as far as there are images enough."""
    whole = made.moments
    found = {"fd": frechet_distance(Gaussian.of(whole), real)}
    if is_enough(judge, len(made) - len(made) // FOLDS - 1):
        without = torch.tensor([frechet_distance(Gaussian.of(whole - fold), real) for fold in made.folds])
        found["fd_error"] = float(without.std(correction=0) * math.sqrt(FOLDS - 1))
    return found


def floors(judge: Judge, real: Statistics, other: Statistics, kinds: Collection[str]) -> dict[str, float]:
    """Figures of other real images against the real ones."""
    found: dict[str, float] = {}
    if "frechet" in kinds:
        found["fd_floor"] = frechet_distance(Gaussian.of(other.moments), Gaussian.of(real.moments))
    if "kernel" in kinds:
        found["kd_floor"], _ = kernel_distance(other.kept, real.kept)
    if "classes" in kinds and len(other.class_sums):
        found["accuracy_floor"] = class_accuracy(real, other)
    return named(judge, "autoencoder/r", found)


def enough_in_classes(judge: Judge, *sets: Statistics) -> bool:
    """Whether each class of each set has images enough for a distance of its own."""
    return all(len(one.class_moments) > 0 and is_enough(judge, int(one.class_moments[:, 0, 0].min())) for one in sets)


def class_accuracy(images: Statistics, training: Statistics) -> float:
    """Share of the kept images whose class a linear classifier finds that is fitted to `training`; NaN without classes."""
    has_class = images.labels >= 0
    if not bool(has_class.any()):
        return math.nan
    weights = linear_classifier(training)
    found = (images.kept.double() @ weights[1:] + weights[0]).argmax(1)
    return float((found == images.labels)[has_class].double().mean())


def linear_classifier(training: Statistics) -> Tensor:
    """Ridge regression of one-hot classes on (1, vector) -> weights (1 + F, C), float64."""
    moments = training.moments
    variances = Gaussian.of(moments).covariance.diagonal()
    penalty = torch.full((len(moments),), RIDGE * float(variances.mean() * moments[0, 0]))
    penalty[0] = 0
    return torch.linalg.solve(moments + penalty.diag().to(moments), training.class_sums.t())
