"""Animated GIF of the codes while they are drawn."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vqvae.images import Captions, grid, rows_of
from vqvae.sampling.job import Job, paint

MOST_FRAMES = 60
MOST_SAMPLES = 16  # shown in a GIF: the first ones


class Frames:
    """A watch that keeps codes of the first `count` samples at about MOST_FRAMES even shares of the way.

    frames: pairs of M code maps (count, *s_m) and masks of those that are drawn.
    """

    def __init__(self, count: int) -> None:
        self.count = min(count, MOST_SAMPLES)
        self.frames: list[tuple[list[Tensor], list[Tensor]]] = []
        self.next = 1

    def __call__(self, codes: list[Tensor], drawn: list[Tensor]) -> None:
        """Codes and masks of a chunk, M maps (B, *s_m) each."""
        share = sum(int(m[0].sum()) for m in drawn) / sum(m[0].numel() for m in drawn)
        if share * MOST_FRAMES >= self.next:
            own, done = ([m[: self.count].cpu().clone() for m in maps] for maps in (codes, drawn))  # filled in place
            self.frames.append((own, done))
            self.next = int(share * MOST_FRAMES) + 1


def render(frames: Frames, job: Job, columns: int, captions: Captions) -> list[Tensor]:
    """Images uint8 (1 or 3, H, W), one per frame: decoded codes, gray where the coarsest map is not drawn yet."""
    images = []
    for codes, drawn in frames.frames:
        shown = [m.masked_fill(~known, 0) for m, known in zip(codes, drawn)]  # what is not drawn may be no code at all
        open_codes = (~drawn[0]).float()[:, None]  # (n, 1, *s) of the coarsest map: later ones refine it
        open_places = F.interpolate(open_codes, size=job.run.data.size, mode="nearest")[:, 0] > 0  # (n, *S)
        items = paint(job.decode(shown), open_places)
        images.append(grid(rows_of(job.run.data.picture(items), columns), captions))
    return images
