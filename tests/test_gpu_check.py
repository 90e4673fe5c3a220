"""Laws of gpu_check.sh: its parts fit its time, and whatever they do it ends with one table and one JSON file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "gpu_check.sh"
PARTS = ["cuda_tests", "exactness", "benchmark", "sonnet", "default", "nccl", "fast_tests"]
STAND_IN = f"""#!/bin/bash
echo "$@" >> "$CALLS"
case "$*" in
    *check_table*) exec {sys.executable} "$@" ;;
    *"benchmark.py gpu"*) cp "$MADE/figures.json" "$VQVAE_FIGURES" ;;
    *cifar10_sonnet*) cp -r "$MADE/sonnet" "$(dirname "$VQVAE_FIGURES")" ;;
    *$FAILS*) exit 3 ;;
esac
"""  # for python: it writes down what it is called for, and leaves what the parts make


def make_results(folder: Path) -> Path:
    (folder / "sonnet" / "autoencoder").mkdir(parents=True, exist_ok=True)
    timing = [json.dumps({"timing/seconds": 10, "timing/items_per_second": rate}) for rate in (1, 7, 9, 8)]
    (folder / "sonnet" / "autoencoder" / "timing.jsonl").write_text("\n".join(timing))
    (folder / "sonnet" / "summary.json").write_text('{"figures": {"psnr": {"value": 24.8}, "best": "x"}}')
    (folder / "figures.json").write_text('{"figures": {"trainer, images/s": 30000.0}, "failed": {}}')
    return folder


def check(folder: Path, fails: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    python, calls = folder / "python", folder / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    out = str(folder / "out")
    made = make_results(folder / "made")
    environment = {"PYTHON": str(python), "CALLS": str(calls), "MADE": str(made), "FAILS": fails}
    done = subprocess.run(
        ["bash", str(SCRIPT), out, *arguments], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done, calls.read_text().splitlines()


@pytest.mark.parametrize("fails", ["nothing", "exactness"])
def test_it_ends_with_a_table_and_a_file_and_tells_what_failed(fails: str, tmp_path: Path) -> None:
    done, _ = check(tmp_path, fails)
    kept = json.loads((tmp_path / "out" / "figures.json").read_text())
    codes = {name: part["exit"] for name, part in kept["parts"].items()}
    assert codes == {name: 3 if name == fails else 0 for name in PARTS}
    assert done.returncode == (fails != "nothing")
    figures = {"trainer, images/s": 30000, "sonnet autoencoder: items/s, median": 8, "sonnet: psnr": 24.8}
    assert figures.items() <= kept["figures"].items()
    for name in [*kept["figures"], *(f"part {part}" for part in PARTS)]:
        assert name in done.stdout
    assert done.stdout.count("FAILED") == (fails != "nothing")


def test_the_data_of_the_long_run_are_named_on_the_command_line(tmp_path: Path) -> None:
    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    done, calls = check(tmp_path, "nothing", f"data.root={pictures}")
    assert any(f"data=folder data.root={pictures} " in call for call in calls if "cifar10_sonnet" in call)
    assert "embedded images" not in done.stdout
    done, calls = check(tmp_path, "nothing")
    assert any("data=shapes" in call for call in calls[-8:] if "cifar10_sonnet" in call)
    assert "embedded images" in done.stdout


def test_its_parts_fit_in_nine_minutes_and_log_to_files_alone(tmp_path: Path) -> None:
    limits = [int(seconds) for seconds in re.findall(r"^part (\d+) ", SCRIPT.read_text(), re.MULTILINE)]
    assert len(limits) == len(PARTS)
    assert sum(limits) <= 540
    _, calls = check(tmp_path, "nothing")
    assert all("logger=off" in call for call in calls if "train.py" in call)
