"""Lookups: they choose the code of a vector, each by its metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.quantizers.base import unit
from vqvae.quantizers.nearest import nearest_code, nearest_code_sampled, nearest_codes
from vqvae.ranges import Count, NonNegativeInt, NotEmpty, PositiveFloat, PositiveInt, Share, checked


class LookupResult(NamedTuple):
    """indices (N,) int64; passed (N,) bool: vectors to hand on unquantized, or None for none ever.

    nearest (N,) int64: the most similar codes, or None where `indices` are those.
    """

    indices: Tensor
    passed: Tensor | None = None
    nearest: Tensor | None = None


class Lookup(nn.Module):
    """forward: z (N, d), codes (K, d) -> LookupResult; called without gradient, in training and eval."""

    picks_nearest: bool = True  # whether the chosen code is the nearest one
    order: float = 2  # of the norm of its distances, 1, 2 or infinity; 2 where it compares angles

    def distance(self, z: Tensor, q: Tensor) -> Tensor:
        """z (N, d), q (N, d) -> (N,), in this lookup's metric; euclidean unless told otherwise."""
        return (z - q).norm(dim=1)

    def check(self, size: int, dim: int) -> None:
        """Raises UserError where this lookup does not fit K = size codes of width d = dim."""

    def begin_run(self, z: Tensor, codes: Tensor) -> None:
        """z (n, d) of the training data, the same on every rank; once, before step 0."""

    def begin_step(self) -> None:
        """Empties the accumulators."""

    def observe(self, z: Tensor) -> None:
        """z (N, d): the vectors of one training forward."""

    def after_step(self, codes: Callable[[], Tensor], applied: Tensor) -> None:
        """Takes up what the step's forwards have shown, where `applied` (0-d bool) is True; codes() are (K, d)."""


class Euclidean(Lookup):
    """The code at the smallest euclidean distance; ties go to the lowest index."""

    def forward(self, z: Tensor, codes: Tensor) -> LookupResult:
        return LookupResult(nearest_code(z, codes))


class L1(Lookup):
    """The code at the smallest sum of absolute differences; ties go to the lowest index."""

    order = 1

    def forward(self, z: Tensor, codes: Tensor) -> LookupResult:
        return LookupResult(nearest_code(z, codes, "l1"))

    def distance(self, z: Tensor, q: Tensor) -> Tensor:
        return (z - q).abs().sum(1)


class LInf(Lookup):
    """The code at the smallest largest absolute difference; ties go to the lowest index."""

    order = math.inf

    def forward(self, z: Tensor, codes: Tensor) -> LookupResult:
        return LookupResult(nearest_code(z, codes, "linf"))

    def distance(self, z: Tensor, q: Tensor) -> Tensor:
        return (z - q).abs().amax(1)


class Cosine(Lookup):
    """The code at the smallest angle. In space=raw, output and losses stay unscaled, as in DAC (arXiv 2306.06546)."""

    def forward(self, z: Tensor, codes: Tensor) -> LookupResult:
        return LookupResult(nearest_code(unit(z), unit(codes)))

    def distance(self, z: Tensor, q: Tensor) -> Tensor:
        """1 - cos(z, q)."""
        return 1 - F.cosine_similarity(z, q, dim=1)


@checked
class CosineVote(Cosine):
    """The `neighbors` codes at the smallest angles vote by their labels.

    The label with most votes wins, the smallest one of a tie. Where its share of the votes is below `min_share`, the vector
    is passed on unquantized, and counted in the stat `identity_mapped`. `labels`: one a code, or null for a label of its
    own for each code. `nearest_winner`: whether the output is the nearest of the neighbors with the winning label, or the
    first code in index order that carries it. Not from a paper: it makes a trained codebook a classifier.
    """

    picks_nearest = False
    labels: Tensor

    def __init__(
        self,
        neighbors: Count,
        labels: Annotated[list[NonNegativeInt], NotEmpty] | None,
        nearest_winner: bool,
        min_share: Share,
    ) -> None:
        super().__init__()
        self.neighbors, self.nearest_winner, self.min_share = neighbors, nearest_winner, min_share
        self.given = labels

    def check(self, size: int, dim: int) -> None:
        if self.neighbors > size:
            raise UserError(f"neighbors={self.neighbors} are more than the {size} codes; choose at most {size}")
        labels = list(range(size)) if self.given is None else self.given
        if len(labels) != size:
            raise UserError(f"{len(labels)} labels for {size} codes; give one label a code, or null")
        self.register_buffer("labels", torch.tensor(labels), persistent=False)

    def forward(self, z: Tensor, codes: Tensor) -> LookupResult:
        neighbors = nearest_codes(unit(z), unit(codes), self.neighbors)[0]  # (N, k)
        labels = self.labels[neighbors]  # (N, k)
        votes = (labels[:, :, None] == labels[:, None, :]).sum(2)  # (N, k): votes for each neighbor's label
        most = votes.amax(1, keepdim=True)  # (N, 1)
        never = torch.iinfo(labels.dtype).max
        winner = torch.where(votes == most, labels, never).amin(1)  # (N,): the smallest label of a tie
        if self.nearest_winner:
            place = (labels == winner[:, None]).int().argmax(1, keepdim=True)  # (N, 1): neighbors come nearest first
            indices = neighbors.gather(1, place)[:, 0]
        else:
            sorted_labels, order = self.labels.sort(stable=True)
            indices = order[torch.searchsorted(sorted_labels, winner)]  # (N,)
        if self.min_share == 0:
            return LookupResult(indices, None, neighbors[:, 0])
        return LookupResult(indices, most[:, 0] < self.min_share * self.neighbors, neighbors[:, 0])


@checked
class Stochastic(Lookup):
    """Draws a code from softmax(-|z - e|^2 / temperature) in training (RQ-VAE, arXiv 2203.01941); the nearest in eval."""

    picks_nearest = False

    def __init__(self, temperature: PositiveFloat) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, codes: Tensor) -> LookupResult:
        if self.training:
            return LookupResult(nearest_code_sampled(z, codes, self.temperature))
        return LookupResult(nearest_code(z, codes))


@checked
class PCA(Lookup):
    """Looks up with `inner` in the span of the first `components` principal axes; output and losses stay in full space.

    Vectors and codes are centered with the same mean. This base holds the moments that axes come from; a variant says of what.
    """

    centre: Tensor  # saved weights call it so
    axes: Tensor

    def __init__(self, inner: Lookup, components: PositiveInt) -> None:
        super().__init__()
        if isinstance(inner, PCA):
            raise UserError(
                "a PCA within a PCA finds nothing new: choose another quantizer/lookup@quantizer.lookup.inner"
            )
        self.inner, self.components = inner, components
        self.picks_nearest, self.order = inner.picks_nearest, inner.order

    def check(self, size: int, dim: int) -> None:
        if self.components > dim:
            raise UserError(f"components={self.components} are more than the code width {dim}; choose at most {dim}")
        self.inner.check(size, self.components)
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("axes", torch.eye(dim)[:, : self.components].contiguous())

    def forward(self, z: Tensor, codes: Tensor) -> LookupResult:
        return self.inner(self.reduce(z), self.reduce(codes))

    def distance(self, z: Tensor, q: Tensor) -> Tensor:
        return self.inner.distance(self.reduce(z), self.reduce(q))

    def reduce(self, x: Tensor) -> Tensor:
        """(N, d) -> (N, components)."""
        return (x - self.centre) @ self.axes

    def set_axes(self, moments: Tensor, applied: Tensor) -> None:
        """moments (d + 1, d + 1): what `moments_of` gives, about the present center."""
        count = moments[0, 0]
        offset = moments[0, 1:] / count  # (d,)
        covariance = moments[1:, 1:] / count - offset[:, None] * offset  # (d, d)
        sound = applied & torch.isfinite(covariance).all()
        covariance = torch.where(sound, covariance, torch.eye(len(offset), device=offset.device))  # eigh fails on NaN
        axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : self.components]  # (d, components)
        self.centre.copy_(torch.where(sound, self.centre + offset, self.centre))
        self.axes.copy_(torch.where(sound, axes, self.axes))

    def moments_of(self, x: Tensor) -> Tensor:
        """(N, d) -> sum over rows of [1, x - center]^T [1, x - center], (d + 1, d + 1): about the center, little cancels."""
        x = x.detach()
        extended = torch.cat([x.new_ones(len(x), 1), x - self.centre], dim=1)  # (N, d + 1)
        return extended.t() @ extended


class CodebookPCA(PCA):
    """Principal axes of the codes alone, taken again after every step."""

    def begin_run(self, z: Tensor, codes: Tensor) -> None:
        self.centre.copy_(codes.mean(0))
        self.set_axes(self.moments_of(codes), torch.ones((), dtype=torch.bool, device=codes.device))

    def after_step(self, codes: Callable[[], Tensor], applied: Tensor) -> None:
        self.set_axes(self.moments_of(codes()), applied)


class BatchPCA(PCA):
    """Principal axes of codes and inputs together, as each step left them, for the next step and for eval.

    A step's own axes cannot be used within it: they would not be the same for micro-batches, nor for several ranks.
    """

    moments: Tensor

    def check(self, size: int, dim: int) -> None:
        super().check(size, dim)
        self.register_buffer("moments", torch.zeros(dim + 1, dim + 1), persistent=False)  # of this step's inputs

    def begin_run(self, z: Tensor, codes: Tensor) -> None:
        both = torch.cat([z, codes])
        self.centre.copy_(both.mean(0))
        self.set_axes(self.moments_of(both), torch.ones((), dtype=torch.bool, device=codes.device))

    def begin_step(self) -> None:
        self.moments.zero_()

    def observe(self, z: Tensor) -> None:
        self.moments += self.moments_of(z)

    def after_step(self, codes: Callable[[], Tensor], applied: Tensor) -> None:
        self.set_axes(distributed.all_reduce_sum([self.moments])[0] + self.moments_of(codes()), applied)
