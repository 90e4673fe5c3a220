"""One training step: it serves every stage, and may run as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.devices.graphs import Graphs, captures_on
from vqvae.seeding import seed_everything
from vqvae.training.hardware import autocast_type, to_channels_last
from vqvae.training.loss_scale import LossScale
from vqvae.training.metric_window import MetricWindow
from vqvae.training.optimizers import LearningRate, gradient_norm, guarded_step, parameter_groups, reset_rows
from vqvae.training.schedules import Schedule
from vqvae.training.settings import TrainerConfig
from vqvae.training.skipped_steps import SkippedSteps
from vqvae.training.stage import Batch, Stage, TrainingSet
from vqvae.training.weight_average import WeightAverage


class Updates(NamedTuple):
    """How a network is updated.

    optimizer: parameter groups -> optimizer. schedule: (step, steps) -> factor on the learning rate, both counted from
    `start_step` on, before which the stage has no loss for the network.
    """

    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    schedule: Schedule
    start_step: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Factor on the learning rate in a step of a run of `steps`; 0 before the start."""
        since = step - self.start_step
        return self.schedule(since, steps - self.start_step) if since >= 0 else 0.0


class TrainingStep:
    """Steps of a stage's networks, and what lasts from one to the next: optimizers, average, metrics, skipped steps.

    `begin_step` runs on the host, and sets what depends on the step's number; `train_step` is the same in all steps of a kind.

    Args:
        stage: networks and losses.
        train: makes batches of its inputs.
        config: the settings of the run.
        updates: of each network.
        name: the stage's, in the names of figures.
        seed: all randomness of step s is drawn after seeding with (seed, s).
    """

    def __init__(
        self,
        stage: Stage,
        train: TrainingSet,
        config: TrainerConfig,
        updates: dict[str, Updates],
        name: str,
        seed: int,
    ) -> None:
        self.stage, self.prepare, self.config, self.updates = stage, train.prepare, config, updates
        self.name, self.seed, self.device = name, seed, distributed.device()
        self.steps = config.total_steps(len(train))
        self.dtype = autocast_type(config.precision, self.device)
        self.loss_scale = LossScale(self.device) if self.dtype == torch.float16 else None
        stage.meters.to(self.device)
        for network in stage.networks.values():
            network.to(self.device)
            if config.channels_last:
                to_channels_last(network)
            if config.sharding == "fsdp":
                distributed.shard(network)
        # What a loss moves. A sharded network is the only one of its stage, and autograd does not see its parts of weights.
        self.trained = {
            name: None if config.sharding == "fsdp" else [p for p in n.parameters() if p.requires_grad]
            for name, n in stage.networks.items()
        }
        self.optimizers = {name: updates[name].optimizer(parameter_groups(n)) for name, n in stage.networks.items()}
        self.base_lr = {name: o.param_groups[0]["lr"] for name, o in self.optimizers.items()}
        self.lr = {name: LearningRate(optimizer, self.device) for name, optimizer in self.optimizers.items()}
        decay = config.weight_average_decay
        self.average = WeightAverage(stage.networks, decay) if decay else None
        self.window = MetricWindow(self.device)
        self.skipped = SkippedSteps(self.device)
        captured = config.cuda_graph == "auto" and captures_on(self.device)
        self.graphs = Graphs("training", self.train_step, self.drop_step) if captured else None

    def begin_step(self, step: int) -> Hashable:
        """Set all that depends on the step's number. Returns the kind of step: `train_step` does the same in all of a kind."""
        seed_everything(self.seed, step)
        kind = self.stage.begin_step(step, self.steps)
        for name, base in self.base_lr.items():
            self.lr[name].set(base * self.updates[name].rate(step, self.steps))
        if self.average is not None:
            self.average.begin_step(step)
        self.skipped.begin_step(step)
        self.window.begin_step()
        return kind

    def train_step(self, kind: Hashable, inputs: Any) -> None:
        """Forward and backward of every network, the updates of all, then of what the stage updates. The host never waits.

        Whatever differs between steps of a `kind` lies in tensors by now: this may run as a CUDA graph.
        """
        batch: Batch = self.prepare(inputs)
        parts = self.config.accumulation
        losses = [self.stage.training_losses(part) for part in batch.split(parts)]
        applied = torch.ones((), dtype=torch.bool, device=self.device)
        losses_finite = applied  # looked at by a loss scale alone
        names: list[str] = []  # of the networks that have a loss in this step
        while True:
            name = None
            for index, micro_batch in enumerate(losses):  # one network at a time; backward frees each graph
                with distributed.no_gradient_sync(self.stage.forwards.values(), index < parts - 1):
                    with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                        item = next(micro_batch, None)
                    if item is None:
                        continue
                    name, loss, metrics = item
                    share = loss / parts if self.loss_scale is None else loss / parts * self.loss_scale.value
                    share.backward(inputs=self.trained[name])  # a loss moves its own network alone
                finite = torch.isfinite(loss.detach())
                applied = applied & finite
                if self.loss_scale is not None:
                    losses_finite = losses_finite & finite
                self.window.add(metrics, weight=1 / parts)
            if name is None:
                break
            names.append(name)
        applied = self.update(names, applied)
        replaced = self.stage.after_step(applied)
        reset_rows(self.optimizers.values(), replaced)
        if self.average is not None:
            self.average.update(applied, replaced)
        good = applied if self.loss_scale is None else self.loss_scale.update(applied, losses_finite)
        self.skipped.add(good)
        self.window.end_step(applied)

    def drop_step(self) -> None:
        """Forget what a step has left that broke off while it was recorded, and begin it again."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.window.steps -= 1
        self.begin_step(int(self.skipped.step))

    def update(self, names: Collection[str], applied: Tensor) -> Tensor:
        """An optimizer step of the networks `names`, on the device only if all losses and gradients are finite on all ranks.

        Returns whether they were (0-d bool).
        """
        for name, network in self.stage.networks.items():
            norm = torch.zeros((), device=self.device)
            if name in names:
                distributed.average_gradients(network)
                if self.loss_scale is not None:
                    gradients = [p.grad for p in network.parameters() if p.grad is not None]
                    self.loss_scale.unscale(map(distributed.local, gradients))
                norm = gradient_norm(network, self.config.clip_grad_norm)
                applied = applied & torch.isfinite(norm)
            self.window.add({self.figure("grad_norm", name): norm})
        applied = distributed.all_reduce_sum([(~applied).float()])[0] == 0
        for name in names:
            guarded_step(self.optimizers[name], applied)
        return applied

    def figure(self, name: str, network: str) -> str:
        """The name of a figure of one network: with the network's name if the stage has several."""
        return f"{self.name}/{name}" + (f"_{network}" if len(self.stage.networks) > 1 else "")
