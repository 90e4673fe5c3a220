"""Run folders and exports made by version 0.1.0 (commit c6c6f16) continue, sample and load.

older_runs/ was made there: `finished` (both stages, model.search_sweeps=1), `stopped` (by a signal at step 3 of 4 of the
autoencoder), `continued` (what that version made of `stopped`), `export` (of `finished`), and expected.npz (what that version
computed with the export). On other processors the same arithmetic rounds differently, hence the tolerances.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call_inside, lines, train_inside, weights

import vqvae
from vqvae.config.compose import compose, plain, resolve
from vqvae.config.renames import ARGUMENTS, EARLIER_ARGUMENTS, TARGETS, rename_keys, rename_targets
from vqvae.config.schema import named
from vqvae.metrics.registry import find, without_split
from vqvae.metrics.renames import rename, rename_checkpoint, rename_line
from vqvae.training.logger import read_lines

pytestmark = pytest.mark.cpu

OLDER = Path(__file__).resolve().parent / "older_runs"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLDER, tmp_path / "older"))


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=name)


NEW = {"autoencoder/val/psnr_error_db"}  # figures that older versions did not have


def test_a_stopped_run_goes_on_to_the_weights_that_the_older_version_reaches(older: Path) -> None:
    train_inside(f"run_dir={older / 'stopped'}")
    assert_close(weights(older / "stopped", "autoencoder"), weights(older / "continued", "autoencoder"))
    assert (older / "stopped" / "samples.png").is_file()
    ours, theirs = (lines(older / name / "autoencoder" / "metrics.jsonl") for name in ("stopped", "continued"))
    for line, expected in zip(ours, (rename_line(line, "autoencoder") for line in theirs), strict=True):
        assert line.keys() - NEW == expected.keys()
        assert all(name == "step" or find(without_split(name)[0]) for name in line)
        for name, value in expected.items():
            assert close(line[name], value), name


def close(ours: Any, theirs: Any) -> bool:
    """Equal within rounding: numbers, and the edges and the total of histograms, because a code near an edge may cross it."""
    if not isinstance(theirs, dict):
        return ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    return ours["edges"] == pytest.approx(theirs["edges"], rel=1e-3) and sum(ours["counts"]) == sum(theirs["counts"])


def test_every_figure_of_an_older_run_has_a_registered_name(older: Path) -> None:
    summary = json.loads((older / "finished" / "summary.json").read_text())["figures"]
    names = {rename(name, "autoencoder") for name in summary}
    for stage in ("autoencoder", "prior"):
        for file in ("metrics.jsonl", "timing.jsonl"):
            names |= {without_split(name)[0] for line in read_lines(older / "finished" / stage / file) for name in line}
    assert [name for name in sorted(names - {"step"}) if find(name) is None] == []


def test_a_run_with_best_metrics_of_an_older_version_goes_on_with_those_of_today() -> None:
    state = {"best": {"step": 4, "mse": 0.5, "codebook0/usage": 1.0}, "window": {"names": ["loss", "model/grad_norm"]}}
    renamed = rename_checkpoint(state, "autoencoder")
    assert renamed["best"] == {"step": 4, "autoencoder/mse": 0.5, "codebook/usage_0": 1.0}
    assert renamed["window"]["names"] == ["autoencoder/loss", "autoencoder/grad_norm"]
    assert rename_checkpoint(renamed, "autoencoder") == renamed


@pytest.mark.parametrize("target", [*TARGETS, *ARGUMENTS, *EARLIER_ARGUMENTS])
def test_every_target_that_has_moved_is_found_under_its_name_of_today(target: str) -> None:
    today = rename_targets({"_target_": target})["_target_"]
    assert isinstance(named(today), type)


def test_arguments_that_have_another_name_are_renamed_wherever_they_stand() -> None:
    older = {
        "quantizer": {"stages": [{"_target_": "vqvae.quantizers.lookup.CosineVote", "neighbours": 3}], "neighbours": 1}
    }
    renamed = {"_target_": "vqvae.quantizers.lookup.CosineVote", "neighbors": 3}
    assert rename_targets(older) == {"quantizer": {"stages": [renamed], "neighbours": 1}}


def test_arguments_that_came_later_are_what_was_done_before_unless_the_config_has_them() -> None:
    scales = {"_target_": "vqvae.quantizers.multiscale.MultiScale", "inner": {"_target_": "vqvae.quantizers.soft.IBQ"}}
    renamed = rename_targets(scales)
    assert (renamed["sizes"], renamed["inner"]["speed"]) == (None, 1.0)
    assert rename_targets({**scales, "sizes": [8, 16]})["sizes"] == [8, 16]


OLDER_LOSSES = {
    "mse": {"_target_": "vqvae.losses.reconstruction.MSE", "weight": 1.0, "over_variance": True},
    "l1": {"_target_": "vqvae.losses.reconstruction.L1", "weight": 1.0, "over_variance": True},
    "categorical": {"_target_": "vqvae.losses.likelihood.Categorical", "weight": 1.0},
    "logistic": {"_target_": "vqvae.losses.likelihood.Logistic", "weight": 1.0, "mixtures": 5},
}


@pytest.mark.parametrize("loss", OLDER_LOSSES)
def test_a_loss_of_an_older_config_is_the_head_and_the_terms_of_today(loss: str) -> None:
    """There, `loss` was one node, and the decoder's channels were set when the model was built."""
    today = plain(resolve(compose("train", [f"loss={loss}"])))
    older = copy.deepcopy(today)
    older["loss"], older["model"]["decoders"][0]["channels"] = OLDER_LOSSES[loss], 3
    assert rename_keys(rename_targets(older)) == today
    assert rename_keys(rename_targets(today)) == today


def test_a_prior_goes_on_from_the_older_version_s_checkpoint(older: Path) -> None:
    run_dir = older / "finished"
    before = weights(run_dir, "prior")
    for file in (run_dir / "prior").glob("weights-*.pt"):
        file.unlink()
    train_inside(f"run_dir={run_dir}")
    assert_close(weights(run_dir, "prior"), before)
    assert [line["step"] for line in lines(run_dir / "prior" / "metrics.jsonl")] == [2, 4, 4]


@pytest.mark.parametrize("mode", ["generate", "reconstruct"])
def test_a_finished_run_is_sampled_from(older: Path, mode: str) -> None:
    call_inside("sample", f"run_dir={older / 'finished'}", f"mode={mode}", "n=2", f"out={older / 'out'}")
    assert list((older / "out").glob("*.png"))


def test_what_was_model_search_sweeps_still_searches_in_evaluations(older: Path) -> None:
    call_inside("scripts.evaluate", f"run_dir={older / 'finished'}", f"out={older / 'figures.json'}")
    figures = json.loads((older / "figures.json").read_text())["figures"]
    assert figures["autoencoder/searched_psnr_db"]["value"] > figures["autoencoder/psnr_db"]["value"]


def test_an_export_computes_what_it_did(older: Path) -> None:
    expected = np.load(older / "expected.npz")
    model = vqvae.load(str(older / "export"))
    x = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    codes = [torch.from_numpy(expected["codes"])]
    assert (model.encode(x)[0] == codes[0]).float().mean() > 0.9
    np.testing.assert_allclose(model.decode(codes).numpy(), expected["decoded"], atol=1e-4)
    sampled = model.sample_codes([0, 1, 2, 3], [0, 1, 2, 0])
    assert (sampled[0].numpy() == expected["sampled"]).mean() > 0.9
