"""The numbers of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.ranges import Gt, LessThanOne, NonNegativeInt, PositiveFloat, PositiveInt, checked

COMPILE_FROM = 20_000  # steps; measured on an H100: compiling takes 7 to 16 s, and saves 0.2 to 2 ms a step


@checked
@dataclass(kw_only=True)
class TrainerConfig:
    """The `trainer` config group. Set `steps` or `epochs`, the other null; intervals are in steps, 0 for never.

    batch_size is global: over all ranks and accumulated micro-batches. early_stop_evals: training ends after so many
    evaluations in a row without a new best of the stage's monitored metric, and the best step's weights are its result.
    on_nonfinite: stop or skip, where a loss or its gradient is not finite; with skip, a run ends when more than
    `max_skipped_steps` were. compile: auto compiles the networks on CUDA in runs of
    `COMPILE_FROM` steps or more, which win the time back. cuda_graph: auto replays steps as CUDA graphs where one process
    trains on CUDA. sharding: fsdp shares out a network's weights, gradients and moments among processes, where one card does
    not hold them (tested on CPUs with gloo, not run on NCCL). Raises UserError for values out of range.
    """

    steps: PositiveInt | None
    epochs: PositiveFloat | None
    batch_size: PositiveInt
    eval_batch_size: PositiveInt
    accumulation: PositiveInt
    log_every_steps: PositiveInt
    eval_every_steps: NonNegativeInt
    preview_every_steps: NonNegativeInt
    checkpoint_every_steps: PositiveInt
    max_time_minutes: Annotated[float, Gt(0)] | None
    early_stop_evals: PositiveInt | None
    clip_grad_norm: Annotated[float, Gt(0)] | None
    weight_average_decay: LessThanOne
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    compile: Literal[True, False, "auto"]
    channels_last: bool
    on_nonfinite: Literal["stop", "skip"]
    max_skipped_steps: NonNegativeInt
    cuda_graph: Literal["auto", "off"] = "auto"
    sharding: Literal["none", "fsdp"] = "none"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise UserError(f"set steps or epochs, and the other to null; got steps={self.steps}, epochs={self.epochs}")
        if self.early_stop_evals is not None and self.eval_every_steps == 0:
            raise UserError(f"early_stop_evals={self.early_stop_evals} needs eval_every_steps above 0")
        if self.sharding == "fsdp" and distributed.world_size() == 1:
            raise UserError(
                "sharding=fsdp shares out a network among processes, and there is one alone: start several with torchrun, "
                "or take sharding=none"
            )
        if self.batch_size % (self.accumulation * distributed.world_size()):
            raise UserError(
                f"batch_size={self.batch_size} does not divide by accumulation={self.accumulation} x "
                f"{distributed.world_size()} processes"
            )

    def total_steps(self, train_size: int) -> int:
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * train_size / self.batch_size))

    def compiles(self, device: torch.device, steps: int) -> bool:
        """Whether networks are compiled in a run of `steps` on a device."""
        return device.type == "cuda" and steps >= COMPILE_FROM if self.compile == "auto" else self.compile

    def ends_early(self, step: int, best_step: int) -> bool:
        """After the evaluation at `step`: whether the last `early_stop_evals` of them, or more, brought no new best."""
        if self.early_stop_evals is None:
            return False
        return step // self.eval_every_steps - best_step // self.eval_every_steps >= self.early_stop_evals

    def check_skipped(self, stage: str, skipped: int, step: int) -> None:
        """Raises UserError where more steps were skipped, up to `step`, than are allowed."""
        allowed = self.max_skipped_steps if self.on_nonfinite == "skip" else 0
        if skipped > allowed:
            limit = "trainer.on_nonfinite=skip goes on"
            if self.on_nonfinite == "skip":
                limit = f"trainer.max_skipped_steps={allowed} is the limit"
            raise UserError(
                f"{stage}: the loss was not finite in {skipped} steps up to step {step}; they changed nothing, and their "
                f"batches are in {stage}/skipped_steps.jsonl. Lower the learning rate or set trainer.clip_grad_norm; {limit}"
            )


def times_due(step: int, interval: int, steps: int) -> int:
    """How often something with this interval is due after `step` and up to the end."""
    inner = (steps - 1) // interval - step // interval if interval else 0
    return inner + 1 if step < steps else 0


def due(step: int, interval: int, steps: int) -> bool:
    """True if something with this interval is due after `step`. It always is at the end; interval 0: only then."""
    return step == steps or (interval > 0 and step % interval == 0)
