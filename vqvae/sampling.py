"""Pictures from a finished run: codes from the prior, decoded by the tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae.config import ConfigError, suggest
from vqvae.images import to_uint8
from vqvae.pipeline import Tokenizer
from vqvae.priors.base import SAMPLE_CHUNK, AutoregressivePrior, Sampling


def draw_pictures(
    prior: AutoregressivePrior, tokenizer: Tokenizer, seeds: list[int], labels: Tensor, sampling: Sampling
) -> tuple[Tensor, list[Tensor]]:
    """seeds (n), labels (n,) -> pictures uint8 (n, C, H, W) and their M code maps; picture i depends on seed i alone."""
    device = next(prior.parameters()).device
    codes = prior.sample(seeds, labels.to(device), sampling)
    pictures = []
    for start in range(0, len(seeds), SAMPLE_CHUNK):  # padded to a fixed size, as in sampling
        chunk = [m[start : start + SAMPLE_CHUNK] for m in codes]
        count = len(chunk[0])
        padded = [torch.cat([m, m[:1].expand(SAMPLE_CHUNK - count, *m.shape[1:])]) for m in chunk]
        pictures.append(to_uint8(tokenizer.decode(padded))[:count].cpu())
    return torch.cat(pictures), [m.cpu() for m in codes]


def choose_labels(wanted: Any, class_names: list[str], seeds: list[int]) -> Tensor:
    """What a user calls `class` -> labels (n,): a number, a name, 'all' for each class in turn, or null.

    null draws each sample's class from its own seed. Without classes every label is -1. Raises ConfigError for an
    unknown class.
    """
    count = len(seeds)
    if not class_names:
        if wanted is not None:
            raise ConfigError(f"class={wanted}: this run's data has no classes")
        return torch.full((count,), -1)
    if wanted is None:
        generators = (torch.Generator().manual_seed(seed + 1) for seed in seeds)
        return torch.stack([torch.randint(len(class_names), (), generator=g) for g in generators])
    if wanted == "all":
        rows = -(-count // len(class_names))
        return torch.arange(len(class_names)).repeat_interleave(rows)[:count]
    if str(wanted) in class_names:
        return torch.full((count,), class_names.index(str(wanted)))
    if isinstance(wanted, int) and 0 <= wanted < len(class_names):
        return torch.full((count,), wanted)
    raise ConfigError(
        f"class={wanted} does not exist; {suggest(str(wanted), class_names)} (or 0 .. {len(class_names) - 1})"
    )


def rows_of(pictures: Tensor, columns: int) -> list[Tensor]:
    """Pictures (n, C, H, W) -> rows of equal length, the last filled up with white."""
    missing = -len(pictures) % columns
    white = pictures.new_full((missing, *pictures.shape[1:]), 255)
    return list(torch.cat([pictures, white]).split(columns))
