"""Laws of a log that goes on after a stop: rates of what was done since, and each point of a curve once."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, lines, stop_at, train_inside

from vqvae.training.trainer import Trainer

OWN = [*(a for a in TINY if not a.startswith("logger")), *SMALL_CODEBOOK, "stages=[autoencoder]", "report=false"]


def stopped(monkeypatch: pytest.MonkeyPatch, command: list[str], step: int) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, "autoencoder", step)
        with pytest.raises(SystemExit):
            train_inside(*command)


def test_the_first_rate_after_a_stop_counts_the_steps_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intervals = [f"trainer.{name}_every_steps=4" for name in ("log", "eval")]
    command = [*OWN, "logger=off", "trainer.steps=4", *intervals, f"run_dir={tmp_path / 'run'}"]
    stopped(monkeypatch, command, 1)
    (file,) = (tmp_path / "run" / "autoencoder" / "checkpoints").glob("step-*")
    before = torch.load(file, weights_only=True)
    train_inside(*command)
    (line,) = lines(tmp_path / "run" / "autoencoder" / "timing.jsonl")
    assert before["seconds"] > 0
    since = (line["timing/seconds"] - before["seconds"]) * line["timing/items_per_second"]
    assert since == pytest.approx((4 - before["step"]) * 8)  # items


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
def test_what_is_done_again_after_a_stop_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    intervals = [f"trainer.{name}_every_steps=2" for name in ("eval", "preview")]
    command = [*OWN, "logger=tensorboard", *intervals, f"run_dir={tmp_path / 'run'}"]
    stopped(monkeypatch, command, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "preview", lambda self, step: 1 / 0)  # ends it after the evaluation is logged
        with pytest.raises(ZeroDivisionError):
            train_inside(*command)
    train_inside(*command)
    shown = EventAccumulator(str(tmp_path / "run" / "autoencoder" / "tensorboard")).Reload()
    for name in shown.Tags()["scalars"]:
        assert [one.step for one in shown.Scalars(name)] == [2, 4], name


@pytest.mark.parametrize("broken", ["samples", "artifact"])
def test_a_log_that_takes_no_samples_does_not_end_a_run(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vqvae.training.wandb_run import WandbRun

    def fail(*given: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(WandbRun, "start", lambda self: setattr(self, "on", True))
    monkeypatch.setattr(WandbRun, "_send", lambda self, task: None)
    monkeypatch.setattr(WandbRun, broken, fail)
    train_inside(*OWN, "stages=[autoencoder,prior]", "logger=wandb", f"run_dir={tmp_path / 'run'}")
    assert "failed (OSError: no space left): from here on it is left out" in capsys.readouterr().out
    assert (tmp_path / "run" / "samples.png").is_file()
