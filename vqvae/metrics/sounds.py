"""Figures of reconstructed sounds, as sums over a set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqvae.metrics.registry import figure
from vqvae.metrics.spectra import log_spectral_distance, mel_distance, mel_filters, spectral_distance
from vqvae.surroundings.own_folder import own_folder

SILENT = 1e-3  # root mean square, 60 dB below full scale: noise over nothing has no ratio
WINDOWS = [2048, 1024, 512]
MEL_WINDOW, MEL_BANDS = 1024, 80
PANEL = "spectral distances of sounds"

SI_SDR = figure(
    "autoencoder/si_sdr_db",
    "mean scale-invariant signal-to-distortion ratio over channels of items that are louder than -60 dB (arXiv 1811.02508, "
    "torchmetrics, means kept); of waves, which are expanded where they are companded",
    better="higher",
    panel="SI-SDR, dB",
    sweep=True,
)
STFT = figure(
    "autoencoder/stft_distance",
    "mean absolute difference of magnitudes, plus that of their log10 (from 1e-4 on), of Hann windows of 2,048, 1,024 and 512 "
    "samples a quarter apart, over the root of their length; mean over windows and items",
    better="lower",
    panel=PANEL,
)
MEL = figure(
    "autoencoder/mel_distance",
    "mean absolute difference of log10 of the magnitudes (from 1e-4 on) in 80 mel bands up to half the sample rate, of Hann "
    "windows of 1,024 samples a quarter apart",
    better="lower",
    panel=PANEL,
    sweep=True,
)
LSD = figure(
    "autoencoder/log_spectral_distance_db",
    "root mean square over frequencies of the difference of magnitudes in dB (from 1e-4 on), Hann windows of 2,048 samples a "
    "quarter apart; mean over windows and items",
    better="lower",
)


class SoundObserver:
    """Adds figures of sounds to evaluations.

    Args:
        waves: x (B, C, T) in [-1, 1] as the model sees it -> waves (B, C, T).
        rate: samples per second.
    """

    monitor = MEL

    def __init__(self, waves: Callable[[Tensor], Tensor], rate: int) -> None:
        self.waves, self.filters = waves, mel_filters(rate, MEL_WINDOW, MEL_BANDS)

    def sums(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """x and x_hat (B, C, T) -> sums over channels of items, float64; `channels` and those that are `heard` are numbers."""
        with own_folder():  # it imports matplotlib
            from torchmetrics.functional.audio.sdr import scale_invariant_signal_distortion_ratio

        wave, made = (self.waves(part).float().flatten(0, 1) for part in (x, x_hat))  # (B C, T)
        heard = wave.square().mean(1).sqrt() > SILENT
        ratios = scale_invariant_signal_distortion_ratio(made, wave).double()
        with torch.autocast(x.device.type, enabled=False):
            means = {
                "stft": spectral_distance(made, wave, WINDOWS),
                "mel": mel_distance(made, wave, [self.filters.to(x.device)]),
                "lsd": log_spectral_distance(made, wave, WINDOWS[0]).mean(),
            }
        return {
            "ratios": torch.where(heard, ratios, 0.0).sum(),
            "heard": heard.double().sum(),
            "channels": ratios.new_tensor(float(len(wave))),
            **{name: value.double() * len(wave) for name, value in means.items()},
        }

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Sums over a set -> figures by name; no ratio where all is silent."""
        names = {"stft": STFT, "mel": MEL, "lsd": LSD}
        found = {figure: float(sums[name] / sums["channels"]) for name, figure in names.items()}
        return found | ({SI_SDR: float(sums["ratios"] / sums["heard"])} if sums["heard"] else {})
