"""The training loop. It serves both stages, and knows nothing of VQ, GANs or priors."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vqvae import distributed
from vqvae.seeding import seed_everything
from vqvae.storage import checkpoint
from vqvae.training.hardware import Clock, choose_precision, keep_freed_memory, memory_mb, to_channels_last
from vqvae.training.logger import Logger
from vqvae.training.metric_window import MetricWindow
from vqvae.training.optimizers import guarded_step, parameter_groups, reset_rows
from vqvae.training.schedules import Schedule
from vqvae.training.settings import TrainerConfig
from vqvae.training.skipped_steps import SkippedSteps
from vqvae.training.stage import Batch, Feed, Stage, evaluate
from vqvae.training.stop import Stopped, StopRequest
from vqvae.training.weight_average import Evaluating, WeightAverage

log = logging.getLogger(__name__)
KEEP_CHECKPOINTS = 2
PREVIEW_COUNT = 16
LOOKS = ("evaluate", "preview")  # after a step, in this order


class Trainer:
    """Trains one stage in the logger's folder, from its newest checkpoint if there is one.

    Args:
        stage, feed: what to train, and on what.
        config: the numbers of the run.
        optimizer: parameter groups -> optimizer.
        schedule: (step, steps) -> factor on every learning rate.
        logger, stop: where results go, and how an end is asked for.
        seed: all randomness of step s is drawn after seeding with (seed, s).
    """

    def __init__(
        self,
        stage: Stage,
        feed: Feed,
        config: TrainerConfig,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Schedule,
        logger: Logger,
        seed: int,
        stop: StopRequest,
    ) -> None:
        self.stage, self.feed, self.config, self.schedule = stage, feed, config, schedule
        self.logger, self.checkpoints, self.seed, self.stop = logger, logger.folder / "checkpoints", seed, stop
        self.device = distributed.device()
        keep_freed_memory()
        self.steps = config.total_steps(feed.train_size)
        self.bf16 = choose_precision(config.precision, self.device) == "bf16"
        stage.meters.to(self.device)
        for network in stage.networks.values():
            network.to(self.device)
            if config.channels_last:
                to_channels_last(network)
        self.optimizers = {name: optimizer(parameter_groups(n)) for name, n in stage.networks.items()}
        self.base_lr = {name: o.param_groups[0]["lr"] for name, o in self.optimizers.items()}
        decay = config.weight_average_decay
        self.average = WeightAverage(stage.networks, decay) if decay else None
        self.window = MetricWindow(self.device)
        self.skipped = SkippedSteps(self.device)
        self.best: dict[str, Any] = {}  # step and metrics of the best evaluation
        self.alerted: list[str] = []
        self.seconds = 0.0  # of training steps, over all starts of this run

    def fit(self) -> None:
        """Trains to the last step, or until `max_time_minutes` or `early_stop_evals` ends it.

        Raises Stopped after a requested stop, UserError where losses are not finite and on_nonfinite=stop.
        """
        with self.stop.deferred():
            self.train()

    def train(self) -> None:
        """What `fit` does, while a signal is only noted."""
        done, todo = self.restore()
        if done == self.steps and not todo:
            return self.finish(done)
        self.logger.start(done, evaluated="evaluate" not in todo)
        for network in self.stage.networks.values():
            network.train()
        self.stage.forwards = {name: self.wrap(network) for name, network in self.stage.networks.items()}
        if done == 0 and not self.stage.initialised:
            seed_everything(self.seed, 0)
            with Evaluating(self.stage.networks, average=None), self.stop.at_once():  # the average starts from them
                self.stage.begin_run(self.feed.training_batches(0, parts=1))
            if self.average is not None:
                self.average.load(self.average.live)
        if todo:
            self.look(done, todo)
            self.save(done, [])
        batches = self.feed.training_batches(done, self.config.accumulation)
        bar = tqdm(
            total=self.steps, initial=done, desc=self.logger.stage, unit="step", disable=distributed.bar_hidden()
        )
        clock = Clock()
        while done < self.steps:
            self.train_step(done, next(batches))
            done += 1
            bar.update()
            intervals = self.config.log_every_steps, self.config.eval_every_steps
            if logging_step := any(due(done, interval, self.steps) for interval in intervals):
                self.log(done, bar, clock)
            clock.pause()
            if self.stop.agreed(may_talk=logging_step or self.device.type == "cpu"):
                self.leave(done)
            self.look(done)
            if logging_step and self.stop.agreed(may_talk=True):  # it may have taken long
                self.leave(done, [])
            clock.resume()
        bar.close()
        self.finish(done)

    def look(self, step: int, todo: Sequence[str] = LOOKS) -> None:
        """What is due after a step: evaluation, preview, then a checkpoint; a stop leaves one that knows what is left."""
        intervals = {"evaluate": self.config.eval_every_steps, "preview": self.config.preview_every_steps}
        for place, name in enumerate(todo):
            if due(step, intervals[name], self.steps):
                try:
                    getattr(self, name)(step)
                except Stopped:
                    self.leave(step, todo[place:])
        if due(step, self.config.checkpoint_every_steps, self.steps):
            self.save(step, [])

    def leave(self, step: int, todo: Sequence[str] = LOOKS) -> None:
        """Ends training here, to be continued with what is left to do after `step`."""
        self.save(step, todo)
        raise Stopped(f"{self.logger.stage}: stopped on request at step {step} of {self.steps}")

    def train_step(self, step: int, batch: Batch) -> None:
        """Forward, backward and update of every network, then of what the stage moves itself. The host never waits."""
        seed_everything(self.seed, step)
        self.stage.begin_step(step, self.steps)
        parts = self.config.accumulation
        losses = [self.stage.training_losses(part) for part in split(batch, parts)]
        applied = torch.ones((), dtype=torch.bool, device=self.device)
        while True:
            name = None
            for index, micro_batch in enumerate(losses):  # all for one network, each graph freed by its backward
                with distributed.no_gradient_sync(self.stage.forwards.values(), index < parts - 1):
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                        item = next(micro_batch, None)
                    if item is None:
                        continue
                    name, loss, metrics = item
                    (loss / parts).backward()
                applied = applied & torch.isfinite(loss.detach())
                self.window.add(metrics, weight=1 / parts)
            if name is None:
                break
            applied = self.update(name, step, applied)
        replaced = self.stage.after_step(applied)
        reset_rows(self.optimizers.values(), replaced)
        if self.average is not None:
            self.average.update(step, applied, replaced)
        self.skipped.add(step, applied)
        self.window.end_step(applied)

    def update(self, name: str, step: int, applied: Tensor) -> Tensor:
        """One optimizer step of one network, a no-op on the device unless loss and gradient are finite on all ranks."""
        lr = self.base_lr[name] * self.schedule(step, self.steps)
        network, clip = self.stage.networks[name], self.config.clip_grad_norm
        applied, norm = guarded_step(self.optimizers[name], network, lr, clip, applied)
        self.window.add({f"{name}/grad_norm": norm})
        return applied

    def log(self, step: int, bar: tqdm, clock: Clock) -> None:
        """Means over the steps since the last log; the one place where the host waits for the device."""
        steps, means = self.window.steps, self.window.close()
        seconds = clock.lap()
        self.seconds = distributed.broadcast_object(self.seconds + seconds)
        skipped, latest = self.skipped.take()
        metrics: dict[str, Any] = {f"train/{name}": value for name, value in means.items()}
        for name, optimizer in self.optimizers.items():
            metrics[f"train/{name}/learning_rate"] = optimizer.param_groups[0]["lr"]
        metrics |= {f"train/{name}": value for name, value in self.stage.window_metrics().items()}
        self.logger.log(step, {**metrics, "train/skipped_steps": skipped})
        rate = steps * self.config.batch_size / max(seconds, 1e-9)
        timing = {"timing/pictures_per_second": rate, "timing/seconds": self.seconds, **memory_mb(self.device)}
        self.logger.log_timing(step, timing)
        bar.set_postfix({"loss": f"{metrics.get('train/loss', math.nan):.4f}", "pictures/s": f"{rate:.0f}"})
        for one in latest:
            self.logger.log_skipped(step, one, self.feed.training_indices(one).tolist())
        self.config.check_skipped(self.logger.stage, skipped, step)
        if step < self.steps and self.seconds >= (self.config.max_time_minutes or math.inf) * 60:
            log.info("%s: max_time_minutes is over, ending at step %d", self.logger.stage, step)
            self.steps = step

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Validates, warns, and keeps the weights if they are the best so far; ends training that found none for long."""
        with self.evaluating(), self.stop.at_once():
            metrics = evaluate(self.stage, self.feed, self.config.eval_batch_size)
        self.logger.log(step, {f"val/{name}": value for name, value in metrics.items()})
        report = ", ".join(f"{name} {metrics[name]:.4g}" for name in self.stage.headline if name in metrics)
        log.info("%s step %d of %d: %s", self.logger.stage, step, self.steps, report)
        for title, text in self.stage.warnings(metrics, self.best).items():
            if title not in self.alerted:
                self.alerted.append(title)
                self.logger.alert(step, title, text)
        if metrics[self.stage.monitor] < self.best.get(self.stage.monitor, math.inf):
            self.best = {"step": step, **metrics}
            checkpoint.save(self.checkpoints, "best", self.result(step))
        elif step < self.steps and self.config.ends_early(step, self.best.get("step", 0)):
            names = self.logger.stage, self.config.early_stop_evals, self.stage.monitor, step
            log.info("%s: %d evaluations without a better %s, ending at step %d", *names)
            self.steps = step

    @torch.no_grad()
    def preview(self, step: int) -> None:
        with self.evaluating(), self.stop.at_once():
            for name, picture in self.stage.preview(self.feed.preview_batch(PREVIEW_COUNT)).items():
                self.logger.log_picture(step, name, picture)

    def result(self, step: int) -> dict[str, Any]:
        """What later stages use: the (averaged) weights."""
        with self.evaluating():
            networks = {name: copy.deepcopy(network.state_dict()) for name, network in self.stage.networks.items()}
        return {"step": step, "networks": networks}

    def save(self, step: int, todo: Sequence[str]) -> None:
        """Writes the checkpoint from which a later start goes on as if nothing had happened, with `todo` first."""
        checkpoint.save_step(self.checkpoints, step, self.state(step, todo), KEEP_CHECKPOINTS)

    def state(self, step: int, todo: Sequence[str]) -> dict[str, Any]:
        return {
            "step": step,
            "todo": list(todo),
            "steps": self.steps,  # they may have become fewer: an early end
            "networks": {name: network.state_dict() for name, network in self.stage.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": self.average.weights if self.average else [],
            "meters": self.stage.meters.state_dict(),
            "window": self.window.state_dict(),
            "skipped": self.skipped.state_dict(),
            "best": self.best,
            "alerted": self.alerted,
            "seconds": self.seconds,
        }

    def restore(self) -> tuple[int, list[str]]:
        """Takes up the newest good checkpoint. Returns its step, 0 where there is none, and what is left to do after it."""
        state = checkpoint.load_newest(self.checkpoints, set(self.state(0, [])), self.device)
        if state is None:
            return 0, []
        for name, network in self.stage.networks.items():
            checkpoint.load_weights(network, state["networks"][name], self.checkpoints)
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        if self.average is not None:
            self.average.load(state["average"])
        self.stage.meters.load_state_dict(state["meters"])
        self.window.load_state_dict(state["window"])
        self.skipped.load_state_dict(state["skipped"])
        for name in ("steps", "best", "alerted", "seconds"):
            setattr(self, name, state[name])
        log.info("%s: continuing from step %d of %d", self.logger.stage, state["step"], self.steps)
        return int(state["step"]), state["todo"]

    def finish(self, step: int) -> None:
        """Writes the stage's result: its last weights, or those of its best validation step (always, with an early stop)."""
        if distributed.is_main():
            best = checkpoint.find(self.checkpoints, "best")
            kept = checkpoint.load(best[-1]) if best and (self.stage.keeps_best or self.config.early_stop_evals) else {}
            own = kept.get("step") == self.best.get("step")  # and not that of evaluations that were lost
            checkpoint.save(self.logger.folder, "weights", kept if kept and own else self.result(step))
        distributed.barrier()

    def evaluating(self) -> Evaluating:
        return Evaluating(self.stage.networks, self.average)

    def wrap(self, network: nn.Module) -> Any:
        wrapped = distributed.wrap(network)
        return torch.compile(wrapped) if self.config.compile else wrapped


def due(step: int, interval: int, steps: int) -> bool:
    """Whether something with this interval (0: never but at the end) happens after `step`; the end counts always."""
    return step == steps or (interval > 0 and step % interval == 0)


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch into micro-batches."""
    return list(zip(*[tensor.chunk(parts) for tensor in batch])) if parts > 1 else [batch]
