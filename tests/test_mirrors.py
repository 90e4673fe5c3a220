"""Laws of where a log is shown beside its files: a table, tensorboard, and one run for both stages under a wandb agent."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SMALL_CODEBOOK, TINY, error_of, lines, stop_at, train_inside

from vqvae.config.compose import compose
from vqvae.training import log_settings, wandb_run

OWN = [*(a for a in TINY if not a.startswith("logger")), *SMALL_CODEBOOK]
STAGES = ("autoencoder", "prior")


def rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_several_loggers_are_chosen_at_once_in_any_order() -> None:
    def chosen(*overrides: str) -> tuple[str, bool, bool]:
        node = compose("train", list(overrides)).logger
        return node.mode, node.csv, node.tensorboard

    assert chosen() == ("auto", False, False)
    assert chosen("logger=off") == ("off", False, False)
    assert chosen("logger=csv") == ("off", True, False)
    assert chosen("logger=[wandb,csv]") == chosen("logger=[csv,wandb]") == ("auto", True, False)
    assert chosen("logger=[tensorboard,csv]") == ("off", True, True)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("logger=[wandb,cvs]", "logger=cvs does not exist; did you mean csv?"),
        ("logger=wandb,csv", "several values are a sweep, so add -m; a list is written in brackets"),
        ("logger=[wandb,3]", "logger=[wandb,3] cannot be used: a group takes the name of one choice"),
        ("quantizer=[ema,fsq]", "quantizer=[ema,fsq] cannot be used: a group takes the name of one choice"),
    ],
)
def test_a_list_that_cannot_be_used_is_answered_in_one_sentence(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of(capsys, typed)


def test_the_table_holds_what_the_log_holds_also_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    command = [*OWN, "logger=csv", f"run_dir={run_dir}"]
    with monkeypatch.context() as patched:
        stop_at(patched, "prior", 1)
        with pytest.raises(SystemExit):
            train_inside(*command)
    assert [row["step"] for row in rows(run_dir / "prior" / "metrics.csv")] == ["2"]
    train_inside(*command)
    for stage in STAGES:
        written = {int(row["step"]): row for row in rows(run_dir / stage / "metrics.csv")}
        logged = [one for kind in ("metrics", "timing") for one in lines(run_dir / stage / f"{kind}.jsonl")]
        assert list(written) == [2, 4]
        for line in logged:
            for name, value in line.items():
                if isinstance(value, dict):
                    assert name not in written[line["step"]]
                else:
                    assert float(written[line["step"]][name]) == value


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
@pytest.mark.parametrize("detail", ["summary", "full"])
def test_tensorboard_shows_what_the_registry_marks_or_everything(
    tmp_path: Path, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a stop: each step once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = [*OWN, "logger=tensorboard", f"logger.detail={detail}", f"run_dir={tmp_path / 'run'}"]
    with monkeypatch.context() as patched:
        stop_at(patched, "prior", 1)
        with pytest.raises(SystemExit):
            train_inside(*command)
    train_inside(*command)
    for stage in STAGES:
        shown = EventAccumulator(str(tmp_path / "run" / stage / "tensorboard")).Reload()
        logged = {
            name: line
            for kind in ("metrics", "timing")
            for line in lines(tmp_path / "run" / stage / f"{kind}.jsonl")
            for name in line
        }
        scalars = {name for name, line in logged.items() if not isinstance(line[name], dict)} - {"step"}
        seen = set(shown.Tags()["scalars"])
        assert len(shown.Tags()["images"]) == 1
        if detail == "full":
            assert seen == scalars
            assert set(shown.Tags()["histograms"]) == logged.keys() - scalars - {"step"}
        else:
            assert 6 <= len(seen) <= 13, seen
            assert not shown.Tags()["histograms"]
        for name in seen:
            steps = [one.step for one in shown.Scalars(name)]
            assert steps == sorted(set(steps))
            assert shown.Scalars(name)[-1].step == logged[name]["step"]
            assert shown.Scalars(name)[-1].value == pytest.approx(logged[name][name], rel=1e-6)


def test_a_package_that_is_missing_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log_settings, "find_spec", lambda name: None)
    said = error_of(capsys, *OWN, "logger=tensorboard", f"run_dir={tmp_path / 'run'}")
    assert "logger=tensorboard needs the package tensorboard: pip install tensorboard" in said
    assert not (tmp_path / "run").exists()


def test_a_mirror_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("vqvae.training.mirror.Table.write", full)
    train_inside(*OWN, "logger=csv", f"run_dir={tmp_path / 'run'}")
    printed = capsys.readouterr().out
    assert printed.count("table failed (OSError: no space left): from here on it is left out") == len(STAGES)
    assert (tmp_path / "run" / "samples.png").is_file()


def agent_command(recipe: str, drawn: dict[str, Any]) -> list[str]:
    """What `wandb agent` makes of the command of a recipe: see wandb.wandb_agent."""
    sweep = yaml.safe_load(recipe)
    arguments = [f"{key}={value}" for key, value in drawn.items()]
    assert drawn.keys() == sweep["parameters"].keys()
    known: dict[str, list[str]] = {"${env}": [], "${program}": [sweep["program"]], "${args_no_hyphens}": arguments}
    return [one for part in sweep["command"] for one in known.get(part, [part])]


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")
def test_the_recipe_of_a_sweep_makes_one_run_of_both_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb's server is not needed for what an agent does here: it sets the run's id, and starts the command."""
    page = (ROOT / "docs" / "watching.md").read_text()
    recipe = page.split("```yaml\n")[1].split("```")[0]
    drawn = {"quantizer": "vq", "optimizer.lr": 0.0012, "prior.trainer.steps": 6}
    environment, program, *arguments = agent_command(recipe, drawn)
    assert (environment, program) == ("python", "train.py")
    settings = {"WANDB_SWEEP_ID": "abcd1234", "WANDB_RUN_ID": "r0001", "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    wandb_run.tear_down()  # of settings that were read for another test
    train_inside(*(a for a in OWN if a != "debug=fast"), "debug=fast", *arguments, f"run_dir={tmp_path / 'run'}")
    wandb_run.tear_down()
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*-r0001/*.wandb")
    wandb = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    done = subprocess.run([*wandb, "--summary"], capture_output=True, text=True, timeout=60)
    summary = json.loads(done.stdout)["summary"]
    assert (summary["autoencoder/step"], summary["prior/step"]) == (4, 6)
    metric = yaml.safe_load(recipe)["metric"]["name"]
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["figures"]
    assert summary[metric] == figures[metric.removeprefix("final/")]["value"]
    assert summary["final/autoencoder/psnr_db"] == figures["autoencoder/psnr_db"]["value"]
    assert (summary["prior/samples"]["ncols"], summary["prior/samples"]["nrows"]) == (3, 20)
    own = ("autoencoder/", "prior/", "codebook/", "final/", "_")
    assert [name for name in summary if not name.startswith(own)] == []
