"""Laws of what items are called: images only where they are images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from vqvae.config.build import build
from vqvae.config.compose import compose, resolve
from vqvae.data.base import Data
from vqvae.sampling.job import Job
from vqvae.sampling.nearest import verdict
from vqvae.sampling.reconstruct import report
from vqvae.sampling.sources import names_in, read_named

NOUNS = {"shapes": "image", "tones": "sound", "moving_shapes": "clip"}


def data_of(name: str) -> Data:
    made: Data = build(resolve(compose("train", [f"data={name}"])).data, "data")
    return made


def job_of(data: Data, out: Path) -> Job:
    return cast(Any, SimpleNamespace(run=SimpleNamespace(data=data), settings={"folder": None}, out=out))


@pytest.mark.parametrize("name", NOUNS)
def test_figures_of_items_name_what_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(job_of(data_of(name), tmp_path), [("0", 20.0), ("1", 22.0)], [])
    said = capsys.readouterr().out
    assert f"mean PSNR of 2 {NOUNS[name]}s: 21.00 dB, 0 files skipped" in said
    assert (tmp_path / "psnr.csv").read_text().startswith(f"{NOUNS[name]},psnr_db")
    assert ("image" in said) is (NOUNS[name] == "image")


def test_one_item_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(job_of(data_of("tones"), tmp_path), [("0", 20.0)], [])
    assert "mean PSNR of 1 sound: 20.00 dB" in capsys.readouterr().out


def test_a_wrong_name_is_answered_in_the_words_of_the_data(tmp_path: Path) -> None:
    (name,) = names_in("nowhere")
    with pytest.raises(ValueError, match="image=nowhere is neither a file nor the number of a validation sound"):
        read_named(job_of(data_of("tones"), tmp_path).run, name)
    assert "nearest training clips than held-out clips do" in verdict("x", torch.tensor([0, 1, 2]), 1, "clip")
