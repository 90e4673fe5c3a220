"""Laws of training in float16, as far as a CPU can show them: the scale of losses, and steps whose gradient overflows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, lines, stop_at, train_inside

from vqvae.training import loss_scale
from vqvae.training.loss_scale import LossScale
from vqvae.training.trainer import Trainer

FP16 = [*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", "trainer.precision=fp16", "trainer.log_every_steps=1"]
TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def test_the_scale_moves_as_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 5)
    ours, theirs = LossScale(torch.device("cpu")), torch.tensor(loss_scale.START)
    tracker, draws = torch.zeros((), dtype=torch.int32), random.Random(0)
    for _ in range(300):
        overflow = draws.random() < 0.14
        torch._amp_update_scale_(theirs, tracker, torch.tensor(float(overflow)), 2.0, 0.5, 5)
        ours.update(torch.tensor(not overflow), TRUE)
        theirs.clamp_(1, loss_scale.MOST)
        assert float(ours.value) == float(theirs)


def test_an_overflow_is_no_skipped_step_but_a_loss_that_is_not_finite_is() -> None:
    scale = LossScale(torch.device("cpu"))
    assert scale.update(TRUE, TRUE)
    assert scale.update(FALSE, TRUE)
    assert not scale.update(FALSE, FALSE)
    scale.value.fill_(1)
    assert not scale.update(FALSE, TRUE)  # a smaller scale cannot mend it


def weights_of(state: dict[str, Any]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in state["networks"]["model"].values() if value.is_floating_point()])


def test_a_step_that_overflows_changes_no_weight_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "START", 2.0**100)
    seen, step = [], Trainer.train_step

    def watch(self: Trainer, *arguments: Any) -> None:
        seen.append((weights_of(self.result(0)), float(self.loss_scale.value)))  # type: ignore[union-attr]
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", watch)
    train_inside(*FP16, "trainer.steps=16", "quantizer=vq", f"run_dir={tmp_path}")
    (first, _), (second, scale), *_, (last, _) = seen
    assert torch.equal(first, second)
    assert scale == loss_scale.MOST
    assert not torch.equal(second, last)
    train = [line for line in lines(tmp_path / "autoencoder" / "metrics.jsonl") if "autoencoder/train/loss" in line]
    assert train[-1]["autoencoder/train/skipped_steps"] == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in float16 that did not overflow."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "START", 2.0**10)
        train_inside(*FP16, "trainer.steps=6", f"run_dir={folder}")
    return folder


def losses(folder: Path) -> torch.Tensor:
    log = lines(folder / "autoencoder" / "metrics.jsonl")
    return torch.tensor([line["autoencoder/train/loss"] for line in log if "autoencoder/train/loss" in line])


def test_losses_are_those_of_float32_within_a_hundredth(whole: Path, tmp_path: Path) -> None:
    train_inside(*FP16, "trainer.steps=6", "trainer.precision=fp32", f"run_dir={tmp_path}")
    torch.testing.assert_close(losses(whole), losses(tmp_path), rtol=1e-2, atol=0)
    assert not torch.equal(losses(whole), losses(tmp_path))


def test_a_stopped_run_ends_as_one_that_was_not(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loss_scale, "START", 2.0**10)  # a later start takes it from the checkpoint
        stop_at(patch, "autoencoder", 3)
        with pytest.raises(SystemExit):
            train_inside(*FP16, "trainer.steps=6", f"run_dir={tmp_path}")
    train_inside(*FP16, "trainer.steps=6", f"run_dir={tmp_path}")
    names = [sorted(file.name for file in (folder / "autoencoder").glob("weights-*")) for folder in (whole, tmp_path)]
    assert names[0] == names[1]  # they hold the checksum
