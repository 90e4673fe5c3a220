"""Waves drawn as images, with torch alone."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEIGHT = 192, 64  # pixels of one panel
PAPER, INK, FRAME = 255, 40, 190  # gray levels
ROWS = 128  # of a spectrogram
WINDOW = 512  # samples
FAINTEST_DB = -90.0  # white in a spectrogram; 0 dB, black, is a sine of full scale


def plot_waves(waves: Tensor) -> Tensor:
    """Waves (n, C, T) in [-1, 1] -> gray images uint8 (n, 1, 2 C HEIGHT, WIDTH).

    Two panels a channel: the whole wave, and below it the WIDTH samples in its middle (all of a shorter wave), so that both
    the envelope and the form of a period can be seen. Full scale is the panel's height.
    """
    n, length = len(waves), min(WIDTH, waves.shape[-1])
    middle = waves.narrow(-1, (waves.shape[-1] - length) // 2, length)
    panels = torch.stack([panel(waves), panel(middle)], dim=2)  # (n, C, 2, HEIGHT, WIDTH)
    return panels.reshape(n, 1, -1, WIDTH)  # (n, 1, 2 C HEIGHT, WIDTH)


def plot_sounds(waves: Tensor) -> Tensor:
    """Waves (n, C, T) in [-1, 1] -> gray images uint8 (n, 1, C (HEIGHT + ROWS), WIDTH).

    A channel is a panel of its wave, and below it its spectrogram: dark is loud, and frequencies go from 0 at the bottom to
    half the sample rate at the top.
    """
    panels = torch.cat([panel(waves), spectrogram(waves)], dim=2)  # (n, C, HEIGHT + ROWS, WIDTH)
    return panels.reshape(len(waves), 1, -1, WIDTH)  # (n, 1, C (HEIGHT + ROWS), WIDTH)


def spectrogram(waves: Tensor) -> Tensor:
    """Waves (n, C, T) -> (n, C, ROWS, WIDTH) uint8: power of windows of WINDOW samples in dB, WIDTH of them evenly spread."""
    window = torch.hann_window(WINDOW, device=waves.device)
    padded = F.pad(waves.float(), (WINDOW // 2, WINDOW // 2))  # (n, C, T + WINDOW)
    starts = torch.arange(WIDTH, device=waves.device) * (waves.shape[-1] - 1) // (WIDTH - 1)
    parts = padded.unfold(-1, WINDOW, 1)[:, :, starts] * window  # (n, C, WIDTH, WINDOW)
    power = torch.fft.rfft(parts).abs().square()[..., : WINDOW // 2] / (window.sum() / 2) ** 2
    rows = power.unflatten(-1, (ROWS, -1)).mean(-1)  # (n, C, WIDTH, ROWS)
    share = (10 * torch.log10(rows.clamp_min(1e-20)) / FAINTEST_DB).clamp(0, 1)  # 0 loud, 1 faint
    return (INK + share * (PAPER - INK)).round().to(torch.uint8).transpose(2, 3).flip(2)  # (n, C, ROWS, WIDTH)


def panel(waves: Tensor) -> Tensor:
    """Waves (n, C, T) in [-1, 1] -> (n, C, HEIGHT, WIDTH): each column inked from its least to its greatest sample.

    A column's samples include the first of the next column, so that the line has no gaps. Shorter waves than WIDTH are
    stretched.
    """
    if waves.shape[-1] < WIDTH:
        waves = F.interpolate(waves, size=WIDTH, mode="linear", align_corners=True)
    edges = [column * (waves.shape[-1] - 1) // WIDTH for column in range(WIDTH + 1)]
    parts = [waves[..., start : end + 1] for start, end in itertools.pairwise(edges)]  # WIDTH x (n, C, samples)
    low, high = (torch.stack([reduce(part, -1) for part in parts], -1) for reduce in (torch.amin, torch.amax))
    top, bottom = ((1 - level.clamp(-1, 1)) / 2 * (HEIGHT - 1) for level in (high, low))  # (n, C, WIDTH), in rows
    rows = torch.arange(HEIGHT, device=waves.device)[:, None]
    inked = (rows >= top.round()[..., None, :]) & (rows <= bottom.round()[..., None, :])  # (n, C, HEIGHT, WIDTH)
    paper = torch.where(rows == HEIGHT - 1, FRAME, PAPER)  # (HEIGHT, 1): a line below each panel
    return torch.where(inked, INK, paper).to(torch.uint8)
