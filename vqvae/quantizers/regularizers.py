"""Extra losses of a vector quantizer, each with its own weight and name."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import distributed
from vqvae.quantizers.chunked import centered_distances, sum_rows
from vqvae.quantizers.lookup import Lookup
from vqvae.ranges import Ge, Gt, In, NonNegativeFloat, PositiveFloat, checked

Order = Annotated[float, In(1, 2, math.inf)]  # of a norm
ROOT_EPSILON = 1e-12  # under square roots, whose slope at 0 is infinite


@checked
class Regularizer(nn.Module):
    """forward: z (N, d), attached q (N, d), codes (K, d) -> scalar before the weight.

    `trains_codes`: the loss is there to move the codes, so it needs a codebook that learns by gradient. `attracts_codes`:
    it moves them to the vectors, so it can train them by itself.
    """

    trains_codes: bool = False
    attracts_codes: bool = False

    def __init__(self, weight: NonNegativeFloat) -> None:
        super().__init__()
        self.weight = weight

    def attach(self, lookup: Lookup) -> None:
        """Takes from the quantizer's lookup what it shares with it; once, when the quantizer is built."""


class Commitment(Regularizer):
    """mean |z - sg q|^2 over all elements: keeps the encoder near its codes (arXiv 1711.00937, equation 3).

    Its weight is the paper's beta.
    """

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        return mean_square_error(z, q.detach())


class CodebookLoss(Regularizer):
    """mean |sg z - q|^2 over all elements: pulls codes to the vectors that chose them (same equation, weight 1)."""

    trains_codes = True
    attracts_codes = True

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        return mean_square_error(q, z.detach())


@checked
class Ordered(Regularizer):
    """Base of losses on un-squared distances |.|_order, order 1, 2 or inf (in YAML files .inf); None: the lookup's order."""

    def __init__(self, weight: NonNegativeFloat, order: Order | None) -> None:
        super().__init__(weight)
        self.order = order

    def attach(self, lookup: Lookup) -> None:
        self.order = lookup.order if self.order is None else self.order

    def norm(self, x: Tensor) -> Tensor:
        """(..., d) -> (...)."""
        if self.order == 1:
            return x.abs().sum(-1)
        return (x.square().sum(-1) + ROOT_EPSILON).sqrt() if self.order == 2 else x.abs().amax(-1)


class CodebookDistance(Ordered):
    """mean over vectors of |sg z - q|: as CodebookLoss, un-squared, so that far vectors pull no harder (the `alpha` loss)."""

    trains_codes = True
    attracts_codes = True

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        return self.norm(q - z.detach()).sum() / max(len(z), 1)


class AllCodes(Ordered):
    """mean over vectors of sum_k |sg z - e_k|: pulls every code to all the data, used or not (the `beta` loss).

    All N x K pairs, in chunks that the backward pass computes again.
    """

    trains_codes = True
    attracts_codes = True

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        if self.order == 2:
            total = sum_rows(sum_of_distances, z.detach(), codes, width=len(codes))
        else:
            total = sum_rows(lambda part, e: self.norm(part[:, None] - e).sum(), z.detach(), codes, width=codes.numel())
        return total / max(len(z), 1)


@checked
class Coulomb(Ordered):
    """-sum_i mean_j min(|e_i - e_j|, bound): codes push each other apart, like charges of one sign.

    The mean is over all K codes, i itself included. Beyond `bound` nothing is gained, so that the loss cannot run away (with
    inf it can); 0 is the smallest distance, with a finite slope there.
    """

    trains_codes = True

    def __init__(self, weight: NonNegativeFloat, order: Order | None, bound: Annotated[float, Gt(0)]) -> None:
        super().__init__(weight, order)
        self.bound = bound

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        def pushed(part: Tensor, everything: Tensor) -> Tensor:
            return self.norm(part[:, None] - everything).clamp_max(self.bound).sum()

        return -sum_rows(pushed, codes, codes, width=codes.numel()) / len(codes)


class NearestCoulomb(Coulomb):
    """-sum_i min(min_(j != i) |e_i - e_j|, bound): each code flees only from the one that is nearest."""

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        rows = max(1, 2**21 // codes.numel())
        others = []
        with torch.no_grad():
            for start, part in zip(range(0, len(codes), rows), codes.split(rows)):
                distance = self.norm(part[:, None] - codes)  # (rows, K)
                distance.diagonal(start).fill_(float("inf"))
                others.append(distance.argmin(1))
        other = torch.cat(others)  # (K,)
        # embedding, not codes[other]: there the gradient is added up by several threads, in any order
        return -self.norm(codes - F.embedding(other, codes)).clamp_max(self.bound).sum()


@checked
class Orthogonal(Regularizer):
    """|E E^T - I|_F^2 / K^2 of the codes scaled to norm 1: spreads their directions (arXiv 2112.00384, equation 7).

    Of more than `max_codes` codes that many are drawn each step, and K is their number.
    """

    trains_codes = True

    def __init__(self, weight: NonNegativeFloat, max_codes: Annotated[int, Ge(2)]) -> None:
        super().__init__(weight)
        self.max_codes = max_codes

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        if self.training and len(codes) > self.max_codes:
            codes = codes[torch.randperm(len(codes), device=codes.device)[: self.max_codes]]
        codes = F.normalize(codes, dim=1)
        products = codes @ codes.t()  # (K, K)
        return (products - torch.eye(len(codes), device=codes.device)).square().mean()


@checked
class Soft(Regularizer):
    """Base of losses on p(k | z) = softmax(-|z - e_k|^2 / temperature); all N x K pairs, in chunks."""

    def __init__(self, weight: NonNegativeFloat, temperature: PositiveFloat) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def log_p(self, z: Tensor, codes: Tensor) -> Tensor:
        """Logits (n, K)."""
        return (-centered_distances(z, codes) / self.temperature).log_softmax(1)


class SampleEntropy(Soft):
    """mean over vectors of the entropy of p(k | z), in nats: makes each choice sharp (MAGVIT-v2, arXiv 2310.05737, eq. 4)."""

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        def entropy(part: Tensor, everything: Tensor) -> Tensor:
            log_p = self.log_p(part, everything)
            return -(log_p.exp() * log_p).sum()

        return sum_rows(entropy, z, codes, width=len(codes)) / max(len(z), 1)


class CodebookEntropy(Soft):
    """Minus the entropy of the mean of p(k | z) over the batch of all ranks, in nats: makes use even (same equation).

    In evaluation over this rank's batch: ranks may have different numbers of those.
    """

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        def probability(part: Tensor, everything: Tensor) -> Tensor:
            return self.log_p(part, everything).exp().sum(0)  # (K,)

        own = sum_rows(probability, z, codes, width=len(codes)) / max(len(z), 1)
        p = distributed.mean_over_ranks(own) if self.training else own
        return -torch.special.entr(p.clamp_min(1e-20)).sum()  # clamp: entr has an infinite slope at 0


@checked
class Contrastive(Regularizer):
    """For each code, the batch's nearest vectors against its farthest half (CVQ-VAE, arXiv 2307.15139).

    Cross-entropy of the mean cosine to the nearest N / K vectors among those to the farthest half, over `temperature`.
    Holds N x K values. Vectors are this rank's.
    """

    trains_codes = True
    attracts_codes = True

    def __init__(self, weight: NonNegativeFloat, temperature: PositiveFloat) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        if len(z) < 2:
            return codes.sum() * 0  # nothing to compare, but still a part of the graph
        similarity = F.normalize(codes, dim=1) @ F.normalize(z.detach(), dim=1).t()  # (K, N)
        ordered = similarity.sort(dim=1).values
        nearest = ordered[:, -max(1, len(z) // len(codes)) :].mean(1, keepdim=True)  # (K, 1)
        logits = torch.cat([nearest, ordered[:, : len(z) // 2]], dim=1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(codes), dtype=torch.int64, device=codes.device))


def sum_of_distances(z: Tensor, codes: Tensor) -> Tensor:
    """Sum over pairs of |z - e|; z (n, d), codes (K, d) -> 0-d."""
    return (centered_distances(z, codes).clamp_min(0) + ROOT_EPSILON).sqrt().sum()


def mean_square_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a - b)^2 over all elements, 0 for none."""
    return F.mse_loss(a, b) if a.numel() else a.sum()
