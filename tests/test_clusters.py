"""Laws of several processes and machines: a rank dies, the launcher gets a signal, two machines train one run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_CODEBOOK, TINY, lines, run, weights
from two_processes import free_ports, under_torchrun

pytestmark = [pytest.mark.slow, pytest.mark.cpu]

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
RUN = [
    *TINY,
    *SMALL_CODEBOOK,
    "stages=[autoencoder]",
    "trainer.steps=300",
    "trainer.log_every_steps=5",
    "trainer.eval_every_steps=100",
    "trainer.preview_every_steps=0",
    "trainer.checkpoint_every_steps=40",
]


def launch(run_dir: Path, *options: str) -> subprocess.Popen[str]:
    """torchrun with two ranks, on the CPU."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # see docs/clusters.md
    arguments = [*LAUNCH, *options, "train.py", *RUN, f"run_dir={run_dir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]


def output(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=200)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def has_lines(run_dir: Path, count: int) -> bool:
    file = run_dir / "autoencoder" / "metrics.jsonl"
    return file.is_file() and file.read_text().count("\n") >= count


def wait_for_lines(run_dir: Path, count: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not has_lines(run_dir, count):
        time.sleep(0.01)
    assert process.poll() is None, output(process)[-3000:]


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks, in order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in map(int, children):
        rank = re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{child}/environ").read_bytes())
        if rank:
            ranks[int(rank[1])] = child
    return [ranks[rank] for rank in sorted(ranks)]


def assert_same_result(a: Path, b: Path) -> None:
    assert (a / "autoencoder/metrics.jsonl").read_bytes() == (b / "autoencoder/metrics.jsonl").read_bytes()
    first, second = weights(a, "autoencoder"), weights(b, "autoencoder")
    assert all((first[key] == second[key]).all() for key in first)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("two") / "run"
    process = launch(run_dir)
    text = output(process)
    assert process.returncode == 0, text[-3000:]
    return run_dir


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
def test_a_killed_rank_is_started_again_by_torchrun_and_the_run_ends_bit_identical(
    undisturbed: Path, tmp_path: Path
) -> None:
    """First rank 0, then rank 1 of those that were started again."""
    process = launch(tmp_path / "run", "--max-restarts=3")
    for victim, count in ((0, 12), (1, 40)):  # lines of metrics: after the first checkpoint, and after the restart
        wait_for_lines(tmp_path / "run", count, process)
        os.kill(workers(process)[victim], signal.SIGKILL)
        time.sleep(1)
    text = output(process)
    assert process.returncode == 0, text[-3000:]
    assert text.count("continuing from step") == 2
    assert_same_result(undisturbed, tmp_path / "run")


def test_torchrun_told_to_end_leaves_a_checkpoint_of_that_step_and_the_next_goes_on_bit_identical(
    undisturbed: Path, tmp_path: Path
) -> None:
    """SIGTERM, which torchrun passes on to the ranks."""
    process = launch(tmp_path / "run")
    wait_for_lines(tmp_path / "run", 5, process)
    process.terminate()
    text = output(process)
    assert process.returncode != 0
    (step,) = set(re.findall(r"stopped on request at step (\d+) of 300", text))
    again = launch(tmp_path / "run")
    text = output(again)
    assert again.returncode == 0, text[-3000:]
    assert f"continuing from step {step} of 300" in text
    assert_same_result(undisturbed, tmp_path / "run")


def run_on_port(port: int, program: str, *arguments: str) -> None:
    os.environ["MASTER_PORT"] = str(port)
    run(program, *arguments)


def test_two_ranks_train_both_stages_evaluate_and_draw_as_one_process_does(tmp_path: Path) -> None:
    """Metrics up to rounding; figures and samples of the same run are those of one process."""

    def torchrun(program: str, *arguments: str) -> None:
        under_torchrun(tmp_path, run_on_port, *free_ports(1), program, *arguments)

    own = [*TINY, *SMALL_CODEBOOK, "trainer.precision=fp32", "prior.trainer.precision=fp32"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run("train.py", *own, f"run_dir={alone}")
    torchrun("train.py", *own, f"run_dir={shared}")
    for stage in ("autoencoder", "prior"):
        first, second = (lines(folder / stage / "metrics.jsonl") for folder in (alone, shared))
        for a, b in zip(first, second, strict=True):
            numbers = [key for key in a if isinstance(a[key], (int, float))]
            assert {key: b[key] for key in numbers} == pytest.approx(
                {key: a[key] for key in numbers}, rel=1e-2, abs=1e-3
            )
    files = []
    for launch_it, name in ((run, "one"), (torchrun, "two")):
        launch_it("scripts/evaluate.py", f"run_dir={shared}", f"out={tmp_path / name}.json")
        launch_it("sample.py", f"run_dir={shared}", "n=5", f"out={tmp_path / name}")
        figures = json.loads((tmp_path / f"{name}.json").read_text())["figures"]
        files.append({key: one["value"] for key, one in figures.items() if not key.endswith(("_seconds", "_second"))})
    assert files[0] == pytest.approx(files[1], rel=1e-6)
    for png in (tmp_path / "one").glob("*.png"):
        assert png.read_bytes() == (tmp_path / "two" / png.name).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip")
def test_two_machines_train_one_run() -> None:
    """Two network namespaces on this machine, joined by a virtual cable."""
    environment = {**os.environ, "PYTHON": sys.executable}
    script = ["bash", str(ROOT / "scripts" / "two_nodes.sh")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=280)
    if "lets nobody make network namespaces" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node 0 ended with 0\nnode 1 ended with 0\none whole run folder" in done.stdout
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert "vqvae" not in left
