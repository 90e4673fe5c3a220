"""Laws of wandb beside a training: it neither ends nor delays it, and keeps to the run folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_CODEBOOK, TINY, train_inside

from vqvae.run.run import Run
from vqvae.training import wandb_run
from vqvae.training.log_settings import LogSettings
from vqvae.training.logger import Logger, read_lines


def open_log(tmp_path: Path, **settings: Any) -> Logger:
    """The log of a run folder `run`, in the mode that the environment says."""
    given = {"mode": "auto", "project": "vqvae", "entity": None, "tags": [], **settings}
    run_dir = tmp_path / "run"
    (run_dir / "autoencoder").mkdir(parents=True, exist_ok=True)
    return Logger(run_dir / "autoencoder", "autoencoder", LogSettings(**given), {"run_dir": str(run_dir)})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and no setting of wandb but the mode."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    wandb_run.tear_down()  # of settings that were read for another test
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("vqvae")
    ]


def processes() -> list[int]:
    """wandb's processes that this one has started and that are not over."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            name, _, rest = stat.read_text().rpartition(")")
            state, parent, *_ = rest.split()
            if "(wandb-core" in name and int(parent) == os.getpid() and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({"WANDB_MODE": "ofline"}, {}),
        ({"WANDB_MODE": ""}, {}),
        ({"WANDB_INIT_TIMEOUT": "soon"}, {}),
        ({}, {"tags": ["x" * 65]}),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}, {"mode": "online"}),
    ],
    ids=["misspelled mode", "no mode", "no number", "long tag", "no server"],
)
def test_what_wandb_refuses_is_one_warning_before_any_work(
    environment: dict[str, str],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wandb_run, "START_SECONDS", 7)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with open_log(tmp_path, **settings) as log:
        (warning,) = warnings(caplog)
        log.log(1, "train", {"autoencoder/loss": 0.5})
    with open_log(tmp_path, **settings) as again:  # of the next stage: wandb is not waited for again
        again.log(2, "train", {"autoencoder/loss": 0.4})
    assert warning.startswith("wandb failed (")
    assert warnings(caplog) == [warning]
    assert [line["step"] for line in read_lines(tmp_path / "run/autoencoder/metrics.jsonl")] == [1, 2]


def test_wandb_is_started_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loader(run: Run, split: str) -> None:
        raise InterruptedError("work began")

    monkeypatch.setenv("WANDB_MODE", "ofline")
    monkeypatch.setattr(Run, "loader", loader)
    own = [a for a in TINY if not a.startswith("logger")]
    with pytest.raises(InterruptedError, match="work began"):
        train_inside(*own, *SMALL_CODEBOOK, f"run_dir={tmp_path / 'run'}")
    assert "wandb failed (ValidationError" in capsys.readouterr().out


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_of_wandb_that_is_gone_or_stands_still_ends_nothing(
    end: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vqvae.training.logger.FINISH_SECONDS", 2)
    with open_log(tmp_path) as log:
        (process,) = processes()
        log.log(1, "train", {"autoencoder/loss": 0.5})
        os.kill(process, end)
        for step in range(2, 50):
            log.log(step, "train", {"autoencoder/loss": 0.5})
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert len(warnings(caplog)) == 1
    assert len(read_lines(tmp_path / "run/autoencoder/metrics.jsonl")) == 49
    assert process not in processes()
    with open_log(tmp_path / "next") as log:  # the next job of a sweep has wandb again
        assert log.wandb.on


NAMED = {
    "WANDB_PROJECT": ("project", "mine"),
    "WANDB_NAME": ("name", "first"),
    "WANDB_RUN_GROUP": ("group", "ablation"),
    "WANDB_NOTES": ("notes", "why"),
    "WANDB_TAGS": ("tags", ("a", "b")),
}


def seen(log: Logger) -> dict[str, Any]:
    """What wandb has of a run."""
    run = log.wandb._run
    return {name: getattr(run, name) for name, _ in NAMED.values()}


def test_the_command_that_uploads_a_run_can_be_typed_as_it_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with open_log(tmp_path / "my runs", project=None):
        pass
    (said,) = [one.getMessage() for one in caplog.records if one.getMessage().startswith("wandb: offline; ")]
    *command, folder = shlex.split(said.removeprefix("wandb: offline; "))
    assert (command, Path(folder).is_dir()) == (["wandb", "sync"], True)


def test_settings_of_the_environment_count_where_the_config_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with open_log(tmp_path, project=None) as log:
        plain = seen(log)
    assert (plain["project"], plain["name"], plain["group"]) == ("vqvae", "run-autoencoder", "run")
    assert any(record.getMessage().startswith("wandb: offline; wandb sync ") for record in caplog.records)
    for variable, (_, value) in NAMED.items():
        monkeypatch.setenv(variable, value if isinstance(value, str) else ",".join(value))
    wandb_run.tear_down()
    with open_log(tmp_path / "second", project=None) as log:
        assert seen(log) == {**{name: value for name, value in NAMED.values()}, "name": "first-autoencoder"}
    wandb_run.tear_down()
    own = {"project": "other", "name": "n", "group": "g", "notes": "o", "tags": ["t"]}
    with open_log(tmp_path / "third", **own) as log:
        assert seen(log) == {**own, "name": "n-autoencoder", "tags": ("t",)}
    assert warnings(caplog) == []


def test_a_damaged_id_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log(tmp_path)
    file = tmp_path / "run/autoencoder/wandb_id"
    file.write_bytes(b"\xff\xfe")
    with log:
        assert log.wandb.on
    assert len(file.read_text()) == 8
    assert warnings(caplog) == []


def test_nothing_is_written_outside_of_the_run_folder_and_nothing_twice(tmp_path: Path, home: Path) -> None:
    weights, codes = tmp_path / "run" / "weights.pt", tmp_path / "run" / "codes"
    codes.mkdir(parents=True)
    for file in (weights, codes / "codes_0.npy"):
        file.write_bytes(os.urandom(1000))
    before = set(tmp_path.rglob("*"))
    with open_log(tmp_path) as log:
        log.artifact("tokenizer", "model", weights, {}, [])
        log.artifact("codes", "codes", codes, {}, ["tokenizer"])
        assert log.wandb.on
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "run") for path in new)
    assert not any(path.read_bytes() in (weights.read_bytes(), (codes / "codes_0.npy").read_bytes()) for path in new)
    (sent,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    until = time.monotonic() + 10
    while str(weights).encode() not in sent.read_bytes():  # wandb's process writes it
        assert time.monotonic() < until
    assert list(home.rglob("*")) == []
    assert not {name for name in os.environ if name.startswith("WANDB_")} & wandb_run.FOLDERS.keys()


@pytest.mark.parametrize("place", [".", "run"])
def test_settings_and_git_of_the_current_folder_and_the_run_folder_are_not_used(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be a stranger's: git's config names programs to run, wandb's settings a server to send the key to."""
    proof, folder = tmp_path / "ran", tmp_path / place
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb" / "settings").write_text("[default]\nsave_code = true\nbase_url = http://127.0.0.1:9\n")
    (folder / "file").write_text("x")
    git = ["git", "-c", "user.email=a@b", "-c", "user.name=x", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    with (folder / ".git" / "config").open("a") as config:
        config.write(f'[core]\n\tfsmonitor = "touch {proof}; false"\n')
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    monkeypatch.chdir(folder)
    with open_log(tmp_path) as log:
        assert Path.cwd() == folder.resolve()
        assert log.wandb._run.settings.base_url != "http://127.0.0.1:9"
    assert warnings(caplog) == []
    assert not proof.exists()
