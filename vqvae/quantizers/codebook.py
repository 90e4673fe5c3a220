"""What holds the codes, and how they move."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from vqvae import distributed


class Codebook(nn.Module):
    """K codes of width d. `learns_by_gradient` tells whether a loss on the codes has an effect."""

    learns_by_gradient: bool = False

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"a codebook needs at least 2 codes, got size={size}")
        self.size, self.dim = size, dim

    @abstractmethod
    def codes(self) -> Tensor:
        """-> (K, d) float32, attached to whatever trains them."""

    @abstractmethod
    def replace(self, rows: Tensor, vectors: Tensor) -> dict[nn.Parameter, Tensor]:
        """Where rows (K,) is True, code k becomes vectors[k] (K, d) and forgets its past. Returns {parameter: rows}."""

    def begin_step(self) -> None:
        """Empties the accumulators."""

    def accumulate(self, z: Tensor, indices: Tensor) -> None:
        """Takes note of which z (N, d) went to which code (N,)."""

    def update(self, counts: Tensor, applied: Tensor) -> Tensor:
        """Moves the codes; counts (K,) of this rank's vectors. Returns counts summed over all ranks."""
        return distributed.all_reduce_sum([counts])[0]


class GradientCodebook(Codebook):
    """Codes as a parameter, moved by the optimizer through the codebook loss (arXiv 1711.00937, equation 3)."""

    learns_by_gradient = True

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(size, dim)
        self.weight = nn.Parameter(torch.zeros(size, dim))
        self.weight.no_weight_decay = True  # type: ignore[attr-defined]  # decay would pull unused codes to 0

    def codes(self) -> Tensor:
        return self.weight

    def replace(self, rows: Tensor, vectors: Tensor) -> dict[nn.Parameter, Tensor]:
        with torch.no_grad():
            self.weight.copy_(torch.where(rows[:, None], vectors, self.weight))
        return {self.weight: rows}


class EMACodebook(Codebook):
    """Codes as exponential moving averages of the vectors that chose them (arXiv 1711.00937, appendix A.1).

        N <- decay N + (1 - decay) n      m <- decay m + (1 - decay) sum z      e = m / smoothed N
        smoothed N = (N + epsilon) / (sum N + K epsilon) sum N

    Deviations, both against codes dying (Sonnet starts N at 0 and debiases): N starts at 1 and m at the codes; a code
    whose N has decayed below `min_count` keeps its value instead of shrinking to the origin by the smoothing.
    """

    min_count = 1e-2  # with epsilon 1e-5 the smoothing has then shrunk a code by 0.1 %

    weight: Tensor
    mean_count: Tensor
    mean_sum: Tensor
    batch_sum: Tensor

    def __init__(self, size: int, dim: int, decay: float, epsilon: float) -> None:
        super().__init__(size, dim)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if epsilon < 0:
            raise ValueError(f"epsilon must not be negative, got {epsilon}")
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("weight", torch.zeros(size, dim))
        self.register_buffer("mean_count", torch.ones(size))
        self.register_buffer("mean_sum", torch.zeros(size, dim))
        self.register_buffer("batch_sum", torch.zeros(size, dim), persistent=False)  # zero between steps

    def codes(self) -> Tensor:
        return self.weight

    def replace(self, rows: Tensor, vectors: Tensor) -> dict[nn.Parameter, Tensor]:
        share = self.mean_count.mean()  # a new code starts with the weight of an average one
        self.weight.copy_(torch.where(rows[:, None], vectors, self.weight))
        self.mean_count.copy_(torch.where(rows, share, self.mean_count))
        self.mean_sum.copy_(torch.where(rows[:, None], vectors * share, self.mean_sum))
        return {}

    def begin_step(self) -> None:
        self.batch_sum.zero_()

    def accumulate(self, z: Tensor, indices: Tensor) -> None:
        self.batch_sum.index_add_(0, indices, z.detach())

    @torch.no_grad()
    def update(self, counts: Tensor, applied: Tensor) -> Tensor:
        counts, sums = distributed.all_reduce_sum([counts, self.batch_sum])
        mean_count = torch.lerp(counts, self.mean_count, self.decay)  # (K,)
        mean_sum = torch.lerp(sums, self.mean_sum, self.decay)  # (K, d)
        total = mean_count.sum()
        smoothed = (mean_count + self.epsilon) / (total + self.size * self.epsilon) * total
        moved = applied & (mean_count > self.min_count)
        self.weight.copy_(torch.where(moved[:, None], mean_sum / smoothed[:, None], self.weight))
        self.mean_count.copy_(torch.where(applied, mean_count, self.mean_count))
        self.mean_sum.copy_(torch.where(applied, mean_sum, self.mean_sum))
        return counts
