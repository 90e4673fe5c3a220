"""What a trained autoencoder makes of validation items: their PSNR, some to look at, and its code maps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae.data.code_store import CodeStore
from vqvae.data.items import center_crop
from vqvae.data.loader import ItemLoader
from vqvae.images import x_of
from vqvae.inference.trained_model import TrainedModel
from vqvae.metrics.reconstruction import item_psnr
from vqvae.report.codes import CodeMap, Neighborhoods, code_map
from vqvae.report.pictures import Picture
from vqvae.run.report import store_counts
from vqvae.run.run import Run

MOST_ITEMS, LEAST_ITEMS = 2_000, 64  # that are measured
MOST_VALUES = 2**23  # of all items that are measured, positions: the end of a run shall not wait for them
VALUES_AT_A_TIME = 2**21  # of items that are decoded at once; pictures of codes take nine times as many
MOST_CODES, MOST_MAPS = 256, 8  # codes of a map that are shown, the most used ones, and maps
LONGEST = 300  # characters of a title
SPREAD, EXTREMES = 16, 8  # items shown: spread over the set, and of the best and the worst


class Pair(NamedTuple):
    """An item beside its reconstruction: its name, PSNR in dB, and both pictures."""

    title: str
    psnr: float
    original: Picture
    reconstruction: Picture


@dataclass
class Items:
    """Items of a split: how many of `total` were measured, the PSNR of each (n,), and some of them to look at."""

    split: str
    are_images: bool
    total: int
    psnr: Tensor
    spread: list[Pair]
    best: list[Pair]
    worst: list[Pair]


class Decoder:
    """Validation items and their reconstructions, some at a time; from their codes, where the model has some.

    items: None where the data is not there.
    """

    def __init__(
        self, run: Run, trained: TrainedModel, store: CodeStore | None, items: ItemLoader | None, most: int | None
    ) -> None:
        self.run, self.trained, self.store, self.items = run, trained, store, items
        self.total = len(items) if items is not None else len(store) if store is not None else 0
        self.are_images = len(run.data.size) == 2
        positions = math.prod(run.data.size)
        count = min(self.total, most or min(MOST_ITEMS, max(LEAST_ITEMS, MOST_VALUES // positions)))
        self.indices = torch.arange(count) * self.total // max(1, count)
        self.chunk = max(1, min(128, VALUES_AT_A_TIME // (run.data.channels * positions)))

    def originals(self, indices: Tensor) -> Tensor:
        """Items (n, C, *S) in [-1, 1]."""
        assert self.items is not None
        items, _ = next(iter(self.items.batches([indices])))
        return x_of(center_crop(items, self.run.data.size))

    @torch.no_grad()
    def decoded(self, indices: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Reconstructions (n, C, *S) in [-1, 1] of items, and their code maps, M x (n, *s_m)."""
        if self.store is None:
            return self.trained.reconstruct(self.originals(indices)), []
        codes = self.store.codes(indices)
        return self.trained.decode(codes), codes

    def chunks(self) -> Iterator[Tensor]:
        """The indices of the items that are measured, some at a time."""
        yield from self.indices.split(self.chunk)

    def pairs(self, indices: Tensor, psnr: Tensor) -> list[Pair]:
        """Items to look at. indices, psnr: (n,)."""
        assert self.items is not None
        labels, names = self.items.split.labels[indices].tolist(), self.run.data.class_names
        titles = [self.items.split.title(index) for index in indices.tolist()]
        titles = [f"{t}, {names[label]}" if 0 <= label < len(names) else t for t, label in zip(titles, labels)]
        titles = [title[:LONGEST] for title in titles]
        originals, reconstructions = (
            [Picture(image) for image in self.run.data.picture_of(x)]
            for x in (self.originals(indices), self.decoded(indices)[0])
        )
        return list(map(Pair, titles, psnr.tolist(), originals, reconstructions))

    def measured(self, psnr: Tensor) -> Items:
        """What was measured, and items to look at. psnr: of `self.indices` (n,)."""
        assert self.items is not None
        order, count = psnr.argsort(), len(psnr)
        spread = torch.arange(min(SPREAD, count)) * count // min(SPREAD, count)
        chosen = (spread, order.flip(0)[:EXTREMES], order[:EXTREMES])
        pairs = [self.pairs(self.indices[rows], psnr[rows]) for rows in chosen]
        return Items(self.items.split.name, self.are_images, self.total, psnr, *pairs)


def look_at(
    run: Run, trained: TrainedModel, store: CodeStore | None, loader: ItemLoader | None, most: int | None
) -> tuple[Items | None, list[CodeMap]]:
    """Decode validation items once, for their PSNR and for the pictures of codes.

    store: their codes, None for a model without codes. loader: the items, None where the data is not there.
    most: items that are measured; None: as many as do not take long.
    """
    decoder = Decoder(run, trained, store, loader, most)
    counts = [] if store is None else store_counts(store)[:MOST_MAPS]
    chosen = [
        of_map.argsort(descending=True, stable=True)[: min(MOST_CODES, int((of_map > 0).sum()))] for of_map in counts
    ]
    shapes = trained.code_shapes
    drawn = {
        m: Neighborhoods(codes, len(counts[m]))
        for m, codes in enumerate(chosen)
        if len(shapes[m]) == len(run.data.size) == 2
    }
    psnr = []
    for indices in decoder.chunks():
        x_hat, codes = decoder.decoded(indices)
        if loader is not None:
            psnr.append(item_psnr(x_hat, decoder.originals(indices)).cpu())
        for m, neighborhoods in drawn.items():
            neighborhoods.add(x_hat, codes[m])
    vectors = trained.model.code_vectors(run.data.size) if counts else []
    maps = [
        code_map(m, counts[m], codes, vectors[m].cpu(), drawn.get(m), run.data.picture_of)
        for m, codes in enumerate(chosen)
    ]
    if len(maps) == 1:
        maps[0].title = "Codes"
    return decoder.measured(torch.cat(psnr)) if psnr else None, maps
