"""One step of the quantizer against vector-quantize-pytorch, and the nearest code against a bare GEMM."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from scripts.benchmarks.report import synchronize
from vqvae.config.build import build
from vqvae.config.compose import compose, resolve
from vqvae.quantizers.nearest import nearest_code
from vqvae.run.tables import table
from vqvae.training.hardware import keep_freed_memory

SIZES = [(8192, 512, 64), (8192, 8192, 32), (4096, 16384, 32)]  # vectors, codes, width
ROUNDS, REPEATS = 5, 3
PEER = "vector-quantize-pytorch"
SETTINGS = [
    "quantizer=ema",
    "quantizer/space=raw",
    "quantizer/lookup=euclidean",
    "quantizer/codebook=ema",
    "quantizer/estimator=straight_through",
    "quantizer/init=uniform",
    "quantizer/revival=none",
]

Times = dict[str, list[float]]
Rows = list[list[Any]]


def quantizers(overrides: list[str], folder: str) -> None:
    """Each number of threads in a process of its own; all contestants of a size in turns within it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for threads in sorted({1, available}):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            steps, parts = pool.submit(measure, threads, overrides).result()
        print(f"\nquantizers on the CPU, {threads} thread{'s' if threads > 1 else ''}, medians of {ROUNDS} rounds")
        print(table(["N, K, d", "freed memory", "ms a training step", f"of {PEER}", "times as fast"], steps))
        print()
        print(table(["N, K, d", "nearest code, ms", "speed of torch.mm", "l1 / euclidean", "linf / euclidean"], parts))
    if not has_peer():
        print(f"\n{PEER} is not installed, so nothing was compared with it: pip install {PEER}")


def measure(threads: int, overrides: list[str]) -> tuple[Rows, Rows]:
    """Rows of the two tables. Steps with glibc returning freed memory, as in any process, and keeping it."""
    torch.set_num_threads(threads)
    steps, parts = [], []
    for kept in (False, True):
        if kept:
            keep_freed_memory()  # as the trainer does; whoever fills N x K gains most by it
        for count, size, dim in SIZES:
            torch.manual_seed(0)
            latents, codes = torch.randn(count, dim), torch.randn(size, dim)
            name = f"{count}, {size}, {dim}"
            steps.append([name, "kept" if kept else "returned", *step_row(latents, codes, overrides)])
            if kept:
                parts.append([name, *nearest_row(latents, codes)])
    return steps, parts


def step_row(latents: Tensor, codes: Tensor, overrides: list[str]) -> list[Any]:
    """Table row: ms of our training step, ms of the peer's, the ratio."""
    times = in_turns(step_pair(latents, codes, overrides))
    own = 1e3 * statistics.median(times["ours"])
    if "peer" not in times:
        return [own, "-", "-"]
    return [own, 1e3 * statistics.median(times["peer"]), ratio(times, "peer", "ours")]


def step_pair(latents: Tensor, codes: Tensor, overrides: list[str]) -> dict[str, Callable[[], Tensor]]:
    """One training step of ours and of the peer, if it is installed; both see latents in the layout that they need."""
    ours, upstream = our_quantizer(codes.cpu(), overrides).to(codes.device), torch.randn_like(latents)
    grid = latents[None].movedim(-1, 1).detach().requires_grad_()  # (1, d, N), channels last in memory
    grid_upstream, applied = upstream[None].movedim(-1, 1), torch.tensor(True, device=codes.device)

    def our_step() -> Tensor:
        grid.grad = None
        ours.begin_step(0, 1)
        out = ours(grid)
        extra = sum((loss.value * loss.weight for loss in out.losses.values()), torch.zeros((), device=codes.device))
        ((out.z_q * grid_upstream).sum() + extra).backward()
        ours.after_step(applied)
        return out.codes[0][0]

    if not has_peer():
        return {"ours": our_step}
    peer, rows = peer_quantizer(codes, ours).to(codes.device), latents[None].clone().requires_grad_()  # (1, N, d)

    def peer_step() -> Tensor:
        rows.grad = None
        z_q, indices, loss = peer(rows)
        ((z_q * upstream).sum() + loss.sum()).backward()
        return indices[0]

    same = (our_step() == peer_step()).float().mean()
    assert same > 0.999, f"the two quantizers choose the same code for {same:.4f} of the vectors"
    return {"ours": our_step, "peer": peer_step}


def nearest_row(latents: Tensor, codes: Tensor) -> list[Any]:
    """Table row: ms of the euclidean lookup, its speed as a multiple of the bare GEMM's, time of the other metrics over it."""
    scores = torch.empty(len(latents), len(codes))
    times = in_turns(
        {
            "gemm": lambda: torch.mm(latents, codes.t(), out=scores),
            "euclidean": lambda: nearest_code(latents, codes),
            "l1": lambda: nearest_code(latents, codes, "l1"),
            "linf": lambda: nearest_code(latents, codes, "linf"),
        }
    )
    pairs = [("gemm", "euclidean"), ("l1", "euclidean"), ("linf", "euclidean")]
    return [1e3 * statistics.median(times["euclidean"]), *(ratio(times, one, other) for one, other in pairs)]


def has_peer() -> bool:
    return importlib.util.find_spec("vector_quantize_pytorch") is not None


def our_quantizer(codes: Tensor, overrides: list[str]) -> Any:
    sizes = [f"quantizer.dim={codes.shape[1]}", f"quantizer.codebook.size={len(codes)}"]
    quantizer = build(resolve(compose("train", [*SETTINGS, *sizes, *overrides])).quantizer, "quantizer")
    quantizer.codebook.start(codes)
    return quantizer.train()


def peer_quantizer(codes: Tensor, ours: Any) -> nn.Module:
    """vector-quantize-pytorch with the same codes, decay, smoothing and commitment, and nothing else switched on."""
    from vector_quantize_pytorch import VectorQuantize

    peer = VectorQuantize(
        dim=codes.shape[1],
        codebook_size=len(codes),
        decay=ours.codebook.decay,
        eps=ours.codebook.epsilon,
        commitment_weight=ours.regularizers["commitment"].weight,
        kmeans_init=False,
        rotation_trick=False,  # the plain straight-through gradient, as ours
        threshold_ema_dead_code=0,
    )
    peer._codebook.embed.data.copy_(codes[None])
    peer._codebook.embed_avg.data.copy_(codes[None])
    peer._codebook.cluster_size.data.fill_(1)
    return peer.train()


def in_turns(contestants: dict[str, Callable[[], object]]) -> Times:
    """Mean seconds of each in every round, in turns; the first call of a turn, in which memory changes hands, is left out."""
    times: Times = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            contestant()
            synchronize()
            start = time.perf_counter()
            for _ in range(REPEATS):
                contestant()
            synchronize()
            times[name].append((time.perf_counter() - start) / REPEATS)
    return times


def ratio(times: Times, one: str, other: str) -> float:
    """Median over rounds of one's time over the other's."""
    return statistics.median(a / b for a, b in zip(times[one], times[other]))
