"""Sweeps through submitit, whose local executor stands in for Slurm; preempted jobs continue where they stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, command, weights

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
pytestmark = pytest.mark.slow

STEPS = ["trainer.steps=400", "trainer.log_every_steps=10", "trainer.eval_every_steps=100"]
SWEEP = [
    "-m",
    "hydra/launcher=submitit_local",
    *(a for a in TINY if not a.startswith("quantizer.")),
    *STEPS,
    "trainer.checkpoint_every_steps=30",
    "trainer.preview_every_steps=0",
    "stages=[autoencoder]",
    "quantizer=ema,fsq",
]


def sweep(run_dir: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train.py", *SWEEP, *more, f"run_dir={run_dir}"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text[-3000:]
    return text


def job(run_dir: Path, quantizer: str) -> Path:
    (folder,) = (path for path in run_dir.glob(f"*quantizer={quantizer}*") if path.is_dir())
    return folder


def task_of(run_dir: Path, folder: Path) -> int:
    """The process that trains in `folder`: the child of a submitit controller, whose id names the job."""
    for log in (run_dir / ".submitit").glob("*/*_log.out"):
        if f"run folder: {folder}" in log.read_text():
            controller = log.parent.name
            return int(Path(f"/proc/{controller}/task/{controller}/children").read_text().split()[0])
    raise AssertionError(f"no job trains in {folder}")


def logs(run_dir: Path) -> str:
    return "".join(file.read_text() for file in (run_dir / ".submitit").glob("*/*_log.*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("queue") / "sweep"
    text = output(sweep(run_dir))
    assert f"2 finished jobs in {run_dir}" in text
    assert "quantizer=fsq" in text
    return run_dir


def test_a_sweep_through_the_queue_run_again_skips_what_is_finished(undisturbed: Path) -> None:
    before = {file: file.read_bytes() for file in undisturbed.glob("*/autoencoder/*.jsonl")}
    assert len(before) == 4
    text = output(sweep(undisturbed))
    assert f"2 finished jobs in {undisturbed}" in text
    assert logs(undisturbed).count("autoencoder: finished before") == 2
    assert before == {file: file.read_bytes() for file in undisturbed.glob("*/autoencoder/*.jsonl")}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the job's process in /proc")
def test_a_preempted_job_is_requeued_and_ends_bit_identical(undisturbed: Path, tmp_path: Path) -> None:
    """Twice, by the signal that submitit asks Slurm for; the other job of the sweep is left alone."""
    run_dir = tmp_path / "sweep"
    process, signalled = sweep(run_dir), set()
    for wanted in (8, 24):
        while process.poll() is None and len(metrics(run_dir)) < wanted:
            time.sleep(0.01)
        assert process.poll() is None
        signalled.add(task_of(run_dir, job(run_dir, "ema")))
        os.kill(max(signalled), signal.SIGUSR2)
        while process.poll() is None and task_gone(max(signalled)) is False:
            time.sleep(0.01)
    text = output(process)
    assert f"2 finished jobs in {run_dir}" in text
    assert len(signalled) == 2
    assert logs(run_dir).count("- Requeued job") == 2
    assert (job(run_dir, "ema") / "train.log").read_text().count("continuing from step") == 2
    for quantizer in ("ema", "fsq"):
        a, b = job(undisturbed, quantizer), job(run_dir, quantizer)
        assert (a / "autoencoder/metrics.jsonl").read_bytes() == (b / "autoencoder/metrics.jsonl").read_bytes()
        first, second = weights(a, "autoencoder"), weights(b, "autoencoder")
        assert all((first[key] == second[key]).all() for key in first)


def metrics(run_dir: Path) -> list[object]:
    found = list(run_dir.glob("*quantizer=ema*/autoencoder/metrics.jsonl"))
    return [line for file in found for line in file.read_text().splitlines()]


def task_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
