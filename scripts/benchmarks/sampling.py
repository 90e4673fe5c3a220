"""Drawing codes from a cache against the whole network for every code, how its cost grows, and samples/s of every prior."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.priors.base import Prior
from vqvae.priors.sampling import Sampling
from vqvae.run.tables import table
from vqvae.training.hardware import keep_freed_memory

CODEBOOK_SIZE, CLASSES, ROUNDS = 512, 10, 5
RATIOS = [((8, 8), 64), ((32, 32), 16)]  # grid, samples
GROWTH = [(8, 8), (16, 16), (32, 32)]


def prior_of(name: str, grid: tuple[int, ...], overrides: list[str], size: int = CODEBOOK_SIZE) -> Prior:
    """A prior with the weights it starts from: what it draws is noise, and costs as much as anything else.

    Of one map; next_scale has two coarser ones before it.
    """
    torch.manual_seed(0)
    node = resolve(compose("train", [f"prior={name}", *overrides])).prior
    digits = build(node.head, "prior.head").of(size, [size])
    parts = (4, 2, 1) if name == "next_scale" else (1,)
    shapes = [tuple(max(1, length // part) for length in grid) for part in parts]
    codes = {"code_shapes": shapes, "digits": [digits for _ in shapes]}
    return build(node.network, "prior.network", **codes, num_classes=CLASSES).eval()


def seconds_of(prior: Prior, count: int, method: str | None = None) -> float:
    """Seconds of one call of `sample`."""
    labels = torch.arange(count) % CLASSES
    start = time.perf_counter()
    prior.sample(list(range(count)), labels, Sampling(method=method))
    return time.perf_counter() - start


def sampling(overrides: list[str], folder: str) -> None:
    keep_freed_memory()  # as sample.py does
    print("\nmilliseconds per code and sample of 16 samples, cached, by the number of codes")
    rows = []
    for name in ("pixelcnn", "wavenet", "pixelsnail", "transformer"):
        cells = []
        for grid in GROWTH:
            prior = prior_of(name, grid, overrides)
            cells.append(1000 * median(lambda: seconds_of(prior, 16), 3) / (prior.codes_per_sample * 16))  # noqa: B023
        rows.append([name, *cells])
    print(table(["prior", *(f"{h}x{w}" for h, w in GROWTH)], rows))

    print("\nsamples/s of 64 samples of 8x8 codes (next_scale: 2x2 and 4x4 before them), each prior as its YAML has it")
    rows = []
    for name in choices("prior"):
        prior = prior_of(name, (8, 8), overrides)
        parameters = sum(p.numel() for p in prior.parameters())
        rows.append([name, f"{parameters:,}", 64 / median(lambda: seconds_of(prior, 64), ROUNDS)])  # noqa: B023
    print(table(["prior", "parameters", "samples/s"], rows))

    print("\nwhole calls of `sample`, default pixelcnn, K = 512: the cache against the whole network for every code")
    for grid, count in RATIOS:
        prior = prior_of("pixelcnn", grid, overrides)
        seconds_of(prior, count)  # warms up
        first = [seconds_of(prior, count) for _ in range(ROUNDS)]
        whole = seconds_of(prior, count, "uncached")
        cached = statistics.median(first + [seconds_of(prior, count) for _ in range(ROUNDS)])
        print(
            f"{grid[0]}x{grid[1]} codes, {count} samples: cached {cached:.3f} s, uncached {whole:.2f} s, "
            f"{whole / cached:.1f} times as fast",
            flush=True,
        )


def median(measure: Callable[[], float], rounds: int) -> float:
    measure()  # warms up
    return statistics.median(measure() for _ in range(rounds))
