"""Laws of spectra of sounds: distances that grow as the ear would say, figures that are sums, terms in training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, error_of, lines, run, train_inside
from torch import Tensor

from vqvae.errors import UserError
from vqvae.losses.frequency import STFT, Mel
from vqvae.metrics.sounds import LSD, MEL, SI_SDR, SoundObserver
from vqvae.metrics.sounds import STFT as STFT_FIGURE
from vqvae.metrics.spectra import log_spectral_distance, magnitudes, mel_filters, spectral_distance

RATE = 16000


def tone(hertz: float, amplitude: float = 0.5, seconds: float = 0.5) -> Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(round(RATE * seconds)) / RATE)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [128, 512, 2048])
def test_noise_is_as_strong_in_windows_of_any_length(window: int) -> None:
    power = magnitudes(noise(4, 20000), window)[..., 4:-4].square().mean()
    assert float(power) == pytest.approx(0.01 * 3 / 8, rel=0.05)  # 3/8: of a Hann window


@pytest.mark.parametrize(
    ("rate", "window", "bands"), [(8000, 128, 80), (16000, 1024, 80), (44100, 2048, 160), (8000, 4, 3)]
)
def test_every_mel_band_is_a_mean_and_all_frequencies_but_the_ends_are_heard(
    rate: int, window: int, bands: int
) -> None:
    filters = mel_filters(rate, window, bands)
    assert filters.shape == (bands, window // 2 + 1)
    assert torch.allclose(filters.sum(1), torch.ones(bands))
    assert bool((filters >= 0).all())
    assert bool((filters[:, 1:-1].sum(0) > 0).all())
    peaks = filters.argmax(1)
    assert bool((peaks.diff() >= 0).all())


def test_a_mel_band_hears_the_tone_at_its_middle() -> None:
    filters = mel_filters(RATE, 2048, 40)
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    for band in (10, 20, 30):
        hertz = 700 * (10 ** (top * (band + 1) / 41 / 2595) - 1)
        heard = (filters @ magnitudes(tone(hertz)[None], 2048)).mean(-1)[0]
        assert int(heard.argmax()) == band


def test_a_shift_of_phase_is_near_in_spectra_and_another_pitch_is_far() -> None:
    x = tone(440)[None]
    shifted = 0.5 * torch.cos(2 * math.pi * 440 * torch.arange(x.shape[-1]) / RATE)[None]
    near, far = (float(spectral_distance(other, x, [512])) for other in (shifted, tone(880)[None]))
    assert near < far / 2
    assert float((shifted - x).square().mean()) == pytest.approx(float((tone(880)[None] - x).square().mean()), rel=0.05)


def test_half_as_loud_is_six_decibels_at_every_frequency() -> None:
    x = noise(3, 16000)
    assert log_spectral_distance(x / 2, x, 512).tolist() == pytest.approx([6.02] * 3, abs=0.01)


def sums_of(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    return SoundObserver(lambda waves: waves, RATE).sums(x, x_hat)


def test_figures_of_sounds_do_not_depend_on_how_a_set_is_cut() -> None:
    x, error, observer = noise(6, 2, 4000), noise(6, 2, 4000, seed=1), SoundObserver(lambda waves: waves, RATE)
    whole = observer.figures(sums_of(x + error, x))
    parts = [sums_of(x[rows] + error[rows], x[rows]) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    joined = observer.figures({name: sum(part[name] for part in parts) for name in parts[0]})  # type: ignore[misc]
    assert joined == pytest.approx(whole, rel=1e-5)
    assert whole.keys() == {SI_SDR, STFT_FIGURE, MEL, LSD}
    assert whole[SI_SDR] == pytest.approx(0, abs=0.5)  # as much error as sound


def test_a_ratio_does_not_depend_on_loudness_and_leaves_silence_out() -> None:
    x, observer = noise(4, 1, 8000), SoundObserver(lambda waves: waves, RATE)
    made = x + 0.1 * noise(4, 1, 8000, seed=2)
    plain, louder = (observer.figures(sums_of(made * gain, x))[SI_SDR] for gain in (1.0, 3.0))
    assert plain == pytest.approx(20, abs=0.5)
    assert louder == pytest.approx(plain, abs=0.01)
    quiet = torch.cat([x, torch.zeros(4, 1, 8000)])
    assert observer.figures(sums_of(torch.cat([made, made]), quiet))[SI_SDR] == pytest.approx(plain, abs=0.01)
    assert SI_SDR not in observer.figures(sums_of(made, torch.zeros_like(x)))


def test_spectral_terms_hear_what_squared_error_does_not() -> None:
    """Of two errors of equal power, the one that is at the sound's own pitch is the better."""
    x = tone(300)[None, None]
    same, other = x * 1.1, x + tone(3000, 0.05)[None, None]
    assert float((same - x).square().mean()) == pytest.approx(float((other - x).square().mean()), rel=0.01)
    for term in (STFT(1.0, [512, 256], 1.0), Mel(1.0, RATE, [512, 256], [40, 20], 1.0)):
        assert float(term.value(same, x)) < float(term.value(other, x))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: STFT(1.0, [513], 1.0), "513 is no multiple of 4"),
        (lambda: STFT(1.0, [], 1.0), "windows must"),
        (lambda: Mel(1.0, RATE, [512, 256], [40], 1.0), "must have one number for each of windows"),
        (lambda: Mel(1.0, 0, [512], [40], 1.0), "rate must be at least 1"),
    ],
)
def test_impossible_terms_are_one_sentence(made: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made()  # type: ignore[operator]


def test_sounds_are_trained_by_spectra_and_their_figures_are_logged_and_evaluated(tmp_path: Path) -> None:
    terms = ["stft", "mel"]
    added = [f"+loss/term@loss.terms.{name}={name}" for name in terms]
    overrides = [*TINY, *SMALL_CODEBOOK, "data=tones", "data.length=256", "stages=[autoencoder]", *added]
    train_inside(*overrides, f"run_dir={tmp_path / 'run'}")
    log = lines(tmp_path / "run" / "autoencoder" / "metrics.jsonl")
    assert all(any(f"autoencoder/train/reconstruction_{name}" in line for line in log) for name in terms)
    wanted = {SI_SDR, STFT_FIGURE, MEL, LSD}
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["figures"]
    assert wanted <= figures.keys()
    run("scripts/evaluate.py", f"run_dir={tmp_path / 'run'}", f"out={tmp_path / 'e.json'}")
    measured = json.loads((tmp_path / "e.json").read_text())["figures"]
    assert {name: measured[name]["value"] for name in wanted} == pytest.approx(
        {name: figures[name]["value"] for name in wanted}, rel=1e-3
    )


def test_mel_bands_know_the_rate_of_the_data(tmp_path: Path) -> None:
    from vqvae.config.compose import compose, resolve

    for data, rate in ((["data=audio", "data.root=x", "data.rate=22050"], 22050), (["data=tones"], 8000)):
        cfg = resolve(compose("train", [*data, "+loss/term@loss.terms.mel=mel"]))
        assert cfg.loss.terms.mel.rate == rate


def test_images_have_no_figures_of_sounds(finished_run: Path) -> None:
    figures = json.loads((finished_run / "summary.json").read_text())["figures"]
    assert not {SI_SDR, STFT_FIGURE, MEL, LSD} & figures.keys()


def test_a_wrong_window_is_said_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    term = ["+loss/term@loss.terms.stft=stft", "loss.terms.stft.windows=[510]"]
    said = error_of(capsys, *TINY, "data=tones", "data.length=256", *term, f"run_dir={tmp_path / 'run'}")
    assert "loss.terms.stft.windows=[510]: 510 is no multiple of 4" in said
