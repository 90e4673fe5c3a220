"""Short-time spectra of waves, and how far apart two of them are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOOR = 1e-4  # smaller magnitudes count as this: about 80 dB below white noise of full scale


def magnitudes(waves: Tensor, window: int) -> Tensor:
    """Waves (..., T) -> magnitudes (rows, window / 2 + 1, frames) of Hann windows a quarter of their length apart.

    Over sqrt(window), so that noise has the same in windows of any length. Silence lies beyond the ends. float32.
    """
    rows = waves.float().flatten(0, -2)  # (rows, T)
    hann = torch.hann_window(window, device=waves.device)
    spectra = torch.stft(
        rows, window, window // 4, window=hann, pad_mode="constant", normalized=True, return_complex=True
    )
    return spectra.abs()


def levels(spectra: Tensor) -> Tensor:
    """Magnitudes -> log10 of them, of FLOOR where they are smaller. Any shape."""
    return spectra.clamp_min(FLOOR).log10()


def spectral_distance(x_hat: Tensor, x: Tensor, windows: list[int]) -> Tensor:
    """Waves (..., T) -> mean absolute difference of magnitudes, plus that of their log10; the mean over windows. A scalar.

    The multi-scale spectral loss of DAC (arXiv 2306.06546), after arXiv 1910.11480.
    """
    distances = []
    for window in windows:
        a, b = magnitudes(x_hat, window), magnitudes(x, window)
        distances.append((a - b).abs().mean() + (levels(a) - levels(b)).abs().mean())
    return torch.stack(distances).mean()


def mel_distance(x_hat: Tensor, x: Tensor, filters: list[Tensor]) -> Tensor:
    """Waves (..., T) -> mean absolute difference of log10 of magnitudes in mel bands; the mean over filters. A scalar.

    filters: (bands, window / 2 + 1) each, see `mel_filters`.
    """
    distances = []
    for bank in filters:
        window = 2 * (bank.shape[1] - 1)
        a, b = (levels(bank @ magnitudes(waves, window)) for waves in (x_hat, x))
        distances.append((a - b).abs().mean())
    return torch.stack(distances).mean()


def log_spectral_distance(x_hat: Tensor, x: Tensor, window: int) -> Tensor:
    """Waves (..., T) -> root mean square over frequencies of the difference in dB, the mean over frames: (rows,)."""
    difference = 20 * (levels(magnitudes(x_hat, window)) - levels(magnitudes(x, window)))
    return difference.square().mean(1).sqrt().mean(1)


def mel_filters(rate: int, window: int, bands: int) -> Tensor:
    """Triangles that are evenly spread on the mel scale up to half the rate, (bands, window / 2 + 1); each sums to 1.

    mel = 2595 log10(1 + Hz / 700). None is narrower than the frequencies of the window lie apart, so none is empty.
    """
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)  # Hz
    apart = rate / window
    center = edges[1:-1, None]
    below = torch.minimum(edges[:-2, None], center - apart)
    above = torch.maximum(edges[2:, None], center + apart)
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * apart
    rising, falling = (frequencies - below) / (center - below), (above - frequencies) / (above - center)
    weights = torch.minimum(rising, falling).clamp_min(0)  # (bands, window / 2 + 1)
    return (weights / weights.sum(1, keepdim=True)).float()
