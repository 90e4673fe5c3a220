"""What the page shows of each code map: the use of its codes, what they look like, and which are alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.report.charts import Chart, Line
from vqvae.report.pictures import Picture

TILE = 48  # pixels of the side of a picture, at most
NEAREST = 6
COLUMNS = 16  # of the sheet that holds the pictures of codes


@dataclass
class Code:
    """A code: its number, its uses, these relative to uniform use, and the nearest of the codes shown, by their places."""

    number: int
    uses: int
    relative: float
    nearest: list[int]


@dataclass
class CodeMap:
    """A code map of a codebook of K = `size`: its codes, most used first, and their pictures (n, 1 or 3, side, side).

    tiles: None where codes have no place in an image; has_neighbors: they show the cells around the code's, too.
    """

    title: str
    size: int
    used: int
    codes: list[Code]
    tiles: Tensor | None
    has_neighbors: bool
    use: Chart

    def sheet(self, count: int) -> Picture | None:
        """The pictures of the first `count` codes in rows of COLUMNS, as one picture."""
        if self.tiles is None:
            return None
        tiles = self.tiles[:count]
        missing = -len(tiles) % COLUMNS
        tiles = torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])])
        rows = tiles.unflatten(0, (-1, COLUMNS)).permute(2, 0, 3, 1, 4)  # (C, rows, side, COLUMNS, side)
        return Picture(rows.flatten(3).flatten(1, 2))  # (C, rows side, COLUMNS side)


class Neighborhoods:
    """The mean of the reconstructions where a code is: its own cell in the middle, typical neighbors around it.

    For code maps of two dims, which divide the image into cells. A cell at the border has its own values beyond it.

    codes: those to look at (n,), of a codebook of K.
    """

    def __init__(self, codes: Tensor, codebook_size: int) -> None:
        self.slots = torch.full((codebook_size,), len(codes))  # the last one takes all other codes
        self.slots[codes] = torch.arange(len(codes))
        self.sums: Tensor | None = None
        self.has_neighbors = False
        self.uses = torch.zeros(len(codes) + 1)

    def add(self, x_hat: Tensor, codes: Tensor) -> None:
        """Reconstructions (n, C, H, W) and one of their code maps (n, h, w)."""
        grid, (height, width) = codes.shape[1:], x_hat.shape[2:]
        cells = [math.ceil(length / count) for length, count in zip((height, width), grid)]
        whole = [cell * count for cell, count in zip(cells, grid)]
        x_hat = x_hat if [height, width] == whole else F.interpolate(x_hat, whole, mode="bilinear")
        self.has_neighbors = min(grid) > 2
        around = [cell * self.has_neighbors for cell in cells]
        padded = F.pad(x_hat, (around[1], around[1], around[0], around[0]), mode="replicate")
        size = [cell + 2 * margin for cell, margin in zip(cells, around)]
        patches = padded.unfold(2, size[0], cells[0]).unfold(3, size[1], cells[1])  # (n, C, h, w, *size)
        rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(codes.numel(), -1, *size).cpu()  # (n h w, C, *size)
        if self.sums is None:
            self.sums = torch.zeros(len(self.uses), *rows.shape[1:])
        slots = self.slots[codes.flatten()]
        self.sums.index_add_(0, slots, rows)
        self.uses += torch.bincount(slots, minlength=len(self.uses))

    def tiles(self) -> Tensor:
        """What each code decodes to (n, C, side, side), in [-1, 1]; 0 where it was not met."""
        assert self.sums is not None
        means = (self.sums / self.uses.clamp_min(1).view(-1, 1, 1, 1))[:-1]
        if max(means.shape[2:]) > TILE:
            means = F.interpolate(means, (TILE, TILE), mode="area")
        return means


def code_map(
    m: int,
    counts: Tensor,
    codes: Tensor,
    vectors: Tensor,
    drawn: Neighborhoods | None,
    show: Callable[[Tensor], Tensor],
) -> CodeMap:
    """Code map m. counts (K,); codes: those to show (n,), `drawn` with what they decode to; vectors: the latents of all (K, D).

    show: x (n, C, *S) in [-1, 1] -> pictures uint8 (n, 1 or 3, H, W).
    """
    relative = counts.double() * len(counts) / counts.sum().clamp_min(1)
    shown = vectors[codes].float()
    order = torch.cdist(shown, shown).fill_diagonal_(math.inf).argsort(1)[:, : min(NEAREST, len(codes) - 1)]
    listed = [
        Code(number, int(counts[number]), float(relative[number]), near)
        for number, near in zip(codes.tolist(), order.tolist())
    ]
    shares = relative.sort(descending=True).values.tolist()
    points = [(float(rank), share) for rank, share in enumerate(shares, 1)]
    lines = [Line("use over uniform use", points, filled=True), Line("uniform use", [(1, 1), (len(counts), 1)], 1, 1)]
    use = Chart("Use of codes, most used first", lines, "rank of the code")
    tiles, has_neighbors = (None, False) if drawn is None else (show(drawn.tiles()), drawn.has_neighbors)
    return CodeMap(f"Code map {m}", len(counts), int((counts > 0).sum()), listed, tiles, has_neighbors, use)
