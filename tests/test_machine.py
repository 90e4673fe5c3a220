"""Laws of what a run's bits depend on: it is noted in the run folder, and said where it differs when the run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, stop_at, train_inside

from vqvae.run import machine
from vqvae.training.hardware import bf16_is_slow

RUN = [*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]"]
WARNING = "from here on the run rounds differently from one that was not interrupted"


@pytest.mark.parametrize("other", [True, False])
def test_a_run_that_goes_on_elsewhere_says_in_one_line_what_differs(
    other: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at(patched, "autoencoder", 2)
        with pytest.raises(SystemExit):
            train_inside(*RUN, f"run_dir={run_dir}")
    noted = json.loads((run_dir / "machine.json").read_text())
    assert noted == machine.present_machine()
    assert (noted["torch"], noted["threads"]) == (torch.__version__, torch.get_num_threads())
    if other:
        (run_dir / "machine.json").write_text(json.dumps({**noted, "threads": 64, "cpu": "Z80"}))
    train_inside(*RUN, f"run_dir={run_dir}")
    log = (run_dir / "train.log").read_text()
    said = f"cpu is {noted['cpu']}, it was Z80; threads is {noted['threads']}, it was 64: {WARNING}"
    assert (said in log, WARNING in log) == (other, other)
    assert json.loads((run_dir / "machine.json").read_text()) == noted
    (run_dir / "machine.json").write_text('{"threads": 64}')
    train_inside(*RUN, f"run_dir={run_dir}")  # it is finished: nothing is computed that the past depends on
    assert (run_dir / "train.log").read_text().count(WARNING) == other


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"threads": [1]}', '{"threads": {}}', "[" * 10**5, "\x00"])
def test_a_note_that_the_program_would_not_write_is_no_note(text: str, tmp_path: Path) -> None:
    assert machine.noted_machine(tmp_path) == {}
    (tmp_path / "machine.json").write_text(text)
    assert machine.noted_machine(tmp_path) == {}


@pytest.mark.parametrize(
    ("flags", "slow"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_fp16": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "Intel Xeon", "avx512_fp16": True, "avx512_bf16": True, "amx_bf16": True}, False),
        ({"cpu_name": "Intel Xeon", "avx512_fp16": False, "avx512_bf16": True}, False),  # Cooper Lake
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "avx512_fp16": True}, False),
        ({}, False),
    ],
)
def test_bf16_is_not_taken_on_a_xeon_whose_amx_is_hidden(flags: dict[str, object], slow: bool) -> None:
    """One core of an Emerald Rapids without AMX multiplies 132 GFLOP/s in float32, 77 in bfloat16."""
    assert bf16_is_slow(flags) == slow
