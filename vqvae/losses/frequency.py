"""Distances of spectra: of whole items, and of sounds window by window."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.losses.terms import Term
from vqvae.metrics.spectra import mel_distance, mel_filters, spectral_distance
from vqvae.ranges import Count, Ge, NonNegativeFloat, NotEmpty, PositiveInt, checked

Windows = Annotated[list[Annotated[int, Ge(4)]], NotEmpty]


class Frequency(Term):
    """Mean absolute difference of the magnitudes of the Fourier transforms over all data dims, orthonormal.

    Where details cannot be placed exactly, it rewards their strength, which the squared error averages away.
    """

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        dims = tuple(range(2, x.ndim))
        ours, true = (torch.fft.rfftn(values, dim=dims, norm="ortho").abs() for values in (x_hat, x))
        return (ours - true).abs().mean()


@checked
class STFT(Term):
    """Differences of short-time spectra along the last data dim: see `spectral_distance` (arXiv 2306.06546, 1910.11480).

    windows: their lengths in samples, multiples of 4. Long ones tell pitches apart, short ones moments.
    """

    def __init__(self, weight: NonNegativeFloat, windows: Windows, variance: float) -> None:
        super().__init__(weight, variance)
        check_windows(windows)
        self.windows = windows

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return spectral_distance(x_hat, x, self.windows)


@checked
class Mel(Term):
    """Differences of log magnitudes in mel bands along the last data dim: see `mel_distance` (arXiv 2107.03312, 2306.06546).

    rate: samples per second. windows: their lengths in samples, multiples of 4. bands: how many, of each window.
    """

    def __init__(
        self, weight: NonNegativeFloat, rate: PositiveInt, windows: Windows, bands: list[Count], variance: float
    ) -> None:
        super().__init__(weight, variance)
        check_windows(windows)
        if len(bands) != len(windows):
            raise UserError(f"bands={bands} must have one number for each of windows={windows}")
        for index, (window, count) in enumerate(zip(windows, bands)):
            self.register_buffer(f"filters_{index}", mel_filters(rate, window, count), persistent=False)

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return mel_distance(x_hat, x, list(self.buffers()))


def check_windows(windows: list[int]) -> None:
    """Raise UserError unless a quarter of each window is a whole number."""
    if wrong := [window for window in windows if window % 4]:
        raise UserError(f"windows={windows}: {wrong[0]} is no multiple of 4")
