"""Nearest code by euclidean distance in one Triton kernel: scores never leave the chip.

At N = 65536, K = 16384 the tiles of widths 32, 64 and 128 ran at 61, 79 and 70 TFLOP/s on an H200 (2026-11-26), those of widths
16, 32, 64, 128 and 256 at 36, 51, 69, 64 and 70 on an H100 (2026-11-27). `scripts/benchmark.py exactness tiles` measures again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """How a program works: vectors and codes of one tile, how many dims are multiplied at a time, warps, pipeline stages."""

    rows: int
    codes: int
    chunk: int
    warps: int
    stages: int


# By width, a power of two; for an H100 or H200, whose blocks have 227 KB of shared memory.
TILES = {
    16: Tile(128, 128, 16, 4, 2),
    32: Tile(128, 64, 32, 4, 2),
    64: Tile(128, 64, 64, 4, 2),
    128: Tile(128, 64, 128, 8, 2),
    256: Tile(64, 128, 64, 4, 2),
}
LARGE_MEMORY = 227 * 2**10
SMALL_TILES = {  # at most 96 KB, for other cards
    16: Tile(64, 64, 16, 4, 2),
    32: Tile(64, 64, 32, 4, 2),
    64: Tile(64, 32, 64, 4, 2),
    128: Tile(64, 32, 128, 4, 1),
    256: Tile(64, 64, 32, 4, 3),
}


@triton.jit
def nearest_kernel(
    z_pointer,
    codes_pointer,
    bias_pointer,
    indices_pointer,
    count,
    size,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: ROWS vectors against all codes, with each row's best score and index in registers.

    Vectors and codes are padded with zeros to WIDTH. Where CHUNK is less, a tile's scores are summed over chunks of dims.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, CHUNK)
    given = (rows < count)[:, None]
    z_place = z_pointer + rows[:, None] * WIDTH + dims[None, :]
    z = tl.load(z_place, mask=given, other=0.0)
    best = tl.full((ROWS,), -float("inf"), tl.float32)
    index = tl.zeros((ROWS,), tl.int32)
    for start in range(0, size, CODES):
        columns = start + tl.arange(0, CODES)
        present = columns < size
        code_place = codes_pointer + columns[None, :] * WIDTH + dims[:, None]
        bias = tl.load(bias_pointer + columns, mask=present, other=-float("inf"))
        if CHUNK == WIDTH:
            codes = tl.load(code_place, mask=present[None, :], other=0.0)
            scores = tl.dot(z, codes, input_precision=PRECISION) + bias[None, :]  # (ROWS, CODES)
        else:
            scores = tl.zeros((ROWS, CODES), tl.float32)
            for first in range(0, WIDTH, CHUNK):
                part = tl.load(z_place + first, mask=given, other=0.0)
                codes = tl.load(code_place + first, mask=present[None, :], other=0.0)
                scores = tl.dot(part, codes, scores, input_precision=PRECISION)
            scores += bias[None, :]
        highest, place = tl.max(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = highest > best  # strictly: the lowest index keeps a tie
        best = tl.where(better, highest, best)
        index = tl.where(better, start + place, index)
    tl.store(indices_pointer + rows, index.to(tl.int64), mask=rows < count)


def nearest_code_triton(z: Tensor, codes: Tensor, precision: str = "tf32x3", tile: Tile | None = None) -> Tensor:
    """z (N, d), codes (K, d), float32, d <= 256 -> index of the nearest code (N,) int64; the lowest index wins a tie.

    The score is that of `nearest.euclidean_scores`. `precision`: how tensor cores multiply, "tf32x3" (three products, as
    accurate as float32), "tf32" (faster, 10 bits of mantissa) or "ieee" (no tensor cores). tile: None takes that of TILES. With
    TRITON_INTERPRET=1 it runs on CPU tensors.
    """
    count, dim = z.shape
    center = codes.mean(0)  # (d,)
    indices = torch.empty(count, dtype=torch.int64, device=z.device)
    width = max(16, triton.next_power_of_2(dim))  # tl.dot multiplies 16 x 16 at least
    tile = tile or tiles_of(z.device)[width]
    z = F.pad(z - center, (0, width - dim)).contiguous()  # (N, width)
    codes = F.pad(codes - center, (0, width - dim)).contiguous()  # (K, width)
    bias = codes.square().sum(1).mul_(-0.5)  # (K,)
    nearest_kernel[(triton.cdiv(count, tile.rows),)](
        z,
        codes,
        bias,
        indices,
        count,
        len(codes),
        ROWS=tile.rows,
        CODES=tile.codes,
        CHUNK=tile.chunk,
        WIDTH=width,
        PRECISION=precision,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return indices


def tiles_of(device: torch.device) -> dict[int, Tile]:
    """The tiles that fit a device."""
    if device.type != "cuda" or shared_memory(device) >= LARGE_MEMORY:
        return TILES
    return SMALL_TILES


def shared_memory(device: torch.device) -> int:
    """Bytes that a block may have."""
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
