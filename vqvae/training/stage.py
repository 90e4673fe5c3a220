"""The contract between the trainer and what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.storage.forms import form_of


class Batch(Protocol):
    """A batch with named tensors: see data/items.py and data/codes.py."""

    labels: Tensor

    def split(self, parts: int) -> Sequence[Any]: ...


class Stage(ABC):
    """Networks by name, their losses, and their evaluation.

    meters: counters that are part of a checkpoint. monitor: the validation metric, lower is better, that decides which step
    is best. keeps_best: the result is that step's weights, not the last ones.
    """

    networks: dict[str, nn.Module]
    meters: nn.Module
    monitor: str
    keeps_best: bool
    headline: tuple[str, ...]  # validation metrics for the one-line report
    initialized: bool = False  # True if weights were loaded, because `begin_run` would overwrite them
    forwards: dict[str, nn.Module]  # the networks as wrapped or compiled by the trainer: training calls these

    def begin_run(self, batches: Iterator[Any]) -> None:
        """Start from data, once before step 0, on all ranks."""

    def begin_step(self, step: int, steps: int) -> Hashable:
        """Set schedules and empty accumulators. Returns the kind of step, which differs where the host decides otherwise."""
        return None

    @abstractmethod
    def training_losses(self, batch: Any) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yield (network, loss, 0-d tensors by figure), with one call of `forwards[network]` per yield.

        A loss moves its own network alone. All are moved after the last yield, or none if a loss is not finite.
        """

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        """Update what the optimizer does not. `applied` (0-d bool) is False if the step was skipped.

        Returns {parameter: bool mask of replaced rows}, whose optimizer state is then reset.
        """
        return {}

    @abstractmethod
    def window_metrics(self) -> dict[str, Any]:
        """Metrics over the steps since the last call, and those too expensive for every step. Called on all ranks."""

    @abstractmethod
    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        """Sums over a validation batch, to be added up over batches and ranks."""

    @abstractmethod
    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        """Figures of the whole set, by name, from the sums over it."""

    @abstractmethod
    def preview(self, batch: Any) -> dict[str, Tensor]:
        """Images uint8 (C, H, W) by name."""

    def warnings(self, metrics: dict[str, Any], best: dict[str, Any]) -> dict[str, str]:
        """Warnings for the user, {title: advice}, from evaluation metrics.

        `best` holds step and metrics of the best evaluation before this one; it is empty if there was none.
        """
        return {}

    def load_weights(self, networks: dict[str, dict[str, Tensor]], source: str) -> None:
        """Start from the weights of another run's networks; `source` names it in messages. Raises UserError if they do not fit.

        Counters of revivals may be missing there. A network that is missing there starts anew.
        """
        for name in self.networks.keys() & networks.keys():
            network, state = self.networks[name], networks[name]
            own, given = form_of(network.state_dict()), form_of(state)
            differing = sorted(
                key
                for key in own.keys() | given.keys()
                if own.get(key) != given.get(key) and (key in own.keys() & given.keys() or ".revival." not in key)
            )
            if differing:
                raise UserError(
                    f"{source} has other weights than this config ({len(differing)} differ, "
                    f"{differing[0]} is {given.get(differing[0])} there, {own.get(differing[0])} here)"
                )
            network.load_state_dict(state, strict=False)
        self.initialized = True


class TrainingSet(Protocol):
    """Endless training batches: see data/items.py and data/codes.py."""

    def __len__(self) -> int: ...
    def inputs_from(self, start_step: int, parts: int) -> Iterator[Any]:
        """What batches are made of, as trees of tensors on the device, of the same shapes in every step."""

    def prepare(self, inputs: Any) -> Any:
        """The batch made of inputs."""

    def batches_from(self, start_step: int, parts: int) -> Iterator[Any]:
        """Batches, prepared."""

    def indices(self, step: int) -> Tensor: ...


class EvaluationSet(Protocol):
    """The examples of a set, once and in order."""

    def batches(self, chunk: int) -> Iterator[Any]: ...
    def preview(self, count: int) -> Any: ...


class Examples(NamedTuple):
    """Training set and evaluation set of a stage. val_count: examples of the latter, for a bar."""

    train: TrainingSet
    val: EvaluationSet
    val_count: int | None = None


class Measured(Protocol):
    """Part of a stage that `evaluate` needs."""

    def evaluate(self, batch: Any) -> dict[str, Tensor]: ...
    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]: ...


def evaluate(
    stage: Measured, examples: EvaluationSet, chunk: int, count: int | None = None, doing: str = "validating"
) -> dict[str, Any]:
    """Metrics over a whole set, in float32: sums over batches, reduced once. Networks must be in eval mode.

    count: of the examples, and doing: what is done with them, for a bar.
    """
    sums: dict[str, Tensor] = {}
    with tqdm(total=count, desc=doing, leave=False, disable=distributed.bar_hidden()) as bar:
        for batch in examples.batches(chunk):
            for name, value in stage.evaluate(batch).items():
                sums[name] = sums[name] + value if name in sums else value.double()
            done = bar.n + len(batch.labels) * distributed.world_size()
            bar.update((done if count is None else min(done, count)) - bar.n)
    shapes = distributed.broadcast_object({name: value.shape for name, value in sums.items()})  # rank 0 has a batch
    device = distributed.device()
    own = [sums.get(name, torch.zeros(shape, dtype=torch.float64, device=device)) for name, shape in shapes.items()]
    return stage.evaluation_metrics(dict(zip(shapes, distributed.all_reduce_sum(own))))
