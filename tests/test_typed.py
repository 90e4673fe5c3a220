"""What people type reaches the programs as they typed it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from conftest import TINY, call_inside, train_inside
from hypothesis import given
from hypothesis import strategies as st

from vqvae.config.typed import as_hydra_reads, parsed, way_to_type
from vqvae.errors import UserError

NAMES = [
    "grün/Bilder",
    "写真",
    "set (1)",
    "a,b",
    "x=1",
    "it's",
    'say "x"',
    "a#b",
    "[1] x",
    "1e3",
    "true",
    "a: b",
    "$5 & more",
    "a\\b",
    "end\\",
    "%s",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["run_dir", "data.root", "tokenizer", "out", "class", "loss.terms.perceptual.file"])
def test_a_path_or_a_class_is_taken_as_it_is_typed(key: str, name: str) -> None:
    (argument,) = as_hydra_reads([f"{key}={name}"])
    override = parsed(argument)
    assert override is not None
    assert override.value() == name


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
        lambda name: name[0] not in "['\"~" and name != "null"
    )
)
def test_any_name_that_a_file_system_allows_is_taken_as_it_is_typed(name: str) -> None:
    (argument,) = as_hydra_reads([f"run_dir={name}"])
    override = parsed(argument)
    assert override is not None
    assert override.value() == name


@pytest.mark.parametrize(
    "argument",
    ["quantizer=ema,fsq", "image=[0,a.png]", "run_dir='x y'", "run_dir=null", "--cfg", "seed=1", "mask=[0,1]"],
)
def test_lists_quotes_and_other_keys_stay(argument: str) -> None:
    assert as_hydra_reads([argument]) == [argument]


def test_in_a_sweep_commas_separate_paths() -> None:
    assert as_hydra_reads(["-m", "data.root=a b,grün"]) == ["-m", "data.root='a b','grün'"]
    assert as_hydra_reads(["-m", "init_from='a,b'"]) == ["-m", "init_from='a,b'"]


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert as_hydra_reads(["run_dir=~/runs/x"]) == ["run_dir='/home/somebody/runs/x'"]


@pytest.mark.parametrize("key", ["hydra.run.dir", "++hydra.sweep.dir", "hydra.job.chdir"])
def test_settings_of_hydra_that_would_be_ignored_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=r"has no effect here: name the folder of a run, or of a sweep, with run_dir="):
        as_hydra_reads(["seed=1", f"{key}=there"])


def test_what_cannot_be_read_is_told_with_what_to_type() -> None:
    said = way_to_type("logger.project=my project (new)")
    assert said.startswith("; type ")
    (argument,) = shlex.split(said.removeprefix("; type "))
    override = parsed(argument)
    assert override is not None
    assert override.value() == "my project (new)"


def test_a_run_goes_on_in_a_folder_with_an_odd_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "it's (1), quantizer=ema"
    train_inside(*TINY, "stages=[autoencoder]", f"run_dir={run_dir}")
    train_inside(f"run_dir={run_dir}")
    call_inside("scripts.evaluate", f"run_dir={run_dir}", "metrics=[reconstruction]", f"out={tmp_path / 'a,b.json'}")
    assert (tmp_path / "a,b.json").is_file()
    assert "psnr" in capsys.readouterr().out
