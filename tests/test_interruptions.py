"""Laws of runs that are stopped or killed at any moment: they continue as if nothing had happened."""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import (
    SMALL_CODEBOOK,
    TINY,
    assert_same_result,
    run,
    train_inside,
    weights,
)
from forked import Child, Forks

from vqvae.stages.autoencoder import AutoencoderStage
from vqvae.stages.prior import PriorStage
from vqvae.storage import checkpoint
from vqvae.training.stop import Stopped, StopRequest

pytestmark = pytest.mark.cpu

RUN = [
    *TINY,
    *SMALL_CODEBOOK,
    "trainer.weight_average_decay=0.9",
    "quantizer.revival.every_steps=2",
    "quantizer/init=data",
    "trainer.batch_size=24",
]

INTERVALS = {"log": 1, "eval": 5, "preview": 5, "checkpoint": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train_inside(*RUN, f"run_dir={run_dir}")
    return run_dir


# ---- requests to stop


@pytest.mark.parametrize(
    ("place", "what"),
    [
        (AutoencoderStage, "begin_run"),
        (AutoencoderStage, "evaluate"),
        (AutoencoderStage, "preview"),
        (PriorStage, "evaluate"),
        (PriorStage, "preview"),
    ],
)
def test_sigterm_in_the_middle_of_long_work_ends_it_at_once_and_nothing_is_lost(
    place: type,
    what: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not after it: an evaluation may take minutes, and machines give ten seconds."""
    original, calls, finished = getattr(place, what), 0, 0

    def interrupted(self: object, *args: object) -> object:
        nonlocal calls, finished
        calls += 1
        if calls == 1:
            signal.raise_signal(signal.SIGTERM)
            finished += 1
        return original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(place, what, interrupted)
        with pytest.raises(SystemExit) as stopped:
            train_inside(*RUN, f"run_dir={tmp_path / 'stopped'}")
    assert (stopped.value.code, finished) == (143, 0)
    assert "stopped on request" in capsys.readouterr().err
    train_inside(*RUN, f"run_dir={tmp_path / 'stopped'}")
    assert_same_result(whole, tmp_path / "stopped")


LONG_WORK = {  # each made to last a minute, in a process of its own
    "decoding": "vqvae.data.shapes:draw_shapes",
    "start from data": "vqvae.stages.autoencoder:AutoencoderStage.begin_run",
    "evaluation": "vqvae.stages.autoencoder:AutoencoderStage.evaluate",
    "preview": "vqvae.stages.autoencoder:AutoencoderStage.preview",
    "encoding": "vqvae.run.encoding:encode",
    "evaluation of the prior": "vqvae.stages.prior:PriorStage.evaluate",
    "preview of the prior": "vqvae.stages.prior:PriorStage.preview",
    "summary": "vqvae.run.report:summarize",
}
SLOWED = """
import functools, importlib, time
*owners, name = "{names}".split(".")
place = functools.reduce(getattr, owners, importlib.import_module("{module}"))
original = getattr(place, name)

def slow(*args, **kwargs):
    print("now", flush=True)
    time.sleep({seconds})
    return original(*args, **kwargs)

setattr(place, name, slow)
import train
train.main()
"""


def start_slowed(forks: Forks, place: str, seconds: float, *arguments: str) -> Child:
    """train.py with a function that first says "now" and sleeps; returns when it does."""
    module, names = place.split(":")
    child = forks.start(*arguments, code=SLOWED.format(module=module, names=names, seconds=seconds))
    while "now\n" not in child.out.read_text():
        assert child.poll(0.05) is None, child.err.read_text()[-2000:]
    return child


@pytest.mark.slow
@pytest.mark.parametrize("moment", LONG_WORK)
def test_sigterm_in_the_middle_of_long_work_is_obeyed_within_ten_seconds(
    moment: str, forks: Forks, tmp_path: Path
) -> None:
    """Exit code 143, with a checkpoint where there was something to keep; started again, the run ends."""
    arguments = [*RUN, f"run_dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]
    process = start_slowed(forks, LONG_WORK[moment], 60, *arguments)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 143
    assert time.monotonic() - began < 10
    errors = process.err.read_text()
    assert "stopped on request" in errors
    assert "Traceback" not in errors
    if moment.split()[0] in ("evaluation", "preview"):
        stage = "prior" if "prior" in moment else "autoencoder"
        assert checkpoint.find(tmp_path / "run" / stage / "checkpoints", "step-*")
    run("train.py", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("second", ["in the step", "in the checkpoint"])
def test_ctrl_c_twice_leaves_at_once_with_nothing_damaged(
    second: str, forks: Forks, whole: Path, tmp_path: Path
) -> None:
    """The first one waits for the step and its checkpoint, both made long here."""
    place = {
        "in the step": "vqvae.training.trainer:Trainer.train_step",
        "in the checkpoint": "vqvae.storage.checkpoint:save_step",
    }[second]
    arguments = [*RUN, f"run_dir={tmp_path / 'run'}", "trainer.checkpoint_every_steps=1"]
    process = start_slowed(forks, place, 60, *arguments)
    os.kill(process.pid, signal.SIGINT)
    assert process.poll(1) is None, "the first one waits"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    assert "Traceback" not in process.err.read_text()
    train_inside(*arguments)
    for stage in ("autoencoder", "prior"):
        first, second_run = weights(whole, stage), weights(tmp_path / "run", stage)
        assert all(torch.equal(first[key], second_run[key]) for key in first)


# ---- kills

KILLED_INSIDE = """
import os, signal, sys
target, times, events = "{target}", {times}, {events}

def watch(frame, event, argument):
    global times, events
    if "vqvae" in frame.f_code.co_filename:
        if times and event == "call" and frame.f_code.co_name == target:
            times -= 1
        if not times:
            events -= 1
            if events < 0:
                os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(watch)
import train
train.main()
"""
KILLS = [
    # of stage 1, mostly
    *["begin_run", "train_step", "save", "evaluate", "write_bytes", "log", "preview", "append_line"],
    # of the code stores, then of stage 2, mostly
    *["encode", "write", "digest", "require"],
    *["train_step", "save", "evaluate", "write_bytes", "log", "start_embeddings"],
    *["summarize", "write_png"],
]


@pytest.mark.slow
@pytest.mark.longest
def test_killed_at_twenty_moments_of_its_work_a_run_ends_bit_identical_to_one_never_killed(
    forks: Forks, tmp_path: Path
) -> None:
    """SIGKILL a random number of calls and returns after the n-th call of a named function."""
    every = [f"{stage}trainer.{key}_every_steps={n}" for stage in ("", "prior.") for key, n in INTERVALS.items()]
    arguments = [*RUN, *every, "trainer.steps=30", "prior.trainer.steps=30"]
    train_inside(*arguments, f"run_dir={tmp_path / 'whole'}")
    choose = random.Random(0)
    killed_in_stage = []
    for target in KILLS:
        times = 1 if target in ("begin_run", "start_embeddings", "summarize", "write_png") else choose.randint(1, 3)
        code = KILLED_INSIDE.format(target=target, times=times, events=choose.randint(0, 60))
        process = forks.start(*arguments, f"run_dir={tmp_path / 'killed'}", code=code)
        assert process.wait() == -signal.SIGKILL, (target, process.err.read_text()[-2000:])
        killed_in_stage.append((tmp_path / "killed" / "codes").is_dir())
    assert 6 <= sum(killed_in_stage) <= 14, "both stages were killed often"
    train_inside(*arguments, f"run_dir={tmp_path / 'killed'}")
    assert_same_result(tmp_path / "whole", tmp_path / "killed")


def test_a_stop_waits_until_an_import_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extension modules turn what is raised while they load into an ImportError."""
    (tmp_path / "stopped_while_loading.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGTERM)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with StopRequest() as stop:
        began = time.monotonic()
        with pytest.raises(Stopped):  # noqa: PT012
            importlib.import_module("stopped_while_loading")
            time.sleep(10)
        assert stop.number == signal.SIGTERM
        assert time.monotonic() - began < 5
    assert sys.modules["stopped_while_loading"].whole


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no terminals that close")
def test_under_nohup_a_closed_terminal_is_no_request() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)
