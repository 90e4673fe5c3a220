"""Batches of codes for the prior: endless for training, once and in order for evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data.code_store import CodeStore
from vqvae.data.sampler import chunks_of_rank, rank_batches, training_indices
from vqvae.devices.copies import send
from vqvae.seeding import mix

VALIDATION, TRAINING = 0, 1  # the set that an example of an evaluation is from


class CodeBatch(NamedTuple):
    """codes: M maps (B, *s_m); labels (B,), -1 for no class, or (B, F); origin (B,): VALIDATION or TRAINING, in evaluation."""

    codes: list[Tensor]
    labels: Tensor
    origin: Tensor

    def split(self, parts: int) -> list[CodeBatch]:
        """Split into micro-batches of equal size."""
        maps = zip(*[codes.chunk(parts) for codes in self.codes])
        rest = zip(self.labels.chunk(parts), self.origin.chunk(parts))
        return [CodeBatch(list(codes), *others) for codes, others in zip(maps, rest)]


class CodeTrainingSet:
    """Training batches of codes.

    Args:
        stores: the same items encoded in several ways, such as mirrored; each example is drawn from one of them.
        batch_size: of all ranks together.
        seed: of the order, and of the store of each example.
        device: where batches go.
    """

    def __init__(self, stores: list[CodeStore], batch_size: int, seed: int, device: torch.device) -> None:
        self.stores, self.batch_size, self.seed, self.device = stores, batch_size, seed, device

    def __len__(self) -> int:
        return len(self.stores[0])

    def batches_from(self, start_step: int, parts: int = 1) -> Iterator[CodeBatch]:
        """Endless batches of this rank from `start_step` on, ordered by `parts` micro-batches."""
        return map(self.prepare, self.inputs_from(start_step, parts))

    def prepare(self, inputs: CodeBatch) -> CodeBatch:
        """Return the inputs, which are a batch already."""
        return inputs

    def inputs_from(self, start_step: int, parts: int = 1) -> Iterator[CodeBatch]:
        """Those batches, before `prepare`."""
        own = distributed.rows_of_rank(self.batch_size, parts)
        batches = rank_batches(self.seed, start_step, self.batch_size, len(self), parts)
        for step, indices in enumerate(batches, start_step):
            generator = torch.Generator().manual_seed(mix(self.seed + 1, step))
            chosen = torch.randint(len(self.stores), (self.batch_size,), generator=generator)[own]
            labels = self.stores[0].labels[indices]
            yield to_device(self._mix(chosen, indices), labels, TRAINING, self.device)

    def indices(self, step: int) -> Tensor:
        """Indices (batch_size,) of the examples in a step's global batch."""
        return training_indices(self.seed, step, self.batch_size, len(self))

    def _mix(self, chosen: Tensor, indices: Tensor) -> list[Tensor]:
        """Example indices[i] from store chosen[i] -> M maps (B, *s_m)."""
        rows = torch.arange(len(indices))
        codes_of_stores = [store.codes(indices) for store in self.stores]
        return [torch.stack(maps)[chosen, rows] for maps in zip(*codes_of_stores)]  # of (stores, B, *s_m)


class CodeEvaluationSet:
    """All validation codes once, in order; then, if `train` is given, as many training codes, spread over their set."""

    def __init__(self, val: CodeStore, train: CodeStore | None, device: torch.device) -> None:
        self.val, self.train, self.device = val, train, device

    def batches(self, chunk: int) -> Iterator[CodeBatch]:
        """This rank's share of the examples, in batches of `chunk`."""
        for indices in chunks_of_rank(len(self.val), chunk):
            yield to_device(self.val.codes(indices), self.val.labels[indices], VALIDATION, self.device)
        if self.train is not None:
            count = min(len(self.val), len(self.train))
            for places in chunks_of_rank(count, chunk):
                indices = places * len(self.train) // count
                yield to_device(self.train.codes(indices), self.train.labels[indices], TRAINING, self.device)

    def preview(self, count: int) -> CodeBatch:
        """The first validation codes."""
        indices = torch.arange(min(count, len(self.val)))
        return to_device(self.val.codes(indices), self.val.labels[indices], VALIDATION, self.device)


def to_device(codes: list[Tensor], labels: Tensor, origin: int, device: torch.device) -> CodeBatch:
    """Batch of codes and labels from one set, on a device."""
    codes, labels = [send(m, device) for m in codes], send(labels, device)
    return CodeBatch(codes, labels, torch.full((len(labels),), origin, device=device))


def bits_of_uniform(codebook_sizes: list[int], code_shapes: list[tuple[int, ...]]) -> float:
    """Bits per code of a uniform prior: the mean of log2 K over all codes."""
    counts = [math.prod(shape) for shape in code_shapes]
    return sum(n * math.log2(k) for n, k in zip(counts, codebook_sizes)) / sum(counts)
