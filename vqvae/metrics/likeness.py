"""How alike two sets of feature vectors are, beyond mean and covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqvae.surroundings.own_folder import own_folder

BLOCK = 1000  # vectors of each set that are compared at once by the kernel
NEAREST_PRECISION, NEAREST_DENSITY = 3, 5  # neighbors that make a ball's radius, as in the papers
ROWS = 1000  # of a matrix of distances that are there at once


def kernel_distance(made: Tensor, real: Tensor) -> tuple[float, float]:
    """Vectors (n, F) and (m, F) -> unbiased squared kernel distance with k(x, y) = (x y / F + 1)^3, and its standard error.

    KID (arXiv 1801.01401) where the features are Inception's. The mean over disjoint blocks of at most 1,000 vectors of each
    set, which should be in random order; the error is that of this mean, NaN for a single block. In float64. May be below 0.
    """
    with own_folder():  # it imports matplotlib
        from torchmetrics.image.kid import poly_mmd

    count = min(len(made), len(real))
    blocks, size = max(1, count // BLOCK), min(count, BLOCK)
    values = torch.stack(
        [poly_mmd(real[b::blocks][:size].double(), made[b::blocks][:size].double()) for b in range(blocks)]
    )
    return float(values.mean()), float(values.std() / math.sqrt(blocks)) if blocks > 1 else math.nan


def manifold_figures(made: Tensor, real: Tensor) -> dict[str, float]:
    """Vectors (n, F) and (m, F) -> precision, recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    Around each vector of a set lies a ball that reaches its third (density, coverage: fifth) neighbor in that set. precision:
    share of made vectors in a ball of a real one; recall: of real ones in a ball of a made one; density: the number of real
    balls that a made vector lies in, over 5, in the mean; coverage: share of real balls with a made vector.
    """
    near, near_made = radii(real, NEAREST_PRECISION), radii(made, NEAREST_PRECISION)
    wide = radii(real, NEAREST_DENSITY)
    inside, balls = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = recalled.clone()
    for start in range(0, len(made), ROWS):
        distances = torch.cdist(made[start : start + ROWS], real)
        inside += int((distances <= near).any(1).sum())
        recalled |= (distances <= near_made[start : start + ROWS, None]).any(0)
        within = distances <= wide
        balls += int(within.sum())
        covered |= within.any(0)
    return {
        "precision": inside / len(made),
        "recall": float(recalled.double().mean()),
        "density": balls / (NEAREST_DENSITY * len(made)),
        "coverage": float(covered.double().mean()),
    }


def radii(x: Tensor, neighbor: int) -> Tensor:
    """Vectors (n, F) -> the distance of each to its `neighbor`-th nearest other one (n,)."""
    return torch.cat([torch.cdist(rows, x).kthvalue(neighbor + 1).values for rows in x.split(ROWS)])


def inception_score(sums: Tensor) -> tuple[float, float]:
    """Sums of class probabilities p (parts, 1 + K), the last column of p log p -> exp(mean KL(p | mean p)), mean and std over
    parts (Salimans et al. 2016, arXiv 1606.03498)."""
    totals, negative_entropy = sums[:, :-1].double(), sums[:, -1].double()
    counts = totals.sum(1)
    marginal = totals / counts[:, None]
    scores = (negative_entropy / counts - torch.special.xlogy(marginal, marginal).sum(1)).exp()
    return float(scores.mean()), float(scores.std(correction=0))
