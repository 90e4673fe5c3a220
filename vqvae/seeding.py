"""Seeds from numbers that a resumed run knows: the run's seed and the step."""

from __future__ import annotations

import torch


def mix(seed: int, number: int) -> int:
    """Mix two numbers into one 63-bit seed (splitmix64), so that neighboring seeds share no stream."""
    x = (seed * 0x9E3779B97F4A7C15 + number + 1) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) >> 1


def seed_everything(seed: int, number: int) -> None:
    """Seed torch on the CPU and the current device. Nothing in this package draws from Python's or NumPy's global state.

    The generators of the CPU and of CUDA are seeded directly, because `torch.manual_seed` records a stack trace for every
    other kind of device, each step.
    """
    mixed = mix(seed, number)
    if torch.cuda.is_initialized():
        torch.default_generator.manual_seed(mixed)
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(mixed)
    elif torch.accelerator.is_available():
        torch.manual_seed(mixed)
    else:
        torch.default_generator.manual_seed(mixed)
