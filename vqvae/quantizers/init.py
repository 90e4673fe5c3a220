"""How the codes start."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Init:
    """Codes before training: `draw` from nothing, or, where `vectors_per_code` > 0, `choose` from data vectors."""

    vectors_per_code: int = 0

    def draw(self, size: int, dim: int) -> Tensor:
        """-> codes (K, d)."""
        return torch.randn(size, dim) / math.sqrt(dim)

    def choose(self, vectors: Tensor, size: int) -> Tensor:
        """vectors (n, d), the same on every rank -> codes (K, d)."""
        raise AssertionError("only called where vectors_per_code > 0")


class Uniform(Init):
    """Each coordinate from U(-b, b) with b = scale sqrt(3 / d), so that a code's expected squared norm is scale^2.

    scale 1 is Sonnet's and Haiku's start (b = 0.217 at d = 64). Other projects start two orders of magnitude smaller.
    """

    def __init__(self, scale: float) -> None:
        if scale <= 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        self.scale = scale

    def draw(self, size: int, dim: int) -> Tensor:
        bound = self.scale * math.sqrt(3 / dim)
        return torch.empty(size, dim).uniform_(-bound, bound)


class DataSample(Init):
    """Different vectors of the training data, drawn at random from `vectors_per_code` x K of them.

    Raises ValueError when there are fewer vectors than codes: copies of one code could never be told apart.
    """

    def __init__(self, vectors_per_code: int) -> None:
        if vectors_per_code < 1:
            raise ValueError(f"vectors_per_code must be at least 1, got {vectors_per_code}")
        self.vectors_per_code = vectors_per_code

    def choose(self, vectors: Tensor, size: int) -> Tensor:
        if vectors.shape[0] < size:
            raise ValueError(f"{vectors.shape[0]} latent vectors cannot start {size} codes; use quantizer/init=uniform")
        rows = torch.randperm(vectors.shape[0])[:size]
        return vectors[rows.to(vectors.device)]  # (K, d)
