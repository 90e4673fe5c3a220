"""What is said of a run that cannot go on as it was asked to: what was typed, and what follows from it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vqvae.config.compose import compose
from vqvae.errors import UserError
from vqvae.run.folder import RunFolder
from vqvae.shipped.runs import SHIPPED


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose quantizer, networks and prior are not the defaults."""
    return Path(shutil.copytree(SHIPPED / "shapes", tmp_path_factory.mktemp("runs") / "shapes"))


def go_on(run_dir: Path, *typed: str) -> RunFolder:
    overrides = [*typed, f"run_dir={run_dir}"]
    return RunFolder.prepare(compose("train", overrides), overrides)


REFUSED = {
    "seed=3": "seed is 0 there, 3 here",
    "quantizer=fsq": "quantizer is VectorQuantizer there, FSQ here",
    "quantizer.codebook.size=128": "quantizer.codebook.size is 256 there, 128 here",
    "quantizer/lookup=cosine": "quantizer.lookup is Euclidean there, Cosine here",
    "adversary=patch": "adversary.network is None there, Patch here",
    "quantizer=ema": "quantizer.codebook.size is 256 there, 512 here; quantizer.dim is 16 there, 64 here",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_only_what_was_typed_is_told(typed: str, shipped: Path) -> None:
    with pytest.raises(UserError) as refused:
        go_on(shipped, typed)
    assert f"another config ({REFUSED[typed]}): choose another run_dir" in str(refused.value)


def test_what_an_experiment_brings_is_told_by_its_classes(shipped: Path) -> None:
    with pytest.raises(UserError) as refused:
        go_on(shipped, "experiment=vqvae2")
    assert "model.encoders is [Encoder] there, [Encoder, Encoder] here" in str(refused.value)
    assert "quantizer.dim" not in str(refused.value)
    assert "{" not in str(refused.value)


def test_a_run_goes_on_with_a_key_that_is_typed_as_it_was(shipped: Path) -> None:
    found = go_on(shipped, "quantizer.dim=16", "seed=0", "trainer.eval_every_steps=7")
    assert found.config.quantizer.codebook.size == 256
    assert found.config.trainer.eval_every_steps == 7
    assert [os.path.basename(found.config.run_dir), found.replaces] == ["shapes", False]
