"""Laws of runs that fail: what was finished stays, and what is written is whole or refused."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    SMALL_CODEBOOK,
    TINY,
    assert_same_result,
    call_inside,
    command,
    error_of,
    lines,
    run,
    train_inside,
    weights,
)
from torch import Tensor

from vqvae import checkpoint
from vqvae.data import arrays
from vqvae.data.code_store import CodeStore
from vqvae.files import WriteError, write_bytes
from vqvae.losses.reconstruction import MSE
from vqvae.stages.autoencoder import AutoencoderStage
from vqvae.stages.prior import PriorStage

RUN = [
    *TINY,
    *SMALL_CODEBOOK,
    "trainer.weight_average_decay=0.9",
    "quantizer.revival.every_steps=2",
    "quantizer/init=data",
    "trainer.batch_size=24",
]

INTERVALS = {"log": 1, "eval": 5, "preview": 5, "checkpoint": 2}

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
    place: type, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after it: an evaluation may take minutes, and machines give ten seconds."""
    train_inside(*RUN, f"run_dir={tmp_path / 'whole'}")
    original, calls, finished = getattr(place, what), 0, 0

    def interrupted(self: object, *args: object) -> object:
        nonlocal calls, finished
        calls += 1
        if calls == (2 if what == "evaluate" else 1):  # the first evaluates one picture, for the shapes
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
    assert_same_result(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["decoding", "encoding", "summary"])
def test_sigterm_outside_of_training_exits_with_143_within_seconds(moment: str, tmp_path: Path) -> None:
    """Work without checkpoints, each made to last for a minute; started again, the run ends."""
    places = {
        "decoding": "vqvae.data.shapes:draw_shapes",
        "encoding": "vqvae.pipeline:encode",
        "summary": "vqvae.report:summarise",
    }
    module, name = places[moment].split(":")
    code = (
        f"import sys, time, {module}\n"
        f"def slow(*_, **__):\n    print('now', flush=True)\n    time.sleep(60)\n"
        f"{module}.{name} = slow\n"
        "import train\ntrain.main()\n"
    )
    arguments = [*RUN, f"run_dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]
    process = subprocess.Popen(
        [command("train.py")[0], "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(command("train.py")[1]).parent,
    )
    assert process.stdout is not None
    assert any("now" in line for line in process.stdout)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert time.monotonic() - began < 10
    assert "stopped on request" in errors
    assert "Traceback" not in errors
    run("train.py", *arguments)


@pytest.mark.slow
def test_ctrl_c_twice_leaves_at_once_with_nothing_damaged(tmp_path: Path) -> None:
    """The second one comes while the step at hand, made long, still runs."""
    train_inside(*RUN, f"run_dir={tmp_path / 'whole'}")
    code = (
        "import time, vqvae.trainer as t\n"
        "original = t.Trainer.train_step\n"
        "def train_step(self, at, batch):\n"
        "    if at == 2:\n        print('now', flush=True)\n        time.sleep(60)\n"
        "    original(self, at, batch)\n"
        "t.Trainer.train_step = train_step\n"
        "import train\ntrain.main()\n"
    )
    arguments = [*RUN, f"run_dir={tmp_path / 'run'}", "trainer.checkpoint_every_steps=1"]
    process = subprocess.Popen(
        [command("train.py")[0], "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(command("train.py")[1]).parent,
    )
    assert process.stdout is not None
    assert any("now" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None, "the first one waits for the step"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors
    train_inside(*arguments)
    for stage in ("autoencoder", "prior"):
        first, second = weights(tmp_path / "whole", stage), weights(tmp_path / "run", stage)
        assert all(torch.equal(first[key], second[key]) for key in first)


# ---- kills

KILLED_INSIDE = """
import os, signal, sys
import train
target, times, events = sys.argv.pop(1).split(",")
times, events = int(times), int(events)

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
train.main()
"""
KILLS = [
    *["begin_run", "train_step", "save", "evaluate", "writing", "log", "preview", "append_line"],  # of stage 1, mostly
    *["encode", "write", "digest", "require"],  # of the code stores
    *["train_step", "save", "evaluate", "writing", "log", "start_embeddings"],  # of stage 2, mostly
    *["summarise", "write_png"],
]


@pytest.mark.slow
def test_killed_at_twenty_moments_of_its_work_a_run_ends_bit_identical_to_one_never_killed(tmp_path: Path) -> None:
    """SIGKILL some calls, returns and system calls after a named function was entered for the n-th time, both drawn."""
    every = [f"{stage}trainer.{key}_every_steps={n}" for stage in ("", "prior.") for key, n in INTERVALS.items()]
    arguments = [*RUN, *every, "trainer.steps=30", "prior.trainer.steps=30"]
    train_inside(*arguments, f"run_dir={tmp_path / 'whole'}")
    choose = random.Random(0)
    killed_in_stage = []
    for target in KILLS:
        times = 1 if target in ("begin_run", "start_embeddings", "summarise", "write_png") else choose.randint(1, 3)
        plan = f"{target},{times},{choose.randint(0, 60)}"
        done = subprocess.run(
            [command("train.py")[0], "-c", KILLED_INSIDE, plan, *arguments, f"run_dir={tmp_path / 'killed'}"],
            cwd=Path(command("train.py")[1]).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, (plan, done.stderr[-2000:])
        killed_in_stage.append((tmp_path / "killed" / "codes").is_dir())
    assert 6 <= sum(killed_in_stage) <= 14, "both stages were killed often"
    train_inside(*arguments, f"run_dir={tmp_path / 'killed'}")
    assert_same_result(tmp_path / "whole", tmp_path / "killed")


# ---- losses that are not finite


def bad_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the reconstruction loss NaN in some training steps."""
    original, at = MSE.distance, -1
    begin_step = AutoencoderStage.begin_step

    def begin(self: AutoencoderStage, step: int, count: int) -> None:
        nonlocal at
        at = step
        begin_step(self, step, count)

    def distance(self: MSE, output: Tensor, x: Tensor) -> Tensor:
        value = original(self, output, x)
        return value * float("nan") if at in steps and torch.is_grad_enabled() else value

    monkeypatch.setattr(AutoencoderStage, "begin_step", begin)
    monkeypatch.setattr(MSE, "distance", distance)


def test_a_skipped_step_changes_no_weight_no_average_and_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate of 0 from then on, what is left after it is what there was before."""
    from vqvae.trainer import Trainer

    states: list[dict[str, Tensor]] = []
    train_step = Trainer.train_step

    def watch(self: Trainer, step: int, batch: object) -> None:
        train_step(self, step, batch)  # type: ignore[arg-type]
        assert self.average is not None
        state = {**self.stage.networks["model"].state_dict(), "counts": self.stage.meters.counts[-1]}  # type: ignore[dict-item, index]
        state |= {f"average{i}": weight for i, weight in enumerate(self.average.weights)}
        states.append({key: value.clone() for key, value in state.items()})

    bad_at(monkeypatch, {2})
    monkeypatch.setattr(Trainer, "train_step", watch)
    more = ["stages=[autoencoder]", "trainer.steps=4", "trainer.on_nonfinite=skip", f"run_dir={tmp_path / 'run'}"]
    train_inside(*RUN, *more)
    before, skipped, after = states[1:4]
    assert all(torch.equal(before[key], skipped[key]) for key in before)
    assert not torch.equal(skipped["counts"], after["counts"])
    assert not torch.equal(skipped["average0"], after["average0"])


def test_the_batch_of_a_skipped_step_is_written_down_and_its_metrics_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqvae.data.sampler import training_indices

    bad_at(monkeypatch, {1, 3})
    every = ["trainer.log_every_steps=3", "trainer.eval_every_steps=6"]
    more = ["stages=[autoencoder]", "trainer.steps=6", *every, "trainer.on_nonfinite=skip"]
    train_inside(*RUN, *more, f"run_dir={tmp_path / 'run'}", "seed=5")
    found = lines(tmp_path / "run" / "autoencoder" / "skipped_steps.jsonl")
    assert [line["step"] for line in found] == [1, 3]
    assert found[1]["indices"] == training_indices(5, 3, 24, 96).tolist()
    logged = [line for line in lines(tmp_path / "run" / "autoencoder" / "metrics.jsonl") if "train/loss" in line]
    assert all(0 < line["train/loss"] < 1e3 for line in logged)
    assert logged[-1]["train/skipped_steps"] == 2


def test_too_many_skipped_steps_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_at(monkeypatch, set(range(100)))
    more = ["trainer.steps=9", "trainer.log_every_steps=3", "trainer.on_nonfinite=skip", "trainer.max_skipped_steps=4"]
    message = error_of(capsys, *RUN, *more, f"run_dir={tmp_path / 'run'}")
    assert "not finite in 6 steps up to step 6" in message
    assert "trainer.max_skipped_steps=4 is the limit" in message


# ---- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leaves `left` bytes free."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return ballast


def test_a_file_for_which_there_is_no_room_leaves_the_old_one_and_says_what_it_needs(small_disk: Path) -> None:
    write_bytes(small_disk / "file", b"old")
    fill(small_disk, 100_000)
    with pytest.raises(WriteError, match=r"cannot write .*file: No space left on device \(it needs 1\.0 MiB, .*free\)"):
        write_bytes(small_disk / "file", bytes(2**20))
    assert (small_disk / "file").read_bytes() == b"old"
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast", "file"]


def test_a_code_store_for_which_there_is_no_room_is_refused_before_it_is_mapped(small_disk: Path) -> None:
    """A memory map of a file without room would end the process by a signal."""
    header = {"code_shapes": [[64, 64]], "codebook_sizes": [512], "tokenizer": "t", "data": "d"}
    with pytest.raises(WriteError, match=r"codes_0\.npy: No space left on device \(it needs 7\.8 MiB"):
        CodeStore.write(small_disk / "codes" / "train", header, 1000, iter([]))
    with pytest.raises(ValueError, match="holds no code store"):
        CodeStore(small_disk / "codes" / "train")


def test_room_is_taken_when_an_array_is_made(small_disk: Path) -> None:
    free = shutil.disk_usage(small_disk).free
    array = arrays.create(small_disk / "array.npy", np.dtype(np.uint8), (2**20,))
    assert shutil.disk_usage(small_disk).free <= free - 2**20
    assert not array.any()


@pytest.mark.parametrize("moment", ["autoencoder", "codes", "prior", "pictures"])
def test_a_full_disk_ends_a_run_in_one_line_and_the_same_command_continues_when_there_is_room(
    moment: str, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up while the run is at work; bit-identical in the end."""
    import vqvae.pipeline
    import vqvae.report
    from vqvae.trainer import Trainer

    train_inside(*RUN, f"run_dir={tmp_path / 'whole'}")
    ballast: list[Path] = []

    def filling(place: object, name: str, when: Callable[..., bool]) -> None:
        original = getattr(place, name)

        def fills(*args: object, **kwargs: object) -> object:
            if not ballast and when(*args):
                ballast.append(fill(small_disk, 2_000))
            return original(*args, **kwargs)

        monkeypatch.setattr(place, name, fills)

    if moment in ("autoencoder", "prior"):
        filling(Trainer, "train_step", lambda self, at, batch: self.logger.stage == moment and at == 2)
    else:
        place, name = {"codes": (CodeStore, "write"), "pictures": (vqvae.report, "plot_curves")}[moment]
        filling(place, name, lambda *_: True)
    message = error_of(capsys, *RUN, f"run_dir={small_disk / 'run'}")
    assert f"error: cannot write {small_disk / 'run'}" in message
    assert "No space left on device" in message
    assert message.count("\n") == 1
    ballast[0].unlink()
    train_inside(*RUN, f"run_dir={small_disk / 'run'}")
    assert_same_result(tmp_path / "whole", small_disk / "run")
    assert (small_disk / "run" / "samples.png").is_file()


def test_a_run_folder_that_cannot_be_written_is_one_clear_line(
    finished_run: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, small_disk / "run", ignore=shutil.ignore_patterns("checkpoints"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    message = error_of(capsys, *TINY, *SMALL_CODEBOOK, f"run_dir={small_disk / 'run'}")
    assert "Read-only file system" in message
    with pytest.raises(SystemExit):
        call_inside("sample", f"run_dir={small_disk / 'run'}", "n=1")
    message = capsys.readouterr().err
    assert f"error: cannot write {small_disk / 'run'}" in message
    call_inside("sample", f"run_dir={small_disk / 'run'}", "n=1", f"out={small_disk.parent / 'out'}")


# ---- damage


def damages(data: bytes, count: int) -> Iterator[bytes]:
    """Cut off at any byte, and with any byte changed."""
    choose = random.Random(0)
    for place in (0, 1, len(data) - 1, *(choose.randrange(len(data)) for _ in range(count))):
        yield data[:place]
        yield data[:place] + bytes([data[place] ^ (1 << choose.randrange(8))]) + data[place + 1 :]


def test_a_damaged_file_of_weights_is_refused_wherever_the_damage_is(finished_run: Path, tmp_path: Path) -> None:
    (file,) = (finished_run / "prior").glob("weights-*.pt")
    for data in damages(file.read_bytes(), 150):
        (tmp_path / file.name).write_bytes(data)
        with pytest.raises(ValueError, match="is damaged"):
            checkpoint.load(tmp_path / file.name)


def test_a_damaged_code_store_is_refused_wherever_the_damage_is(finished_run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished_run / "codes" / "val", store)
    for name in ("codes_0.npy", "labels.npy"):
        whole = (store / name).read_bytes()
        for data in damages(whole, 100):
            (store / name).write_bytes(data)
            with pytest.raises(ValueError, match=str(store)):
                CodeStore(store)
        (store / name).write_bytes(whole)
    header = json.loads((store / "header.json").read_text())
    (store / "header.json").write_text(json.dumps({**header, "count": header["count"] + 1}))
    with pytest.raises(ValueError, match="header says"):
        CodeStore(store)


# ---- long runs


@pytest.mark.slow
def test_two_thousand_steps_of_each_stage_do_not_grow_memory(tmp_path: Path) -> None:
    """Less than 2 % after the first 200 steps, with logging on."""
    code = (
        "import vqvae.trainer as t\n"
        "original, sizes = t.Trainer.log, {}\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1])\n"
        "def log(self, step, bar, clock):\n"
        "    original(self, step, bar, clock)\n"
        "    sizes.setdefault(self.logger.stage, {})[step] = resident()\n"
        "t.Trainer.log = log\n"
        "import train\ntrain.main()\n"
        "for stage, of in sizes.items():\n"
        "    print('GROWTH', stage, max(v for s, v in of.items() if s > 1800) / of[200])\n"
    )
    long = ["trainer.steps=2000", "prior.trainer.steps=2000", "trainer.log_every_steps=10", "logger=wandb"]
    quiet = ["trainer.checkpoint_every_steps=500", "prior.trainer.checkpoint_every_steps=500", "logger.mode=offline"]
    every = ["trainer.eval_every_steps=100", "prior.trainer.eval_every_steps=100", "prior.trainer.log_every_steps=10"]
    own = [a for a in RUN if not a.startswith("logger")]
    done = subprocess.run(
        [command("train.py")[0], "-c", code, *own, *long, *quiet, *every, f"run_dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
        cwd=Path(command("train.py")[1]).parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    growth = {line.split()[1]: float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("GROWTH")}
    assert set(growth) == {"autoencoder", "prior"}
    assert max(growth.values()) < 1.02, growth


def test_what_the_system_refuses_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match=r"cannot write .*: Not a directory") as refused:
        write_bytes(tmp_path / "file" / "below" / "it", b"x")
    assert refused.value.errno == errno.ENOTDIR
    assert os.listdir(tmp_path) == ["file"]
