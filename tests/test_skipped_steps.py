"""Laws of losses that are not finite: such a step changes nothing, and can be repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import (
    SMALL_CODEBOOK,
    TINY,
    error_of,
    lines,
    train_inside,
)
from torch import Tensor

from vqvae.losses.terms import MSE
from vqvae.stages.autoencoder import AutoencoderStage

RUN = [
    *TINY,
    *SMALL_CODEBOOK,
    "trainer.weight_average_decay=0.9",
    "quantizer.revival.every_steps=2",
    "quantizer/init=data",
    "trainer.batch_size=24",
]

# ---- losses that are not finite


def bad_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the reconstruction loss NaN in some training steps."""
    original, at = MSE.value, -1
    begin_step = AutoencoderStage.begin_step

    def begin(self: AutoencoderStage, step: int, count: int) -> None:
        nonlocal at
        at = step
        begin_step(self, step, count)

    def value(self: MSE, output: Tensor, x: Tensor) -> Tensor:
        value = original(self, output, x)
        return value * float("nan") if at in steps and torch.is_grad_enabled() else value

    monkeypatch.setattr(AutoencoderStage, "begin_step", begin)
    monkeypatch.setattr(MSE, "value", value)


def test_a_skipped_step_changes_no_weight_no_average_and_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate is 0 from then on, so the state afterwards must be the state before."""
    from vqvae.training.trainer import Trainer

    states: list[dict[str, Tensor]] = []
    train_step = Trainer.train_step

    def watch(self: Trainer, kind: object, inputs: object) -> None:
        train_step(self, kind, inputs)
        assert self.average is not None
        state = {**self.stage.networks["model"].state_dict(), "counts": self.stage.meters.counts[-1]}  # type: ignore[dict-item, index]
        state |= {f"average{i}": weight for i, weight in enumerate(self.average.weights)}
        moments = [one for of in self.optimizers["model"].state.values() for one in of.values()]
        state |= {f"moment{i}": one for i, one in enumerate(moments) if one.ndim}
        states.append({key: value.clone() for key, value in state.items()})

    bad_at(monkeypatch, {2})
    monkeypatch.setattr(Trainer, "train_step", watch)
    more = ["stages=[autoencoder]", "trainer.steps=4", "trainer.on_nonfinite=skip", f"run_dir={tmp_path / 'run'}"]
    train_inside(*RUN, *more)
    before, skipped, after = states[1:4]
    assert all(torch.equal(before[key], skipped[key]) for key in before)
    assert not torch.equal(skipped["counts"], after["counts"])
    assert not torch.equal(skipped["average0"], after["average0"])


def test_a_skipped_step_of_the_second_stage_changes_nothing_either_whatever_its_optimizer(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Muon."""
    from vqvae.priors.base import Scored
    from vqvae.priors.transformer import Transformer
    from vqvae.training.trainer import Trainer

    states: list[dict[str, Tensor]] = []
    train_step, forward, at = Trainer.train_step, Transformer.forward, 0

    def watch(self: Trainer, kind: object, inputs: object) -> None:
        nonlocal at
        at = int(self.skipped.step)
        train_step(self, kind, inputs)
        moments = [one for of in self.optimizers["prior"].state.values() for one in of.values() if one.ndim]
        state = {**self.stage.networks["prior"].state_dict(), **{str(i): one for i, one in enumerate(moments)}}
        states.append({key: value.clone() for key, value in state.items()})

    def bad(self: Transformer, *args: Tensor) -> Scored:
        scored = forward(self, *args)  # type: ignore[arg-type]
        return Scored(scored.loss * float("nan"), scored.nats) if at == 2 and self.training else scored

    monkeypatch.setattr(Trainer, "train_step", watch)
    monkeypatch.setattr(Transformer, "forward", bad)
    small = ["logger=off", "debug=fast", "prior=transformer", "prior.network.width=8", "prior.network.layers=1"]
    more = ["prior.network.heads=1", "prior.trainer.steps=4", "prior.trainer.on_nonfinite=skip"]
    train_inside(*small, *more, f"tokenizer={finished_run}", f"run_dir={tmp_path / 'run'}")
    before, skipped, after = states[1:4]
    assert all(torch.equal(before[key], skipped[key]) for key in before)
    assert not all(torch.equal(skipped[key], after[key]) for key in before)


def test_the_batch_of_a_skipped_step_is_written_down_and_its_metrics_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqvae.data.sampler import training_indices

    bad_at(monkeypatch, {1, 3})
    every = ["trainer.log_every_steps=3", "trainer.eval_every_steps=6"]
    more = ["stages=[autoencoder]", "trainer.steps=6", *every, "trainer.on_nonfinite=skip"]
    train_inside(*RUN, *more, f"run_dir={tmp_path / 'run'}", "seed=5")
    found = lines(tmp_path / "run" / "autoencoder" / "skipped_steps.jsonl")
    assert [(line["step"], line["after_steps"]) for line in found] == [(3, 1), (6, 3)]
    assert found[1]["indices"] == training_indices(5, 3, 24, 96).tolist()
    logged = [
        line for line in lines(tmp_path / "run" / "autoencoder" / "metrics.jsonl") if "autoencoder/train/loss" in line
    ]
    assert all(0 < line["autoencoder/train/loss"] < 1e3 for line in logged)
    assert logged[-1]["autoencoder/train/skipped_steps"] == 2


def test_too_many_skipped_steps_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_at(monkeypatch, set(range(100)))
    more = ["trainer.steps=9", "trainer.log_every_steps=3", "trainer.on_nonfinite=skip", "trainer.max_skipped_steps=4"]
    message = error_of(capsys, *RUN, *more, f"run_dir={tmp_path / 'run'}")
    assert "not finite in 6 steps up to step 6" in message
    assert "trainer.max_skipped_steps=4 is the limit" in message
