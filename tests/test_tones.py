"""Laws of sounds: drawn from a seed, companded within a bound, plotted and written correctly, trained in both stages."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, error_of, train_inside
from torch import Tensor

from vqvae.config.compose import choices
from vqvae.data.base import Data
from vqvae.data.items import ItemTrainingSet, center_crop, crop
from vqvae.data.loader import ItemLoader
from vqvae.data.tones import NOISE, TONES, Tones, draw_chunk, draw_tones
from vqvae.data.wave_plot import HEIGHT, INK, WIDTH
from vqvae.data.waveforms import MU, compand, expand
from vqvae.metrics.reconstruction import reconstruction_metrics, reconstruction_sums

CPU = torch.device("cpu")


def tones(cache: Path, **settings: Any) -> Tones:
    plain = {"ndim": 1, "channels": 1, "length": 512, "sample_rate": 8000, "flip": False, "limit": None}
    more = {"resident": "memory", "workers": 0, "cache_dir": str(cache)}
    counts = {"train_count": 40, "val_count": 12, "draw_seed": 0}
    return Tones(**{**plain, **more, **counts, **settings})  # type: ignore[arg-type]


def spectra(items: Tensor) -> Tensor:
    """Items (n, 1, T) -> log magnitudes (n, features) of 8 stretches each, so that what moves in time shows."""
    stretches = expand(items)[:, 0].unfold(1, items.shape[-1] // 8, items.shape[-1] // 8)  # (n, 8, T / 8)
    window = torch.hann_window(stretches.shape[-1])
    magnitudes = torch.fft.rfft(stretches * window).abs()
    return (magnitudes + 0.1).log().flatten(1)


def test_tones_are_a_function_of_the_seed_and_hold_all_classes() -> None:
    first, again, other = draw_tones(300, 512, 8000, 1), draw_tones(300, 512, 8000, 1), draw_tones(300, 512, 8000, 2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert set(first[1].tolist()) == set(range(10))
    assert (first[0].shape, first[0].dtype) == ((300, 1, 512), torch.uint8)


def test_splits_of_tones_differ(tmp_path: Path) -> None:
    splits = [tones(tmp_path).split(name) for name in ("train", "val", "test")]
    assert len({split.fingerprint for split in splits}) == 3
    assert not torch.equal(splits[0].read(0), splits[1].read(0))


@pytest.mark.parametrize("index", range(10), ids=list(TONES))
def test_no_tone_is_clipped_silent_or_richer_than_the_sample_rate_allows(index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    waves = draw_chunk(torch.full((200,), index), 4096, 8000, generator)
    peaks = waves.abs().amax(1)
    assert 0.1 < float(peaks.min()) <= float(peaks.max()) < 0.9
    faint = torch.fft.rfft(waves)[:, 1900:].abs().square().sum(1)  # above 3.7 kHz
    assert float((faint / torch.fft.rfft(waves).abs().square().sum(1)).max()) < 1e-2


def test_the_nearest_mean_spectrum_tells_the_classes_apart() -> None:
    (train, labels), (val, wanted) = draw_tones(1500, 4096, 8000, 0), draw_tones(500, 4096, 8000, 1)
    features = spectra(train)
    means = torch.stack([features[labels == index].mean(0) for index in range(10)])
    found = torch.cdist(spectra(val), means).argmin(1)
    accuracy = (found == wanted).double().mean()
    assert accuracy > 0.5, f"chance is 0.1, got {accuracy}"


def test_companding_loses_at_most_half_a_level() -> None:
    waves = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    error = (expand(compand(waves)).double() - waves).abs()
    half = (1 + MU) ** (1 / 255) - 1  # levels are 2 / 255 apart, so half a level is 1 / 255
    bound = (1 + MU * waves.abs()) / MU * half
    assert bool((error <= bound * 1.0001).all())  # ties between levels are decided in float32
    assert float(error[waves.abs() < 0.01].max()) < 1 / 255 / 10  # ten times finer than 8 bits without companding


def test_every_level_survives_expanding_and_companding() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(compand(expand(levels)), levels)
    assert bool((expand(levels).diff() > 0).all())
    assert (float(expand(levels)[0]), float(expand(levels)[-1])) == (-1, 1)


@pytest.mark.parametrize("name", ["plain", "top_p0.9"])
def test_a_wav_file_is_read_back_equal_within_the_rounding_of_16_bits(name: str, tmp_path: Path) -> None:
    data = tones(tmp_path)
    item = data.split("val").read(3)
    path = data.save(tmp_path / "out" / name, item)
    assert path == tmp_path / "out" / f"{name}.wav"
    assert list(path.parent.iterdir()) == [path]
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (8000, 2, 1)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert np.abs(samples / 32767 - expand(item)[0].numpy()).max() <= 0.5 / 32767 + 1e-6


@pytest.mark.parametrize("length", [100, 512, 4096])
def test_a_louder_wave_is_drawn_taller(length: int, tmp_path: Path) -> None:
    wave_form = torch.sin(torch.arange(length) / 7)
    plots = tones(tmp_path).picture(compand(torch.stack([wave_form * 10**-k for k in (0.0, 0.5, 1.0)])[:, None]))
    assert (plots.shape, plots.dtype) == ((3, 1, 2 * HEIGHT, WIDTH), torch.uint8)
    for panel in (plots[:, 0, :HEIGHT], plots[:, 0, HEIGHT:]):
        tall = (panel == INK).any(2).sum(1)  # rows with ink
        assert tall[0] >= HEIGHT - 2
        assert [math.isclose(float(tall[k] / tall[0]), 10 ** (-k / 2), abs_tol=0.06) for k in (1, 2)] == [True, True]
        assert bool((panel == INK).any(1).all()), "a gap in the line"


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_crops_are_the_stretches_that_begin_at_their_corners(ndim: int) -> None:
    read, size = (9, 7, 8)[:ndim], (4, 5, 8)[:ndim]
    items = torch.arange(2 * 3 * math.prod(read)).view(2, 3, *read)
    corners = torch.tensor([[5, 2, 0], [0, 1, 0]])[:, :ndim]
    cropped = crop(items, corners, size)
    for item, out, corner in zip(items, cropped, corners.tolist()):
        assert torch.equal(out, item[(slice(None), *(slice(c, c + s) for c, s in zip(corner, size)))])
    middle = torch.tensor([[(r - s) // 2 for r, s in zip(read, size)]] * 2)
    assert torch.equal(center_crop(items, size), crop(items, middle, size))


def test_a_flip_mirrors_some_of_the_waves_in_time(tmp_path: Path) -> None:
    def first_batch(flip: bool) -> Tensor:
        data: Data = tones(tmp_path, flip=flip)
        return next(ItemTrainingSet(data, ItemLoader(data, data.split("train"), CPU), 16, seed=3).batches_from(0)).x

    plain, flipped = first_batch(False), first_batch(True)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(plain, flipped)]
    assert plain.shape == (16, 1, 512)
    assert 0 < sum(mirrored) < 16
    assert all(same or torch.equal(a, b) for same, a, b in zip(mirrored, plain, flipped))


def test_waves_have_a_psnr_and_no_ssim() -> None:
    x = torch.rand(4, 1, 512) * 2 - 1
    metrics = reconstruction_metrics(reconstruction_sums((x + 0.02).clamp(-1, 1), x), variance=0.3)
    assert metrics["autoencoder/psnr_db"] == pytest.approx(40, abs=0.1)  # an error of 0.01 in [0, 1]
    assert "ssim" not in metrics


def test_the_noise_is_below_a_hundredth_of_full_scale() -> None:
    """Companding lifts quiet noise: 0.001 becomes 0.04 of the range that the model sees."""
    assert float(compand(torch.tensor(NOISE))) - float(compand(torch.tensor(0.0))) < 256 / 2 * 0.05


NARROW = ["model.encoders.0.transformer.width=8", "model.encoders.0.transformer.heads=2"]
SMALL = {
    "conv": [o for o in TINY if o.startswith("model.")],
    "conv_2level": [f"model.{part}.{level}.residual_width=8" for part in ("encoders", "decoders") for level in (0, 1)],
    "resnet": ["model.encoders.0.widths=[8,8,8]"],
    "vit": NARROW,
    "tokens": [*NARROW, "model.encoders.0.tokens=16"],
}


@pytest.mark.parametrize("model", choices("model"))
def test_every_network_trains_both_stages_on_waves(model: str, tmp_path: Path) -> None:
    own = [o for o in TINY if not o.startswith("model")]
    run = tmp_path / "run"
    data = ["data=tones", "data.length=256"]
    train_inside(*own, *SMALL_CODEBOOK, *data, f"model={model}", *SMALL.get(model, []), f"run_dir={run}")
    figures = json.loads((run / "summary.json").read_text())["figures"]
    assert {"autoencoder/psnr_db", "prior/bits_per_code"} <= set(figures)
    assert "autoencoder/ssim" not in figures
    header = json.loads((run / "codes" / "val" / "header.json").read_text())
    assert all(len(shape) == 1 for shape in header["code_shapes"])
    assert (run / "samples.png").is_file()
    assert {path.name for path in (run / "samples").iterdir()} == {f"{name}.wav" for name in TONES}


def test_a_wavenet_trains_on_the_codes_of_waves_and_writes_sounds(tmp_path: Path) -> None:
    own = [o for o in TINY if not o.startswith(("model", "prior"))]
    prior = ["prior=wavenet", "prior.network.width=8", "prior.network.layers=2"]
    data = ["data=tones", "data.length=256", "model=conv", *SMALL["conv"]]
    train_inside(*own, *SMALL_CODEBOOK, *data, *prior, f"run_dir={tmp_path / 'run'}")
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == {f"{name}.wav" for name in TONES}


def test_a_length_that_does_not_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, *TINY, "data=tones", "data.length=250", f"run_dir={tmp_path / 'run'}")
    assert "data.length=250: a size of 250 does not divide by the encoder's stride 4" in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sample_rate": 4000}, "sample_rate must be at least 8000"),
        ({"channels": 2}, "channels must be 1, got 2"),
        ({"ndim": 2}, "ndim must be 1, got 2"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"val_count": 0}, "val_count must be at least 1, got 0"),
    ],
)
def test_impossible_sound_settings_are_one_sentence(settings: dict[str, int], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        tones(tmp_path, **settings)
