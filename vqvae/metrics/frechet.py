"""The Frechet distance of two sets of feature vectors, from sums over the sets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def moments(features: Tensor) -> Tensor:
    """Vectors (B, F) -> their number, sum and sum of outer products as one matrix (1 + F, 1 + F), float64.

    Matrices of parts of a set add up to that of the set, so memory does not grow with it.
    """
    rows = torch.cat([features.new_ones(len(features), 1), features], 1).double()
    return rows.t() @ rows


@dataclass
class Gaussian:
    """A normal distribution: mean (F,) and covariance (F, F), float64.

    >>> Gaussian.of(moments(torch.tensor([[0.0], [2.0]]))).covariance
    tensor([[2.]], dtype=torch.float64)
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Gaussian:
        """The distribution with the mean and the unbiased covariance of a set, from its moments (1 + F, 1 + F)."""
        count, mean = moments[0, 0], moments[0, 1:] / moments[0, 0]
        return cls(mean, (moments[1:, 1:] - count * mean[:, None] * mean) / (count - 1))

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance (F, F)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.t()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance of two normal distributions.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500). Sets that a and b
    are fitted to should have more vectors than features. In float64.
    """
    # root_b cov_a root_b has the eigenvalues of cov_a cov_b, and is symmetric
    shared = torch.linalg.eigvalsh(b.root @ a.covariance @ b.root).clamp_min(0).sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    return float(means + a.covariance.trace() + b.covariance.trace() - 2 * shared)
