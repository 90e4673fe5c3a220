"""Nearest code by squared euclidean distance, without an N x K tensor."""

from __future__ import annotations

import torch
from torch import Tensor

# Scores of one chunk: small enough to stay in a CPU core's L2 cache, large enough to fill a GPU.
CPU_CHUNK_ELEMENTS = 2**18
GPU_CHUNK_ELEMENTS = 2**25


@torch.library.custom_op("vqvae::nearest_code", mutates_args=())
def nearest_code(z: Tensor, codes: Tensor) -> Tensor:
    """z (N, d), codes (K, d), float32 -> index of the nearest code (N,) int64; the lowest index wins a tie.

    argmin |z - e|^2 = argmax <z, e - c> - |e - c|^2 / 2 - <c, e - c> with any c; c is the mean code, so that little cancels
    for data far from the origin. One GEMM a chunk of rows does the work. A custom op, so that torch.compile keeps one
    graph; it has no gradient.
    """
    count, size = z.shape[0], codes.shape[0]
    elements = GPU_CHUNK_ELEMENTS if z.is_cuda else CPU_CHUNK_ELEMENTS
    rows = max(1, min(count, elements // size))
    centre = codes.mean(0)  # (d,)
    centred = codes - centre  # (K, d)
    bias = -0.5 * centred.square().sum(1) - centred @ centre  # (K,)
    weights = torch.cat(
        [centred, bias[:, None]], dim=1
    ).t()  # (d + 1, K): the bias rides in the GEMM, as addmm copies it
    z = torch.cat([z, z.new_ones(count, 1)], dim=1)  # (N, d + 1)
    scores = z.new_empty(rows, size)
    indices = torch.empty(count, dtype=torch.int64, device=z.device)
    for start in range(0, count, rows):
        chunk = z[start : start + rows]  # (rows, d + 1)
        out = scores[: chunk.shape[0]]
        torch.mm(chunk, weights, out=out)  # (rows, K)
        torch.argmax(out, dim=1, out=indices[start : start + rows])
    return indices


@nearest_code.register_fake
def _(z: Tensor, codes: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)
