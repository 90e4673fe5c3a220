"""A run folder has one owner at a time, and a run goes on with whatever does not change its past."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, error_of, lines, run, train_inside, weights

from vqvae.config.sweep import new_folder
from vqvae.errors import UserError
from vqvae.run import train as training
from vqvae.run.continuing import differences
from vqvae.run.lock import locked

RUN = [*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]"]


def fail_early(*arguments: object) -> None:
    raise UserError("failed before the first step")


def owner_of(folder: Path) -> int:
    """A process that holds the lock of a folder until it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with locked(folder):
            os.write(writing, b"!")
            time.sleep(60)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 1)
    os.close(reading)
    return child


def test_a_folder_in_use_is_refused_with_its_process_and_free_when_that_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = owner_of(tmp_path / "run")
    try:
        message = error_of(capsys, *RUN, f"run_dir={tmp_path / 'run'}")
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert f"is in use by process {owner} on {os.uname().nodename}" in message
    assert os.listdir(tmp_path / "run") == ["lock"]
    with locked(tmp_path / "run"), locked(tmp_path / "run"):  # the second is within the first
        pass
    assert os.listdir(tmp_path / "run") == []


def test_a_folder_in_use_is_read_but_not_encoded_into(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("test")))
    owner = owner_of(folder)
    try:
        run("sample.py", f"run_dir={folder}", "n=1", f"out={tmp_path / 'out'}")
        refused = run("scripts/encode.py", f"run_dir={folder}", "splits=[test]", check=False)
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert "is in use by process" in refused.stderr
    assert (tmp_path / "out" / "grid.png").is_file()


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="lock"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "kept"


def test_folders_of_one_second_have_different_names(tmp_path: Path) -> None:
    assert len({new_folder(tmp_path / "runs") for _ in range(5)}) == 5


def test_a_start_that_is_refused_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    error_of(capsys, *RUN, "trainer.batch_size=500")
    error_of(capsys, *RUN, "trainer.batch_size=500", "run_dir=named")
    assert os.listdir(tmp_path) == ["runs"]
    assert os.listdir(tmp_path / "runs") == []


def test_a_sweep_without_run_dir_has_a_new_folder_and_none_goes_into_a_run(finished_run: Path, tmp_path: Path) -> None:
    sweep = ["-m", *RUN, "trainer.batch_size=500,600"]
    for _ in range(2):
        assert run("train.py", *sweep, cwd=tmp_path, check=False).returncode == 1
    assert [len(list(folder.glob("*.job.json"))) for folder in (tmp_path / "runs").iterdir()] == [2, 2]
    before = sorted(os.listdir(finished_run))
    refused = run("train.py", *sweep, f"run_dir={finished_run}", check=False)
    assert "holds a run: a sweep needs a folder of its own" in refused.stderr
    assert sorted(os.listdir(finished_run)) == before


def test_a_start_that_failed_before_its_first_checkpoint_is_replaced_by_another_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"run_dir={tmp_path / 'run'}"
    with monkeypatch.context() as patched:
        patched.setattr(training, "make_trainer", fail_early)
        error_of(capsys, *RUN, folder, "data.train_count=64")
    variances = list((tmp_path / "run").glob("variance-*.pt"))
    train_inside(*RUN, folder, "quantizer.dim=4")
    log = (tmp_path / "run" / "train.log").read_text()
    assert (
        "a start without a checkpoint: data.train_count is 64 there, 96 here; quantizer.dim is 8 there, 4 here\n" in log
    )
    assert variances != list((tmp_path / "run").glob("variance-*.pt"))


def test_a_tokenizer_that_was_a_mistake_is_replaced_before_the_prior_begins(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    train_inside(*RUN, f"run_dir={other}", "seed=1")
    own = [a for a in TINY if a.startswith(("logger", "debug", "prior"))]
    with monkeypatch.context() as patched:
        patched.setattr(training, "make_trainer", fail_early)
        error_of(capsys, *own, f"tokenizer={finished_run}", f"run_dir={tmp_path / 'run'}")
    train_inside(*own, f"tokenizer={other}", f"run_dir={tmp_path / 'run'}")
    first, second = weights(other, "autoencoder"), weights(tmp_path / "run", "autoencoder")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_differences_are_told_by_the_keys_that_were_typed(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, *TINY, *SMALL_CODEBOOK, f"run_dir={finished_run}", "quantizer.dim=4", "seed=3")
    assert "(quantizer.dim is 8 there, 4 here; seed is 0 there, 3 here)" in message
    message = error_of(capsys, *TINY, f"run_dir={finished_run}", "quantizer=fsq", "quantizer.levels=[4,4]")
    assert "(quantizer is VectorQuantizer there, FSQ here" in message
    assert "{" not in message
    changes = differences({"a": [{"b": 1, "c": [1, 2]}]}, {"a": [{"b": 2, "c": [1, 3]}]})
    assert list(changes) == [("a.0.b", 1, 2), ("a.0.c", [1, 2], [1, 3])]


def test_a_run_of_a_constant_learning_rate_becomes_longer_as_if_it_had_been_so_from_the_start(tmp_path: Path) -> None:
    own = [*RUN, "quantizer/revival=none", "schedule=constant"]
    train_inside(*own, f"run_dir={tmp_path / 'whole'}", "trainer.steps=6")
    for steps in (2, 4):
        train_inside(*own, f"run_dir={tmp_path / 'run'}", f"trainer.steps={steps}")
    train_inside(f"run_dir={tmp_path / 'run'}", "trainer.steps=6", "trainer.eval_batch_size=7")
    first, second = (weights(tmp_path / name, "autoencoder") for name in ("whole", "run"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert len(list((tmp_path / "run" / "codes").glob("val/header.json"))) == 1
    train_inside(*own, f"run_dir={tmp_path / 'run'}", "trainer.steps=4", "trainer.checkpoint_every_steps=1")
    assert "has 6 steps of its autoencoder already" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
def test_a_prior_becomes_longer_and_keeps_its_autoencoder(tmp_path: Path) -> None:
    own = [*TINY, *SMALL_CODEBOOK, "schedule@prior.schedule=constant", f"run_dir={tmp_path / 'run'}"]
    train_inside(*own)
    before = weights(tmp_path / "run", "autoencoder")
    train_inside(f"run_dir={tmp_path / 'run'}", "prior.trainer.steps=6")
    after = weights(tmp_path / "run", "autoencoder")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert lines(tmp_path / "run" / "prior" / "metrics.jsonl")[-1]["step"] == 6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["trainer.steps=8"], "the learning rate of the 4 steps that are done was planned for 4 (schedule=cosine)"),
        (["trainer.steps=8", "stages=[autoencoder,prior]"], "the prior of this run has learned the codes"),
    ],
)
def test_a_run_that_cannot_become_longer_is_told_of_init_from(
    changes: list[str], reason: str, tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished_run
    if "prior" not in reason:
        folder = tmp_path / "run"
        train_inside(*RUN, f"run_dir={folder}", "schedule.warmup_steps=0")
    message = error_of(capsys, f"run_dir={folder}", *changes)
    assert reason in message
    assert f"init_from={folder}" in message


@pytest.mark.slow
def test_a_run_that_started_from_another_s_weights_goes_on_where_those_are_gone(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*TINY, *SMALL_CODEBOOK, f"run_dir={tmp_path / 'run'}"]
    (tmp_path / "source").symlink_to(finished_run)
    with monkeypatch.context() as patched:
        patched.setattr(training, "make_trainer", fail_early)
        error_of(capsys, *own, f"init_from={tmp_path / 'source'}")
    (tmp_path / "source").unlink()
    train_inside(*own, f"init_from={tmp_path / 'source'}")
    train_inside(f"run_dir={tmp_path / 'run'}")
    assert "starts anew" not in (tmp_path / "run" / "train.log").read_text()
