"""Laws of strided convolutions with residual units, and of the experiment that has them learn speech."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run, train_inside
from test_audio import folder_of

import vqvae
from vqvae.errors import UserError
from vqvae.inference.tiles import reach_of
from vqvae.model import VQVAE
from vqvae.networks import seanet
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run

SMALL = {"width": 2, "dilations": [1, 3], "kernel": 3}


@pytest.mark.parametrize("strides", [[2], [3], [2, 5], [8, 5, 2], [7, 3]])
@pytest.mark.parametrize("ndim", [1, 2])
def test_the_decoder_undoes_the_strides_of_the_encoder(strides: list[int], ndim: int) -> None:
    encoder = seanet.Encoder(ndim, 2, 4, strides=strides, **SMALL)  # type: ignore[arg-type]
    decoder = seanet.Decoder(ndim, 2, 4, strides=strides, **SMALL)  # type: ignore[arg-type]
    assert encoder.stride == math.prod(strides)
    cells = (3, 2)[:ndim]
    x = torch.randn(1, 2, *[cell * encoder.stride for cell in cells])
    assert encoder(x).shape == (1, 4, *cells)
    assert encoder.latent_size(tuple(x.shape[2:])) == cells
    assert decoder(encoder(x)).shape == x.shape


def test_a_shift_by_the_stride_shifts_codes_by_one() -> None:
    """Between the ends, where silence comes in."""
    torch.manual_seed(0)
    encoder = seanet.Encoder(1, 1, 4, strides=[4, 5], **SMALL).eval()  # type: ignore[arg-type]
    x = torch.randn(1, 1, 800)
    late = torch.cat([torch.zeros(1, 1, 20), x[..., :-20]], -1)
    torch.testing.assert_close(encoder(late)[..., 11:-10], encoder(x)[..., 10:-11], rtol=1e-4, atol=1e-5)


def test_wider_dilations_see_farther() -> None:
    def reach(dilations: list[int]) -> int:
        sizes = {"strides": [4, 5], **SMALL, "dilations": dilations}
        parts = seanet.Encoder(1, 1, 4, **sizes), vqvae.FSQ(4, [8, 5, 5]), seanet.Decoder(1, 1, 4, **sizes)  # type: ignore[arg-type]
        found = reach_of(VQVAE([parts[0]], [parts[1]], [parts[2]]).eval(), torch.zeros(1, 1, 20))
        assert found is not None
        return found

    assert reach([1]) < reach([1, 9]) < reach([1, 9, 27])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"strides": [1, 2]}, "at least 2"), ({"kernel": 4}, "be odd"), ({"strides": []}, "strides must")],
)
def test_impossible_networks_are_one_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        seanet.Encoder(1, 1, 4, **{"strides": [2], **SMALL, **settings})  # type: ignore[arg-type]


def test_the_experiment_on_speech_does_all_that_it_promises(tmp_path: Path) -> None:
    """Four maps of codes, whose first stages alone make a sound too; sounds of the prior; figures; an export."""
    for split, name in itertools.product(("train", "val"), ("a", "b")):
        folder_of(tmp_path / "p" / split / name, 3.0, 2.0, rate=11025)
    small = ["debug=fast", "logger=off", "model.encoders.0.width=4", "quantizer.inner.codebook.size=16"]
    data = [f"data.root={tmp_path / 'p'}", f"data.cache_dir={tmp_path / 'c'}"]
    prior = ["prior.network.width=16", "prior.network.layers=1"]
    train_inside("experiment=speech_small", *small, *data, *prior, f"run_dir={tmp_path / 'run'}")
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["figures"]
    assert {"autoencoder/mel_distance", "autoencoder/stft_distance", "codebook/usage_3"} <= figures.keys()
    assert math.log2(16) * 0.5 < figures["prior/bits_per_code"]["value"] < math.log2(16) * 2
    built = Run(RunFolder.load(tmp_path / "run", []))
    assert built.tokenizer().model.quantizers[0].dropout == 0.5
    assert list(built.autoencoder_stage(1.0).objective.weights) == ["mse", "stft", "mel"]
    run("sample.py", f"run_dir={tmp_path / 'run'}", "n=2", f"out={tmp_path / 'drawn'}")
    assert np.load(tmp_path / "drawn" / "samples.npz")["items"].shape == (2, 1, 5120)
    assert len(list((tmp_path / "drawn").glob("*.wav"))) == 2
    run("scripts/evaluate.py", f"run_dir={tmp_path / 'run'}")
    run("scripts/export.py", f"run_dir={tmp_path / 'run'}", f"out={tmp_path / 'export'}")
    model = vqvae.load(tmp_path / "export")
    codes = model.encode(torch.zeros(1, 1, 5120))
    assert [tuple(m.shape) for m in codes] == [(1, 64)] * 4
