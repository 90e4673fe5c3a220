"""How many codes are used, and how evenly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvae import distributed


def count_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Codes of any shape -> how often each occurs (K,) int64; no host synchronisation."""
    flat = codes.reshape(-1)
    return torch.zeros(codebook_size, dtype=torch.int64, device=flat.device).scatter_add_(
        0, flat, torch.ones_like(flat)
    )


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the code frequencies: 1 if one code is used, K if all are used equally. counts (K,) -> 0-d."""
    p = counts.double() / counts.sum().clamp_min(1)  # clamp: no codes at all give perplexity 1
    return torch.exp(torch.special.entr(p).sum()).float()


def usage(counts: Tensor) -> Tensor:
    """Share of the K codes that occur at least once. counts (K,) -> 0-d."""
    return (counts > 0).float().mean()


class CodeCounts(nn.Module):
    """Integer counts of M code maps over any number of batches; its buffers are part of a checkpoint."""

    def __init__(self, codebook_sizes: list[int]) -> None:
        super().__init__()
        self.sizes = codebook_sizes
        for m, size in enumerate(codebook_sizes):
            self.register_buffer(f"counts{m}", torch.zeros(size, dtype=torch.int64))

    def counts(self) -> list[Tensor]:
        """M x (K_m,) int64 of this rank."""
        return [self.get_buffer(f"counts{m}") for m in range(len(self.sizes))]

    def total(self) -> list[Tensor]:
        """The same, summed over ranks."""
        return distributed.all_reduce_sum(self.counts())

    def add(self, batch_counts: list[Tensor]) -> None:
        for total, counts in zip(self.counts(), batch_counts):
            total += counts

    def reset(self) -> None:
        for total in self.counts():
            total.zero_()


def describe(counts: Tensor) -> dict[str, float]:
    """Whole-set figures of one code map from its counts (K,), summed over ranks."""
    used = int((counts > 0).sum())
    return {
        "perplexity": float(perplexity(counts)),
        "usage": used / len(counts),
        "used_codes": used,
        "dead_codes": len(counts) - used,
    }


def histogram(counts: Tensor, bins: int = 16) -> dict[str, list[float]]:
    """Histogram over codes of their share of use times K (1: used as often as the average). -> bin edges, codes in each."""
    relative = counts.double() * len(counts) / counts.sum().clamp_min(1)
    values, edges = torch.histogram(relative.cpu(), bins=bins)
    return {"edges": [round(e, 4) for e in edges.tolist()], "codes": [int(v) for v in values.tolist()]}
