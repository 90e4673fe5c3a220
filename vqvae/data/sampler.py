"""Items of each step: a pure function of (seed, items seen), so that there is no loader state to save."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.seeding import mix


@lru_cache(maxsize=2)  # a batch touches at most the epoch that ends and the one that begins
def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The permutation (count,) of one pass over the data."""
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(count, generator=generator)


def training_indices(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """The global batch (batch_size,) of a step; batches run on across the ends of epochs."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    parts = [epoch_order(seed, int(e), count)[positions[epochs == e] % count] for e in epochs.unique()]
    return torch.cat(parts)


def rank_batches(seed: int, start_step: int, batch_size: int, count: int, parts: int) -> Iterator[Tensor]:
    """This rank's share of every batch from `start_step` on, without end, in order of its `parts` micro-batches."""
    own = distributed.rows_of_rank(batch_size, parts)
    for step in itertools.count(start_step):
        yield training_indices(seed, step, batch_size, count)[own]


def chunks_of_rank(count: int, chunk: int) -> list[Tensor]:
    """0 .. count - 1 in chunks of fixed size (the last may be short), dealt to ranks in turn."""
    return list(torch.arange(count).split(chunk))[distributed.rank() :: distributed.world_size()]
