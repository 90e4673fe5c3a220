"""Laws of the run that comes with the package: it is what its experiment makes, and programs find it by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import call_inside

import vqvae
from vqvae.config.compose import compose, plain, resolve
from vqvae.errors import UserError
from vqvae.run.folder import RunFolder
from vqvae.shipped.runs import SHIPPED, shipped_run, with_shipped

MOST_BYTES = 3_000_000
PARTS = ("data", "model", "loss", "optimizer", "schedule", "trainer", "prior")


def test_its_config_is_that_of_its_experiment() -> None:
    ours = plain(RunFolder.load(SHIPPED / "shapes", []).config)
    today = plain(resolve(compose("train", ["experiment=shapes_small", "run_dir=x"])))
    assert {part: ours[part] for part in PARTS} == {part: today[part] for part in PARTS}


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < MOST_BYTES


@pytest.mark.slow
def test_its_figures_are_those_that_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = json.loads((SHIPPED / "shapes" / "summary.json").read_text())["figures"]
    call_inside("scripts.evaluate", "run_dir=shapes", "split=val")
    found = json.loads((tmp_path / "runs" / "shapes" / "evaluation_val.json").read_text())["figures"]
    for name, limit in (("autoencoder/psnr_db", 0.02), ("prior/bits_per_code", 0.005)):
        assert found[name]["value"] == pytest.approx(said[name]["value"], abs=limit)


def test_it_loads_by_its_name_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = vqvae.load("shapes")
    images = model.sample(seeds=[0, 1], labels=["star", "ring"])
    assert images.shape == (2, 3, 32, 32)
    assert torch.equal(images, vqvae.load("shapes").sample(seeds=[0, 1], labels=["star", "ring"]))
    assert not list(tmp_path.iterdir()), "loading leaves nothing behind"


def test_programs_take_its_name_for_a_copy_and_a_folder_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_shipped(["run_dir='shapes'", "n=4"], "sample") == ["run_dir=runs/shapes", "n=4"]
    assert (tmp_path / "runs" / "shapes" / "config.yaml").is_file()
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["shapes"]
    assert with_shipped(["run_dir=shapes", "tokenizer=shapes"], "train") == ["run_dir=shapes", "tokenizer=runs/shapes"]
    assert with_shipped(["run_dir=other", "run_dir=../shapes"], "sample") == ["run_dir=other", "run_dir=../shapes"]
    (next((tmp_path / "runs" / "shapes" / "prior").glob("weights-*.pt"))).rename(tmp_path / "runs" / "weights-0.pt")
    with pytest.raises(UserError, match="runs/shapes is another run than the shapes of the package"):
        with_shipped(["run_dir=shapes"], "sample")
    (tmp_path / "shapes").mkdir()
    assert with_shipped(["run_dir=shapes"], "sample") == ["run_dir=shapes"]
    assert shipped_run("shapes") is None
