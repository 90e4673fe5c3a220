"""Losses over all pairs of vectors and codes, in chunks of rows that are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vqvae.networks.linear import squared_distances

CPU_CHUNK_ELEMENTS = 2**21  # N x K elements of one chunk: 8 MB
GPU_CHUNK_ELEMENTS = 2**26


def map_rows(function: Callable[..., Tensor], rows: Tensor, *others: Tensor, width: int) -> list[Tensor]:
    """[function(chunk, *others) for chunks of rows (N, ...)], where a row costs `width` elements of memory."""
    limit = GPU_CHUNK_ELEMENTS if rows.is_cuda else CPU_CHUNK_ELEMENTS
    chunk = max(1, limit // width)
    if rows.shape[0] <= chunk:
        return [function(rows, *others)]
    if not torch.is_grad_enabled():
        return [function(part, *others) for part in rows.split(chunk)]
    return [checkpoint(function, part, *others, use_reentrant=False) for part in rows.split(chunk)]


def sum_rows(function: Callable[..., Tensor], rows: Tensor, *others: Tensor, width: int) -> Tensor:
    """Sum over chunks of function(chunk, *others), of any shape that is the same for every chunk."""
    parts = map_rows(function, rows, *others, width=width)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def centered_distances(z: Tensor, codes: Tensor) -> Tensor:
    """z (n, d), codes (K, d) -> |z - e|^2 (n, K), centered on the codes' mean so that little cancels."""
    center = codes.detach().mean(0)
    return squared_distances(z - center, codes - center)
