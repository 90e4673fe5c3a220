"""The Frechet distance of two sets of feature vectors, from sums over the sets."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(features: Tensor) -> Tensor:
    """Vectors (B, F) -> their number, sum and sum of outer products as one matrix (1 + F, 1 + F), float64.

    Matrices of parts of a set add up to that of the set, so memory does not grow with it.
    """
    rows = torch.cat([features.new_ones(len(features), 1), features], 1).double()
    return rows.t() @ rows


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Moments of two sets -> squared Frechet distance of the normal distributions with their means and covariances.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500); covariances are
    unbiased. Both sets need more vectors than features. In float64.
    """
    (mean_a, cov_a), (mean_b, cov_b) = mean_and_covariance(a), mean_and_covariance(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()  # of cov_a
    # root cov_b root has the eigenvalues of cov_a cov_b, and is symmetric
    shared = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared)


def mean_and_covariance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(1 + F, 1 + F) -> mean (F,), covariance (F, F)."""
    count, mean = moments[0, 0], moments[0, 1:] / moments[0, 0]
    return mean, (moments[1:, 1:] - count * mean[:, None] * mean) / (count - 1)
