"""Nearest codes without an N x K tensor: chunks of rows that stay in cache, and fused kernels where they are faster.

The euclidean score is one GEMM a chunk. Measured on one core with AVX512, N = 8192, K = 8192, d = 32: oneDNN's GEMM takes
20 ms, MKL's (`torch.mm`) 40 ms; `argmax` over whole rows takes another 38 ms, in two levels (`best`) 6 ms.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.networks.linear import linear
from vqvae.surroundings import compiler

# Scores of one chunk: small enough for a CPU's cache, large enough to fill a GPU; MIN_ROWS keeps a GEMM a GEMM.
CPU_CHUNK_ELEMENTS = 2**20
GPU_CHUNK_ELEMENTS = 2**25
MIN_ROWS = 32
# N x K x d from which compiling the other metrics' kernel pays: cdist then takes 3 ms a call, the kernel a tenth of it.
COMPILE_FROM = 2**24
TRITON_MAX_DIM = 256
NORMS = {"l1": 1.0, "linf": math.inf}

Scores = Callable[[Tensor], Tensor]  # z (n, d) -> (n, K' / G, G): groups of G codes, the highest score is the nearest
broken: set[str] = set()  # faster ways that have failed on this machine


@torch.library.custom_op("vqvae::nearest_code", mutates_args=())
def nearest_code(z: Tensor, codes: Tensor, metric: str = "euclidean") -> Tensor:
    """z (N, d), codes (K, d), float32 -> index of the nearest code (N,) int64; the lowest index wins a tie.

    Metrics: "euclidean"; "l1", the sum of absolute differences; "linf", the largest one. Memory: a few MB whatever N and K.
    On CUDA with Triton the euclidean metric runs in one fused kernel (`nearest_triton`), elsewhere in chunks of rows.
    "l1" and "linf" of large problems are compiled at first use (about 8 s, later runs 2 s), and fall back on `torch.cdist`,
    ten times slower, where there is no C++ compiler. A custom op, so that torch.compile keeps one graph; it has no
    gradient. A vector with NaN or infinite elements gets some valid index. Raises UserError for an unknown metric.
    """
    z, codes = z.detach(), codes.detach()
    fused = z.is_cuda and z.dtype == torch.float32 and has_triton() and z.shape[1] <= TRITON_MAX_DIM
    if fused and metric == "euclidean" and len(z):
        from vqvae.quantizers.nearest_triton import nearest_code_triton  # imports triton

        indices = attempt("the Triton kernel", nearest_code_triton, z, codes)
        if indices is not None:
            return indices
    scores = scores_by(metric, z, codes)
    indices = z.new_empty(len(z), dtype=torch.int64)
    for rows, out in zip(chunks(z, codes), chunks(indices, codes)):
        out.copy_(best(scores(rows)))
    return indices.clamp_max_(len(codes) - 1)  # behind the last code lie the fillers of its group


@torch.library.custom_op("vqvae::nearest_codes", mutates_args=())
def nearest_codes(z: Tensor, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """z (N, d), codes (K, d) -> indices (N, k) int64 of the k <= K nearest codes, nearest first, and -|z - e|^2 (N, k).

    Of equal codes the lower index comes first; which of them are taken, where not all are, is up to `torch.topk`.
    """
    z, codes = z.detach(), codes.detach()
    scores = scores_by("euclidean", z, codes)
    indices = z.new_empty((len(z), k), dtype=torch.int64)
    values = z.new_empty((len(z), k))
    for rows, index, value in zip(chunks(z, codes), chunks(indices, codes), chunks(values, codes)):
        near = scores(rows).flatten(1).topk(k, dim=1).indices.sort(dim=1).values.clamp_max_(len(codes) - 1)  # (n, k)
        distance = (codes[near] - rows[:, None]).square().sum(2)  # (n, k)
        ordered, order = distance.sort(dim=1, stable=True)
        torch.gather(near, 1, order, out=index)
        torch.neg(ordered, out=value)
    return indices, values


def nearest_code_sampled(z: Tensor, codes: Tensor, temperature: Tensor | float) -> Tensor:
    """z (N, d), codes (K, d) -> one index a row (N,) int64, drawn from softmax(-|z - e|^2 / temperature).

    By inverting the distribution function, first over groups of codes, then within the group: two uniform numbers a row
    from torch's global generator, so that the draw does not depend on the chunks (Gumbel-max needs K numbers a row).
    """
    noise = distributed.draw_of_rank(lambda rows: torch.rand(rows, 2, device=z.device, dtype=z.dtype), len(z))
    scale = 2 / torch.as_tensor(temperature, device=z.device, dtype=z.dtype)  # the score is -|z - e|^2 / 2 + a constant
    return sampled_code(z, codes, scale, noise)


@torch.library.custom_op("vqvae::sampled_code", mutates_args=())
def sampled_code(z: Tensor, codes: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """`nearest_code_sampled` as a function of its noise (N, 2) in [0, 1), which stands for a row's index (N,)."""
    z, codes = z.detach(), codes.detach()
    scores = scores_by("euclidean", z, codes)
    indices = z.new_empty(len(z), dtype=torch.int64)
    for rows, uniform, out in zip(chunks(z, codes), chunks(noise, codes), chunks(indices, codes)):
        value = scores(rows)  # (n, groups, size)
        weights = value.sub_(value.amax((1, 2), keepdim=True)).mul_(scale).exp_()
        group = draw(weights.sum(2), uniform[:, 0])  # (n,)
        out.copy_(group * weights.shape[2] + draw(of_group(weights, group), uniform[:, 1]))
    return indices.clamp_max_(len(codes) - 1)


@nearest_code.register_fake
def _(z: Tensor, codes: Tensor, metric: str = "euclidean") -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


@nearest_codes.register_fake
def _(z: Tensor, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return z.new_empty((z.shape[0], k), dtype=torch.int64), z.new_empty((z.shape[0], k))


@sampled_code.register_fake
def _(z: Tensor, codes: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


# ---- scores, chunk by chunk


def chunks(rows: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
    """(N, *) -> views of nearly equal length, whose scores against all codes fill one chunk; a single one if N = 0.

    Results are written into such views: kept as small tensors of their own, they would lie between the large ones and keep
    the C library from using those again (measured: 4 GB).
    """
    limit = max(MIN_ROWS, (GPU_CHUNK_ELEMENTS if rows.is_cuda else CPU_CHUNK_ELEMENTS) // len(codes))
    return rows.tensor_split(max(1, math.ceil(len(rows) / limit)))


def scores_by(metric: str, z: Tensor, codes: Tensor) -> Scores:
    """The function that scores rows of z against all codes; z itself only tells how much work there is."""
    if metric == "euclidean":
        return euclidean_scores(codes)
    if metric not in NORMS:
        raise UserError(f"unknown metric '{metric}'; choose euclidean, {' or '.join(NORMS)}")
    return absolute_scores(codes, metric, compile=z.device.type == "cpu" and z.numel() * len(codes) >= COMPILE_FROM)


def group_size(size: int) -> int:
    """A power of two near sqrt(K): both levels of `best` are then equally long."""
    return 2 ** (size.bit_length() // 2)


def euclidean_scores(codes: Tensor) -> Scores:
    """<z - c, e - c> - |e - c|^2 / 2, by one GEMM; c is the mean code, so that little cancels far from the origin."""
    group = group_size(len(codes))
    center = codes.mean(0)  # (d,)
    weights = codes - center  # (K, d)
    fill = -len(codes) % group
    bias = F.pad(weights.square().sum(1).mul_(-0.5), (0, fill), value=-math.inf)  # (K',): fillers are never the nearest
    weights = F.pad(weights, (0, 0, 0, fill))  # (K', d)
    return lambda z: linear(z - center, weights, bias).unflatten(1, (-1, group))  # (n, groups, size)


def absolute_scores(codes: Tensor, metric: str, compile: bool) -> Scores:
    """-|z - e| in the 1-norm or the maximum norm: a compiled kernel over blocks of codes in registers, or `torch.cdist`."""
    group = group_size(len(codes))
    fill = -len(codes) % group
    padded = F.pad(codes, (0, 0, 0, fill), value=math.inf)  # (K', d)
    blocks = padded.view(-1, group, codes.shape[1]).transpose(1, 2).contiguous()  # (groups, d, size)

    def scores(z: Tensor) -> Tensor:
        if compile and z.dtype == torch.float32:
            values = attempt("the compiled kernel of l1 and linf", compiled(metric), z.contiguous(), blocks)
            if values is not None:
                return values.transpose(0, 1)  # (n, groups, size)
        distance = torch.cdist(z, codes, p=NORMS[metric])  # (n, K)
        return F.pad(distance.neg_(), (0, fill), value=-math.inf).unflatten(1, (-1, group))  # (n, groups, size)

    return scores


@functools.cache
def compiled(metric: str) -> Callable[[Tensor, Tensor], Tensor]:
    function = {"l1": negative_l1, "linf": negative_linf}[metric]
    return torch.no_grad()(compiler.compiled(function, dynamic=True, fullgraph=True))


def negative_l1(z: Tensor, blocks: Tensor) -> Tensor:
    """z (n, d), blocks (groups, d, size) -> (groups, n, size): the order in which a block stays in the first cache."""
    assert torch.compiler.is_compiling()  # run as it stands, it would fill (groups, n, d, size)
    return -(z[None, :, :, None] - blocks[:, None]).abs().sum(2)


def negative_linf(z: Tensor, blocks: Tensor) -> Tensor:
    """As negative_l1. Floats from 0 on are ordered as their bits are, and integers have no NaN to look after: 3 x faster."""
    assert torch.compiler.is_compiling()
    return -(z[None, :, :, None] - blocks[:, None]).abs().view(torch.int32).amax(2).view(torch.float32)


# ---- choices from scores


def best(scores: Tensor) -> Tensor:
    """scores (n, groups, size) -> index of the highest of each row (n,), the lowest of a tie.

    `amax` is vectorized and `argmax` is not: so amax within groups, argmax over groups, argmax within the winner.
    """
    group = scores.amax(2).argmax(1)  # (n,)
    return group * scores.shape[2] + of_group(scores, group).argmax(1)


def of_group(values: Tensor, group: Tensor) -> Tensor:
    """values (n, groups, size), group (n,) -> (n, size)."""
    return values[torch.arange(len(group), device=group.device), group]


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """weights (n, m) >= 0, uniform (n,) in [0, 1) -> index (n,) drawn in proportion to the weights."""
    cumulative = weights.cumsum(1)  # (n, m)
    threshold = uniform * (1 - 1e-6) * cumulative[:, -1]  # 1e-6: rounded, the product must not reach the whole sum
    return (cumulative <= threshold[:, None]).sum(1).clamp_max_(weights.shape[1] - 1)  # clamp: sums of NaN


# ---- what this machine has


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def attempt(name: str, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor | None:
    """function(*arguments), or None from its first failure on: a missing compiler must not stop a run."""
    if name in broken:
        return None
    try:
        return function(*arguments)
    # compilers fail in many ways: dynamo's, inductor's, Triton's and the system's own errors
    except Exception as error:
        broken.add(name)
        reason = (str(error).strip().splitlines() or [""])[0]
        warnings.warn(
            f"{name} does not work here, so a slower way is taken: {type(error).__name__}: {reason}", stacklevel=2
        )
        return None
