"""Laws of sweeps: jobs are called by what varies and found by their configs, and what is finished is not made again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from conftest import SMALL_CODEBOOK, TINY, run, train_inside

from vqvae.config.sweep import fixed_keys, job_name

OWN = [*(a for a in TINY if not a.startswith("prior")), "stages=[autoencoder]"]


def sweep(folder: Path, *overrides: str, code: int = 0) -> str:
    done = run("train.py", "-m", *OWN, f"run_dir={folder}", *overrides, check=False)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout


def jobs(folder: Path) -> dict[str, int]:
    """Names of jobs -> when their weights were written."""
    return {one.parent.parent.name: one.stat().st_mtime_ns for one in folder.glob("*/autoencoder/weights-*.pt")}


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))


def test_a_sweep_that_is_widened_by_a_key_trains_only_what_is_new(tmp_path: Path) -> None:
    sweep(tmp_path, "quantizer=ema,fsq")
    first = jobs(tmp_path)
    assert set(first) == {"quantizer=ema", "quantizer=fsq"}
    printed = sweep(tmp_path, "quantizer=ema,fsq", "optimizer.lr=0.002,0.001")  # the first is the default
    assert printed.count("autoencoder: finished before") == 2
    second = jobs(tmp_path)
    assert {name: second[name] for name in first} == first
    assert set(second) - set(first) == {f"quantizer={name},optimizer.lr=0.001" for name in ("ema", "fsq")}
    table = {(row["quantizer"], row["optimizer.lr"]): row["job"] for row in rows(tmp_path)}
    assert set(table) == {(name, lr) for name in ("ema", "fsq") for lr in ("0.002", "0.001")}
    assert table["ema", "0.002"] == "quantizer=ema"
    sweep(tmp_path, "quantizer=ema,fsq", "optimizer.lr=0.002,0.001", "logger=csv")  # on which no result depends
    assert jobs(tmp_path) == second
    head = next(line for line in printed.splitlines() if line.startswith("job "))
    assert head.split()[:4] == ["job", "quantizer", "optimizer.lr", "psnr_db"]
    assert {line.split()[0] for line in printed.splitlines() if line.startswith("quantizer=")} == set(second)


def test_a_job_of_another_config_has_another_folder_and_its_key_a_column(tmp_path: Path) -> None:
    own = [*SMALL_CODEBOOK, "optimizer.lr=0.001,0.003"]
    sweep(tmp_path, *own)
    before = jobs(tmp_path)
    assert set(before) == {"optimizer.lr=0.001", "optimizer.lr=0.003"}
    sweep(tmp_path, *own, "trainer.batch_size=4")
    after = jobs(tmp_path)
    assert len(after) == 4
    assert all(name.startswith("optimizer.lr=0.00") for name in after)
    assert {name: after[name] for name in before} == before
    sizes = {row["job"]: row["trainer.batch_size"] for row in rows(tmp_path)}
    assert {size for name, size in sizes.items() if name in before} == {
        "8"
    }  # what they were not told is in their configs
    assert {size for name, size in sizes.items() if name not in before} == {"4"}


def test_jobs_that_differ_in_what_may_change_later_are_not_taken_for_each_other(tmp_path: Path) -> None:
    sweep(tmp_path, *SMALL_CODEBOOK, "search_sweeps=0,1")
    assert set(jobs(tmp_path)) == {"search_sweeps=0", "search_sweeps=1"}


def test_jobs_of_older_versions_are_found_by_their_long_names(tmp_path: Path) -> None:
    sweep(tmp_path, *SMALL_CODEBOOK, "optimizer.lr=0.001,0.003")
    longer = job_name([*OWN, *SMALL_CODEBOOK, "optimizer.lr=0.001"])
    (tmp_path / "optimizer.lr=0.001").rename(tmp_path / longer)
    (tmp_path / "optimizer.lr=0.001.job.json").rename(tmp_path / f"{longer}.job.json")
    assert sweep(tmp_path, *SMALL_CODEBOOK, "optimizer.lr=0.001,0.003").count("finished before") == 2
    assert set(jobs(tmp_path)) == {longer, "optimizer.lr=0.003"}


def test_keys_that_do_not_vary_are_told_from_those_that_do() -> None:
    typed = [
        "-m",
        "quantizer=ema,fsq",
        "seed=range(1,3)",
        "stages=[autoencoder,prior]",
        "trainer.steps=4",
        "run_dir='a,b'",
    ]
    assert fixed_keys(typed).endswith("exclude_keys=['run_dir','stages','trainer.steps']")


def test_a_finished_run_that_is_started_again_makes_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vqvae.run import report

    folder = tmp_path / "run"
    command = [*TINY, *SMALL_CODEBOOK, f"run_dir={folder}"]
    train_inside(*command)
    shown = capsys.readouterr().out.split("reconstruction ")[1]
    made: list[str] = []
    original = report.summarize
    monkeypatch.setattr(report, "summarize", lambda *given: made.append("again") or original(*given))
    train_inside(*command)
    assert made == []
    assert capsys.readouterr().out.split("reconstruction ")[1] == shown
    (folder / "samples.png").unlink()
    train_inside(*command)
    assert (folder / "samples.png").is_file()
    train_inside(*command, "search_sweeps=1")
    assert len(made) == 2
    assert "with code search" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    summary["made_of"]["weights"]["prior"] = "weights-0.pt"  # those of another prior
    (folder / "summary.json").write_text(json.dumps(summary))
    train_inside(*command, "search_sweeps=1")
    assert len(made) == 3
