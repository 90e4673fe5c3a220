"""Distances between the codes of a codebook."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.metrics.codebook import binned
from vqvae.metrics.registry import figure

DISTANCES = "distance between codes"  # the panel
figure(
    "codebook/spacing_min_{m}",
    "smallest distance of two codes, in the norm of their lookup (euclidean where it compares angles)",
    report=False,
)
figure(
    "codebook/spacing_mean_{m}",
    "mean distance over all pairs of codes, in the same norm",
    panel=DISTANCES,
    report=False,
)
figure("codebook/closest_min_{m}", "the same number as spacing_min", report=False)
figure(
    "codebook/closest_mean_{m}", "mean over codes of the distance to the closest other", panel=DISTANCES, report=False
)
figure(
    "codebook/spacing_histogram_{m}",
    "pairs of codes by their distance over the mean distance",
    panel="distance / mean distance, 2 and beyond at the end",
    report=False,
)

MAX_PAIRS = 2**28  # 16,384 codes to each other; of more codes, as many as that allows, to all
CHUNK_ELEMENTS = 2**20  # distances at a time: 8 MiB, as a larger block leaves the caches of a CPU
BINS = 40


def distance_rows(codes: Tensor, order: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Distances |e_i - e_j| from codes i to all codes j, in chunks -> (rows i (r,), distances (r, K) float64).

    codes (K, d); order 1, 2 or infinity of the norm. Rows are all codes up to K = 16,384, beyond that evenly spaced ones.
    In float64, because |a|^2 - 2 <a, b> + |b|^2 of near codes loses its digits in float32.
    Raises UserError for other orders.
    """
    if order not in (1, 2, math.inf):
        raise UserError(f"order must be 1, 2 or infinity, got {order}")
    size, codes = len(codes), codes.double()
    squared, ones = codes.square().sum(1, keepdim=True), codes.new_ones(size, 1)
    left = torch.cat([codes, squared, ones], dim=1)  # (K, d + 2)
    right = torch.cat([-2 * codes, ones, squared], dim=1).t()  # (d + 2, K): the norms ride in the GEMM
    rows = torch.arange(0, size, math.ceil(size / max(1, MAX_PAIRS // size)), device=codes.device)
    for part in rows.split(max(1, CHUNK_ELEMENTS // size)):
        if order == 2:
            yield part, (left[part] @ right).clamp_min_(0).sqrt_()  # clamp: rounding may leave less than 0
        else:
            yield part, torch.cdist(codes[part], codes, p=order)


def spacing(codes: Tensor, order: float = 2) -> dict[str, float]:
    """Over pairs of codes (K, d), K at least 2: the smallest and mean distance; over codes: the distance to the closest other.

    `spacing_min` and `closest_min` are the same number.
    """
    total, closest = codes.new_zeros((), dtype=torch.float64), []
    for rows, distances in distance_rows(codes, order):
        total += distances.scatter_(1, rows[:, None], 0).sum()
        closest.append(distances.scatter_(1, rows[:, None], math.inf).amin(1))  # (r,)
    nearest = torch.cat(closest)
    mean = total / (len(nearest) * (len(codes) - 1))
    smallest, nearest_mean, mean_all = torch.stack([nearest.min(), nearest.mean(), mean]).tolist()
    return {
        "spacing_min": smallest,
        "spacing_mean": mean_all,
        "closest_min": smallest,
        "closest_mean": nearest_mean,
    }


def spacing_histogram(codes: Tensor, mean: float, order: float = 2) -> dict[str, list[float]]:
    """Pairs i < j of codes (K, d) by their distance over `mean`, in [0, 2]; the last bin takes what is beyond."""
    counts = torch.zeros(BINS, dtype=torch.int64, device=codes.device)
    columns = torch.arange(len(codes), device=codes.device)
    for rows, distances in distance_rows(codes, order):
        index = (distances * (BINS / 2 / max(mean, 1e-300))).clamp_(0, BINS - 1).long()  # 1e-300: all codes equal
        counts.scatter_add_(0, index.view(-1), (columns > rows[:, None]).long().view(-1))
    return binned(counts, 0, 2)


def spacing_with_histogram(codes: Tensor, order: float = 2) -> dict[str, Any]:
    """All figures of codes (K, d)."""
    figures = spacing(codes, order)
    return {**figures, "spacing_histogram": spacing_histogram(codes, figures["spacing_mean"], order)}
