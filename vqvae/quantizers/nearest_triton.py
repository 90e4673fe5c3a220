"""Nearest code by euclidean distance in one Triton kernel: scores never leave the chip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

# Width, a power of two -> vectors of one tile, stages of the pipeline that loads codes.
TILES = {16: (64, 2), 32: (64, 2), 64: (64, 2), 128: (64, 1), 256: (16, 2)}


@triton.jit
def nearest_kernel(
    z_pointer,
    codes_pointer,
    bias_pointer,
    indices_pointer,
    count,
    size,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: ROWS vectors against all codes, with each row's best score and index in registers.

    Vectors and codes are padded with zeros to WIDTH.
    """
    CODES: tl.constexpr = 64 if WIDTH <= 32 else 32  # of one tile: more would spill registers
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    z = tl.load(z_pointer + rows[:, None] * WIDTH + dims[None, :], mask=(rows < count)[:, None], other=0.0)
    best = tl.full((ROWS,), -float("inf"), tl.float32)
    index = tl.zeros((ROWS,), tl.int32)
    for start in range(0, size, CODES):
        columns = start + tl.arange(0, CODES)
        present = columns < size
        codes = tl.load(codes_pointer + columns[None, :] * WIDTH + dims[:, None], mask=present[None, :], other=0.0)
        bias = tl.load(bias_pointer + columns, mask=present, other=-float("inf"))
        scores = tl.dot(z, codes, input_precision=PRECISION) + bias[None, :]  # (ROWS, CODES)
        highest, place = tl.max(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = highest > best  # strictly: the lowest index keeps a tie
        best = tl.where(better, highest, best)
        index = tl.where(better, start + place, index)
    tl.store(indices_pointer + rows, index.to(tl.int64), mask=rows < count)


def nearest_code_triton(z: Tensor, codes: Tensor, precision: str = "tf32x3") -> Tensor:
    """z (N, d), codes (K, d), float32, d <= 256 -> index of the nearest code (N,) int64; the lowest index wins a tie.

    The score is that of `nearest.euclidean_scores`. `precision`: how tensor cores multiply, "tf32x3" (three products, as
    accurate as float32), "tf32" (faster, 10 bits of mantissa) or "ieee" (no tensor cores). With TRITON_INTERPRET=1 it runs
    on CPU tensors.

    Its speed was not measured, and it has run in the interpreter only: no GPU was at hand. The blocks were chosen by compiling
    for sm_80 and sm_90a: at most 96 KB of shared memory, and registers that are hardly spilled (104 bytes at width 128).
    """
    count, dim = z.shape
    center = codes.mean(0)  # (d,)
    indices = torch.empty(count, dtype=torch.int64, device=z.device)
    width = max(16, triton.next_power_of_2(dim))  # tl.dot multiplies 16 x 16 at least
    rows, stages = TILES[width]
    z = F.pad(z - center, (0, width - dim)).contiguous()  # (N, width)
    codes = F.pad(codes - center, (0, width - dim)).contiguous()  # (K, width)
    bias = codes.square().sum(1).mul_(-0.5)  # (K,)
    nearest_kernel[(triton.cdiv(count, rows),)](
        z,
        codes,
        bias,
        indices,
        count,
        len(codes),
        ROWS=rows,
        WIDTH=width,
        PRECISION=precision,
        num_warps=4,
        num_stages=stages,
    )
    return indices
