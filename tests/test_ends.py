"""Laws of how a training ends, whatever ends it, with and without workers and other ranks: soon, and altogether."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import SMALL_CODEBOOK, TINY
from forked import TRAIN, Child, Forks, as_ranks, codes_of
from test_data import write_image
from two_processes import free_ports

from vqvae.surroundings.signals import in_one_piece
from vqvae.training.stop import Stopped, StopRequest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the processes in /proc"),
]

RUN = [
    *(a for a in TINY if not a.startswith("data.")),
    *SMALL_CODEBOOK,
    "data=folder",
    "data.image_size=16",
    "data.val_share=0.2",
    "data.resident=stream",
    "stages=[autoencoder]",
    "trainer.batch_size=8",
    "trainer.eval_batch_size=4",
    "trainer.log_every_steps=1",
    "trainer.eval_every_steps=0",
    "trainer.preview_every_steps=0",
    "trainer.checkpoint_every_steps=100000",
]
ERROR_IN_A_STEP = """
from vqvae.training.trainer import Trainer
original = Trainer.train_step
def fails(self, kind, inputs):
    if rank == {last} and int(self.skipped.step) == 2:
        raise KeyError("trouble")
    original(self, kind, inputs)
Trainer.train_step = fails
"""
WITHOUT_PLOTS = """
import vqvae.run.report as report
report.plot_curves = report.plot_codes = lambda *arguments: None
"""
SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM, "a closed terminal": signal.SIGHUP}
EVENTS = ["the last step", "an error in a step", "unreadable data", *SIGNALS, "a killed worker", "SIGKILL"]
SECONDS = 15


def session(of: int) -> list[int]:
    """Processes of a session that are not over."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, leader, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(leader) == of and state != "Z":
            found.append(int(stat.parent.name))
    return found


def children(of: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def wait_for_steps(run_dir: Path, process: Child) -> None:
    log = run_dir / "autoencoder" / "metrics.jsonl"
    while not (log.is_file() and log.read_text().count("\n") >= 3):
        assert process.poll(0.02) is None, process.err.read_text()[-3000:] + process.out.read_text()[-1000:]


def assert_nothing_is_left(process: Child) -> None:
    until = time.monotonic() + 3  # a worker looks for its parent each second
    while session(process.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert session(process.pid) == []


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(24):
        write_image(folder / f"{index}.png", seed=index)
    return folder


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unreadable")
    for index in range(24):
        (folder / f"{index}.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("event", EVENTS)
def test_every_end_is_an_end(
    event: str, workers: int, ranks: int, images: Path, unreadable: Path, forks: Forks, tmp_path: Path
) -> None:
    """Within 15 seconds, with its exit code, a checkpoint where one is promised, and no process left."""
    if event == "a killed worker" and not workers:
        pytest.skip("there is none")
    run_dir, last = tmp_path / "run", ranks - 1
    steps = "trainer.steps=3" if event == "the last step" else "trainer.steps=100000"
    root = unreadable if event == "unreadable data" else images
    fault = {"an error in a step": ERROR_IN_A_STEP.format(last=last), "the last step": WITHOUT_PLOTS}.get(event, "")
    arguments = [*RUN, steps, f"data.root={root}", f"data.workers={workers}", f"run_dir={run_dir}"]
    process = forks.start(*arguments, code=as_ranks(ranks, free_ports(1)[0], fault + TRAIN))
    if event in (*SIGNALS, "a killed worker", "SIGKILL"):
        wait_for_steps(run_dir, process)
    if event in SIGNALS:
        os.killpg(process.pid, SIGNALS[event])  # as a terminal and Slurm do, to the workers as well
    elif event == "a killed worker":
        os.kill(children(children(process.pid)[last])[0], signal.SIGKILL)
    elif event == "SIGKILL":
        os.kill(children(process.pid)[last], signal.SIGKILL)
    sent = event in (*SIGNALS, "a killed worker", "SIGKILL")  # others come some time after the start
    process.wait(SECONDS if sent else 90)
    assert_nothing_is_left(process)
    codes, errors = codes_of(process), process.err.read_text()
    if event == "the last step":
        assert codes == [0] * ranks, errors
        assert list((run_dir / "autoencoder").glob("weights-*.pt"))
    elif event in SIGNALS:
        assert codes == [128 + SIGNALS[event]] * ranks, errors
        (step,) = re.findall(r"stopped on request at step (\d+) of", errors)
        assert list((run_dir / "autoencoder/checkpoints").glob(f"step-{int(step):09d}-*.pt"))
    else:
        assert 0 not in codes
        code, message = {
            "an error in a step": (1, "KeyError: 'trouble'"),
            "unreadable data": (2, "none of the "),
            "SIGKILL": (-signal.SIGKILL, ""),
            "a killed worker": (2, "error: a worker that reads data "),
        }[event]
        assert codes[0 if event == "unreadable data" else last] == code
        assert not message or errors.count(message) == 1, errors
    if event == "SIGKILL":  # a worker that was handing something over says that nobody takes it
        return
    assert ("Traceback" in errors) == (event == "an error in a step"), errors


SMALL_SHARED_MEMORY = """
import ctypes, subprocess
ctypes.CDLL(None).unshare(0x20000)  # a mount namespace of its own
subprocess.run("mount --make-rprivate / && mount -t tmpfs -o size={size} tmpfs /dev/shm", shell=True, check=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize("size", ["4k", "200k"])  # too small for locks; for a batch
def test_a_small_shared_memory_is_one_sentence_that_names_the_ways_out(
    size: str, images: Path, forks: Forks, tmp_path: Path
) -> None:
    """Docker gives 64 MiB."""
    large = [a for a in RUN if not a.startswith("data.image_size")] + ["data.image_size=128", "data.workers=2"]
    arguments = [*large, f"data.root={images}", f"run_dir={tmp_path / 'run'}"]
    process = forks.start(*arguments, code=SMALL_SHARED_MEMORY.format(size=size) + TRAIN)
    assert process.wait(60) == 2, process.err.read_text()
    message = process.err.read_text()
    assert message.startswith("error: the shared memory, /dev/shm, is too small")
    assert "--shm-size" in message
    assert "data.workers=0" in message
    assert message.count("\n") == 1 or size == "4k"  # torch says there that it could not undo what it had not begun
    assert_nothing_is_left(process)


def test_a_stop_while_workers_start_waits_until_they_have() -> None:
    """Even if another thread receives the signal; torch cannot undo half a start."""
    with StopRequest():
        with in_one_piece():
            signal.raise_signal(signal.SIGTERM)
            started = True
        with pytest.raises(Stopped):
            time.sleep(10)
    assert started
