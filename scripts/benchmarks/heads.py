"""What a training step costs in memory and time, by the number of codes and by how they are predicted."""

from __future__ import annotations

import multiprocessing
import resource
import time

import torch

from scripts.benchmarks.sampling import CLASSES, prior_of
from vqvae.priors import heads as module
from vqvae.run.tables import table

SIZES = [2**10, 2**14, 2**18]
IMAGES, GRID, STEPS = 32, (8, 8), 2
WAYS = {"flat, all logits kept": ["prior/head=flat"], "flat": ["prior/head=flat"], "factors": ["prior/head=factors"]}


def heads(overrides: list[str], folder: str) -> None:
    name = next((word.removeprefix("prior=") for word in overrides if word.startswith("prior=")), "transformer")
    others = [word for word in overrides if not word.startswith(("prior=", "prior/head="))]
    print(
        f"\nmemory that {STEPS} training steps of prior={name} add to a process, and seconds of the second step: {IMAGES} "
        f"images of {'x'.join(map(str, GRID))} codes, AdamW, float32"
    )
    rows = []
    for size in SIZES:
        for way, head in WAYS.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                digits, parameters, megabytes, seconds = pool.apply(measure, (name, size, way, [*head, *others]))
            rows.append([f"2^{size.bit_length() - 1}", way, digits, f"{parameters:,}", f"{megabytes:,.0f}", seconds])
    print(table(["K", "head", "digits", "parameters", "MB", "seconds"], rows), flush=True)


def measure(name: str, size: int, way: str, overrides: list[str]) -> tuple[str, int, float, float]:
    """Digits of a code, parameters of the prior, MB and seconds; in a process of its own, whose peak is that of the steps."""
    torch.set_num_threads(1)
    if way.endswith("kept"):
        module.MOST_LOGITS = 2**62
    small = prior_of(name, GRID, [*overrides, "prior.network.width=8"], 16)  # what imports and first calls need
    small(*batch_of(16)).loss.backward()
    before = peak()
    prior = prior_of(name, GRID, overrides, size).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-3, fused=True)
    for _ in range(STEPS):
        start = time.perf_counter()
        prior(*batch_of(size)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
    digits = " x ".join(map(str, prior.digits[0]))
    return digits, sum(p.numel() for p in prior.parameters()), peak() - before, seconds


def batch_of(size: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Random codes and classes."""
    return [torch.randint(size, (IMAGES, *GRID))], torch.arange(IMAGES) % CLASSES


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
