"""All randomness is a function of numbers that a resumed run knows: the seed and the step."""

from __future__ import annotations

import torch


def mix(seed: int, number: int) -> int:
    """One 63-bit seed from two numbers (splitmix64), so that neighbouring seeds share no stream."""
    x = (seed * 0x9E3779B97F4A7C15 + number + 1) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) >> 1


def seed_everything(seed: int, number: int) -> None:
    """Seeds torch on all devices; nothing here draws from Python's or NumPy's global state.

    Where the CPU is the only device, `torch.manual_seed` would note a stack trace for each kind of the others, every step.
    """
    only_cpu = not torch.accelerator.is_available()
    (torch.default_generator.manual_seed if only_cpu else torch.manual_seed)(mix(seed, number))
