"""Waves drawn as images, with torch alone."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEIGHT = 192, 64  # pixels of one panel
PAPER, INK, FRAME = 255, 40, 190  # gray levels


def plot_waves(waves: Tensor) -> Tensor:
    """Waves (n, C, T) in [-1, 1] -> gray images uint8 (n, 1, 2 C HEIGHT, WIDTH).

    Two panels a channel: the whole wave, and below it the WIDTH samples in its middle (all of a shorter wave), so that both
    the envelope and the form of a period can be seen. Full scale is the panel's height.
    """
    n, length = len(waves), min(WIDTH, waves.shape[-1])
    middle = waves.narrow(-1, (waves.shape[-1] - length) // 2, length)
    panels = torch.stack([panel(waves), panel(middle)], dim=2)  # (n, C, 2, HEIGHT, WIDTH)
    return panels.reshape(n, 1, -1, WIDTH)  # (n, 1, 2 C HEIGHT, WIDTH)


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
