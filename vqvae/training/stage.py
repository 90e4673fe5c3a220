"""What a stage of training is: the contract between the trainer and what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vqvae import distributed

Batch = tuple[Tensor, ...]


class Stage(ABC):
    """What is trained. `networks` by name; `meters` holds counters that are part of a checkpoint.

    `monitor` names the validation metric, lower is better, that tells which step is best; `keeps_best` tells whether
    the stage's result is that step's weights or the last.
    """

    networks: dict[str, nn.Module]
    meters: nn.Module
    monitor: str
    keeps_best: bool
    headline: tuple[str, ...]  # validation metrics for the one-line report
    initialised: bool = False  # True where the weights were given, so that `begin_run` would undo them
    forwards: dict[str, nn.Module]  # what training calls: the networks, as wrapped or compiled by the trainer

    def begin_run(self, batches: Iterator[Batch]) -> None:
        """Once, before step 0: starts from data, on all ranks."""

    def begin_step(self, step: int, steps: int) -> None:
        """Sets schedules; empties what forwards accumulate."""

    @abstractmethod
    def training_losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yields (network, loss, metrics as 0-d tensors) in update order, one forward of `forwards[network]` per yield."""

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        """Moves what the optimizer does not. `applied` (0-d bool) is False where the step was skipped.

        Returns {parameter: bool mask of rows that were replaced}: their optimizer state is reset.
        """
        return {}

    @abstractmethod
    def window_metrics(self) -> dict[str, Any]:
        """Metrics over the steps since the last call, and what is too dear for every step; called on all ranks."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over a validation batch; they are added up over batches and ranks."""

    @abstractmethod
    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        """Sums over the whole set -> metrics."""

    @abstractmethod
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures uint8 (C, H, W) by name."""

    def warnings(self, metrics: dict[str, Any], best: dict[str, Any]) -> dict[str, str]:
        """Evaluation metrics -> {title: advice} for what a user should hear about.

        `best` holds step and metrics of the best evaluation before this one; it is empty where there was none.
        """
        return {}


class Feed(Protocol):
    """Where batches come from: see data/loader.py and data/code_store.py."""

    train_size: int

    def training_batches(self, start_step: int, parts: int) -> Iterator[Batch]: ...
    def training_indices(self, step: int) -> Tensor: ...
    def evaluation_batches(self, chunk: int) -> Iterator[Batch]: ...
    def preview_batch(self, count: int) -> Batch: ...


class Measured(Protocol):
    """What `evaluate` asks of a stage."""

    def evaluate(self, batch: Batch) -> dict[str, Tensor]: ...
    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]: ...


def evaluate(stage: Measured, feed: Feed, chunk: int) -> dict[str, Any]:
    """Metrics over the whole validation set, in float32: sums over batches, reduced once. Networks are in eval mode."""
    nothing = stage.evaluate(feed.preview_batch(1))  # so that a rank without a chunk has the same sums, at 0
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in nothing.items()}
    for batch in tqdm(feed.evaluation_batches(chunk), desc="evaluating", leave=False, disable=distributed.bar_hidden()):
        for name, value in stage.evaluate(batch).items():
            sums[name] += value
    return stage.evaluation_metrics(dict(zip(sums, distributed.all_reduce_sum(list(sums.values())))))
