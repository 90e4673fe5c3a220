"""Initial codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.quantizers.nearest import nearest_code
from vqvae.ranges import Count, CountOrZero, PositiveFloat, checked


class Init:
    """Codes before training: `draw` from nothing, or `choose` from data, where `vectors_wanted` is above 0."""

    def vectors_wanted(self, size: int) -> int:
        """The number of latent vectors that `choose` wants for K = size codes; gathered in whole batches."""
        return 0

    def draw(self, size: int, dim: int) -> Tensor:
        """Draw codes (K, d)."""
        return torch.randn(size, dim) / math.sqrt(dim)

    def choose(self, vectors: Tensor, size: int) -> Tensor:
        """vectors (n, d), the same on every rank -> codes (K, d). Torch is seeded the same on every rank."""
        raise AssertionError("only called where vectors are wanted")


@checked
class Uniform(Init):
    """Each coordinate from U(-b, b) with b = scale sqrt(3 / d), so that a code's expected squared norm is scale^2.

    scale 1 is Sonnet's and Haiku's start (b = 0.217 at d = 64). Other projects start two orders of magnitude smaller.
    """

    def __init__(self, scale: PositiveFloat) -> None:
        self.scale = scale

    def draw(self, size: int, dim: int) -> Tensor:
        bound = self.scale * math.sqrt(3 / dim)
        return torch.empty(size, dim).uniform_(-bound, bound)


@checked
class Normal(Init):
    """Each coordinate from N(0, scale^2 / d), so that a code's expected squared norm is scale^2."""

    def __init__(self, scale: PositiveFloat) -> None:
        self.scale = scale

    def draw(self, size: int, dim: int) -> Tensor:
        return torch.randn(size, dim) * (self.scale / math.sqrt(dim))


class FirstBatch(Init):
    """The first K vectors of the first batch, as they come.

    Raises UserError when the batch has fewer vectors than codes: copies of one code could never be told apart.
    """

    def vectors_wanted(self, size: int) -> int:
        return 1

    def choose(self, vectors: Tensor, size: int) -> Tensor:
        refuse_too_few(
            vectors, size, "use a larger trainer.batch_size, or quantizer/init=data, which takes several batches"
        )
        return vectors[:size].clone()


@checked
class DataSample(Init):
    """Different vectors of the training data, drawn at random from `vectors_per_code` x K of them.

    Raises UserError when there are fewer vectors than codes.
    """

    def __init__(self, vectors_per_code: Count) -> None:
        self.vectors_per_code = vectors_per_code

    def vectors_wanted(self, size: int) -> int:
        return self.vectors_per_code * size

    def choose(self, vectors: Tensor, size: int) -> Tensor:
        refuse_too_few(vectors, size, "use quantizer/init=uniform")
        rows = torch.randperm(vectors.shape[0])[:size]
        return vectors[rows.to(vectors.device)]  # (K, d)


@checked
class KMeans(DataSample):
    """K-means of the same sample: k-means++ (Arthur & Vassilvitskii 2007), then `iterations` of Lloyd's algorithm.

    A cluster that loses its last vector keeps its center. SoundStream (arXiv 2107.03312) starts so, from one batch.
    """

    def __init__(self, vectors_per_code: Count, iterations: CountOrZero) -> None:
        super().__init__(vectors_per_code)
        self.iterations = iterations

    def choose(self, vectors: Tensor, size: int) -> Tensor:
        refuse_too_few(vectors, size, "use quantizer/init=uniform")
        centers = spread(vectors, size)
        for _ in range(self.iterations):
            indices = nearest_code(vectors, centers)  # (n,)
            counts = torch.bincount(indices, minlength=size).float()[:, None]  # (K, 1)
            sums = torch.zeros_like(centers).index_add_(0, indices, vectors)
            centers = torch.where(counts > 0, sums / counts.clamp_min(1), centers)
        return centers


def spread(vectors: Tensor, size: int) -> Tensor:
    """k-means++: each next center is a vector drawn by its squared distance to the nearest center so far -> (K, d)."""
    chosen = torch.randint(len(vectors), ()).to(vectors.device)
    squared = torch.full((len(vectors),), math.inf, device=vectors.device)
    draws = torch.rand(size)  # on the CPU: the same for every device
    rows = []
    for k in range(size):
        rows.append(chosen)
        squared = torch.minimum(squared, (vectors - vectors[chosen]).square().sum(1))
        squared[chosen] = 0  # rounding must not draw a vector twice
        cumulative = squared.double().cumsum(0)
        chosen = torch.searchsorted(cumulative, (draws[k].double() * cumulative[-1].cpu()).to(vectors.device))
        chosen = chosen.clamp_max(len(vectors) - 1)
    return vectors[torch.stack(rows)]


def refuse_too_few(vectors: Tensor, size: int, way_out: str) -> None:
    if len(vectors) < size:
        raise UserError(f"{len(vectors)} latent vectors cannot start {size} codes: {way_out}")
