"""The training loop. It serves every stage, and knows nothing of quantizers, priors or GANs."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.metrics.renames import rename_checkpoint
from vqvae.seeding import seed_everything
from vqvae.storage import checkpoint
from vqvae.storage.forms import form_of, mistake
from vqvae.surroundings.compiler import compiled, start_workers
from vqvae.training.checkpoint_form import checkpoint_form, moments_form
from vqvae.training.duration import Duration
from vqvae.training.hardware import RATE, SECONDS, Clock, memory_mb
from vqvae.training.logger import Logger
from vqvae.training.optimizers import load_moments
from vqvae.training.settings import TrainerConfig, due, times_due
from vqvae.training.stage import Examples, Stage, evaluate
from vqvae.training.step import TrainingStep, Updates
from vqvae.training.stop import Stopped, StopRequest
from vqvae.training.weight_average import Evaluating

log = logging.getLogger(__name__)
KEEP_CHECKPOINTS = 2
PREVIEW_COUNT = 16
BAR = "{desc} {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"  # within 80 columns
EXTRAS = ("evaluate", "preview")  # due after some steps, in this order


class Trainer(TrainingStep):
    """Trains one stage in the logger's folder, from its newest checkpoint if there is one.

    Args:
        stage: networks and losses.
        examples: training batches, and the examples for evaluation and previews.
        config: the settings of the run.
        updates: of each network.
        logger: metrics and images go there, checkpoints beside them.
        seed: all randomness of step s is drawn after seeding with (seed, s).
        stop: receives signals.
        then: what the program does after this stage, for messages.
    """

    def __init__(
        self,
        stage: Stage,
        examples: Examples,
        config: TrainerConfig,
        updates: dict[str, Updates],
        logger: Logger,
        seed: int,
        stop: StopRequest,
        then: str = "",
    ) -> None:
        super().__init__(stage, examples.train, config, updates, logger.stage, seed)
        self.examples, self.logger, self.checkpoints = examples, logger, logger.folder / "checkpoints"
        self.stop = stop
        self.best: dict[str, Any] = {}  # step and metrics of the best evaluation
        self.alerted: list[str] = []
        self.duration = Duration(logger.stage, (examples.val_count or 0) / config.batch_size, then)
        self.seconds = 0.0  # of training steps up to the last log, over all starts of this run
        self.clock = Clock()

    def fit(self) -> None:
        """Train to the last step, or until `max_time_minutes` or `early_stop_evals` ends it.

        Raises Stopped after a requested stop, UserError if losses are not finite and on_nonfinite=stop.
        """
        with self.stop.deferred():
            done, pending = self.restore()
            if done == self.steps and not pending:
                return self.finish(done)
            self.begin(done, pending)
            inputs = self.examples.train.inputs_from(done, self.config.accumulation)
            bar = tqdm(
                total=self.steps,
                initial=done,
                desc=f"training {self.logger.stage}",
                bar_format=BAR,
                disable=distributed.bar_hidden(),
            )
            self.clock = Clock()
            while done < self.steps:
                kind = self.begin_step(done)
                if self.graphs is None:
                    self.train_step(kind, next(inputs))
                else:
                    self.graphs(kind, next(inputs))
                done += 1
                self.clock.steps += 1
                bar.update()
                self.after_step(done, bar)
            bar.close()
            self.finish(done)

    def begin(self, done: int, pending: Sequence[str]) -> None:
        """Prepare training from step `done` on, then run the evaluation or preview that a stop left `pending`."""
        self.logger.start(done, pending)
        for network in self.stage.networks.values():
            network.train()
        self.stage.forwards = {name: self.wrap(network) for name, network in self.stage.networks.items()}
        if done == 0 and not self.stage.initialized:
            seed_everything(self.seed, 0)
            with Evaluating(self.stage.networks, average=None), self.stop.at_once():
                self.stage.begin_run(self.examples.train.batches_from(0, parts=1))
            if self.average is not None:
                self.average.load(self.average.live)  # it starts from codes that were set from data
        if pending:
            self.do_extras(done, pending)
            self.save(done, [])

    def after_step(self, done: int, bar: tqdm) -> None:
        """Log, evaluate, preview and save where they are due after step `done`; end here if a stop was requested."""
        intervals = self.config.log_every_steps, self.config.eval_every_steps
        logs = any(due(done, interval, self.steps) for interval in intervals)
        if logs:
            self.log(done, bar)
        self.clock.pause()
        if self.stop.agreed(may_talk=logs or self.device.type == "cpu"):
            self.save_and_stop(done, EXTRAS)
        self.do_extras(done, EXTRAS)
        if logs and self.stop.agreed(may_talk=True):  # the extras may have taken long
            self.save_and_stop(done, [])
        self.clock.resume()

    def do_extras(self, step: int, pending: Sequence[str]) -> None:
        """Run those of `pending` that are due after a step, then save if that is due. A stop saves the rest in a checkpoint."""
        intervals = {"evaluate": self.config.eval_every_steps, "preview": self.config.preview_every_steps}
        for place, name in enumerate(pending):
            if due(step, intervals[name], self.steps):
                try:
                    getattr(self, name)(step)
                except Stopped:
                    self.save_and_stop(step, pending[place:])
        if due(step, self.config.checkpoint_every_steps, self.steps):
            self.save(step, [])

    def save_and_stop(self, step: int, pending: Sequence[str]) -> None:
        """Save a checkpoint with what is `pending` after `step`, and end training."""
        self.save(step, pending)
        raise Stopped(f"{self.logger.stage}: stopped on request at step {step} of {self.steps}")

    def log(self, step: int, bar: tqdm) -> None:
        """Log means over the steps since the last log. The one place where the host waits for the device."""
        means = self.window.close()
        steps, seconds = self.clock.lap()  # the window may have begun before a stop
        self.seconds = distributed.broadcast_object(self.seconds + seconds)
        evaluations = times_due(step, self.config.eval_every_steps, self.steps)
        self.duration.hear(steps, seconds, self.steps - step, evaluations)
        skipped, latest = self.skipped.take()
        rates = {self.figure("learning_rate", name): lr.value for name, lr in self.lr.items()}
        skips = {f"{self.logger.stage}/skipped_steps": skipped}
        self.logger.log(step, "train", {**means, **rates, **self.stage.window_metrics(), **skips})
        rate = steps * self.config.batch_size / max(seconds, 1e-9)
        timing = {RATE: rate, SECONDS: self.seconds, **memory_mb(self.device)}
        self.logger.log_timing(step, timing)
        losses = f"loss {means.get(f'{self.logger.stage}/loss', math.nan):.4f}, {rate:.0f} items/s"
        bar.set_postfix_str(losses)
        if bar.disable:  # no terminal
            log.info("%s step %d of %d: %s", self.logger.stage, step, self.steps, losses)
        for skipped_step in latest:
            self.logger.log_skipped(step, skipped_step, self.examples.train.indices(skipped_step).tolist())
        self.config.check_skipped(self.logger.stage, skipped, step)
        if step < self.steps and self.seconds >= (self.config.max_time_minutes or math.inf) * 60:
            log.info("%s: max_time_minutes is over, ending at step %d", self.logger.stage, step)
            self.steps = step

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Validate, warn, keep the weights if they are the best so far, and stop early after too many worse evaluations."""
        started = time.perf_counter()
        with self.evaluating(), self.stop.at_once():
            metrics = evaluate(self.stage, self.examples.val, self.config.eval_batch_size, self.examples.val_count)
        self.duration.evaluation = time.perf_counter() - started
        self.logger.log(step, "val", metrics)
        found = {name.split("/")[-1]: metrics[name] for name in self.stage.headline if name in metrics}
        report = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
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
            for name, image in self.stage.preview(self.examples.val.preview(PREVIEW_COUNT)).items():
                self.logger.log_image(step, name, image)

    def result(self, step: int) -> dict[str, Any]:
        """The (averaged) weights, for later stages."""
        with self.evaluating():
            networks = {name: network.state_dict() for name, network in self.stage.networks.items()}
            return {"step": step, "networks": copy.deepcopy(distributed.whole_state(networks))}

    def save(self, step: int, pending: Sequence[str]) -> None:
        """Write the checkpoint from which a later start continues bit-identically, beginning with `pending`."""
        state = distributed.whole_state(self.state(step, pending))
        checkpoint.save_step(self.checkpoints, step, state, KEEP_CHECKPOINTS)

    def state(self, step: int, pending: Sequence[str]) -> dict[str, Any]:
        return {
            "step": step,
            "todo": list(pending),
            "steps": self.steps
            if self.steps < self.config.total_steps(len(self.examples.train))
            else None,  # an early end
            "networks": {name: network.state_dict() for name, network in self.stage.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": self.average.weights if self.average else [],
            "meters": self.stage.meters.state_dict(),
            "window": self.window.state_dict(),
            "skipped": self.skipped.state_dict(),
            **({} if self.loss_scale is None else {"loss_scale": self.loss_scale.state_dict()}),
            "best": self.best,
            "alerted": self.alerted,
            "seconds": self.seconds + self.clock.seconds,
        }

    def restore(self) -> tuple[int, list[str]]:
        """Load the newest good checkpoint. Returns its step (0 if there is none) and what is left to do after it."""
        moments = {name: moments_form(own, self.updates[name].optimizer) for name, own in self.optimizers.items()}
        form = checkpoint_form(self.state(0, []), self.steps, EXTRAS, moments)
        place = "cpu" if self.config.sharding == "fsdp" else self.device  # whole, it may be too large for the device
        state = checkpoint.load_newest(self.checkpoints, form, place)
        if state is None:
            return 0, []
        self.load(rename_checkpoint(state, self.logger.stage))
        log.info("%s: continuing from step %d of %d", self.logger.stage, state["step"], self.steps)
        return state["step"], state["todo"]

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gives."""
        for name, network in self.stage.networks.items():
            own = network.state_dict()
            network.load_state_dict({k: distributed.part_of(v, own[k]) for k, v in state["networks"][name].items()})
            load_moments(self.optimizers[name], state["optimizers"][name])
        if self.average is not None:
            self.average.load(state["average"])
        self.stage.meters.load_state_dict(state["meters"])
        self.window.load_state_dict(state["window"])
        self.skipped.load_state_dict(state["skipped"])
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(state["loss_scale"])
        for name in ("best", "alerted", "seconds"):
            setattr(self, name, state[name])
        if state["steps"] == state["step"]:  # it has ended here; older versions wrote the planned number in other cases
            self.steps = state["steps"]

    def finish(self, step: int) -> None:
        """Write the stage's result: its last weights, or those of its best step if the stage or an early stop asks for them."""
        result = self.result(step)
        if distributed.is_main():
            best = checkpoint.find(self.checkpoints, "best")
            kept = None
            if best and (self.stage.keeps_best or self.config.early_stop_evals):
                kept = checkpoint.load(best[-1], needed=(form := form_of(result)))
                if said := mistake(kept, form):
                    raise UserError(
                        f"{best[-1]} does not hold this run's best weights: {said}; remove it to end without it"
                    )
            own = kept is not None and kept["step"] == self.best.get("step")  # not one whose evaluation was lost
            checkpoint.save(self.logger.folder, "weights", kept if kept and own else result)
        distributed.barrier()

    def evaluating(self) -> Evaluating:
        return Evaluating(self.stage.networks, self.average)

    def wrap(self, network: nn.Module) -> Any:
        wrapped = distributed.wrap(network)
        if not self.config.compiles(self.device, self.steps):
            return wrapped
        log.info("%s: compiling the networks takes some seconds at first", self.logger.stage)
        if self.device.type == "cuda":
            start_workers()
        return compiled(wrapped)
