"""Batches of items for the autoencoder: endless and augmented for training, once and in order for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data.base import Data
from vqvae.data.loader import ItemLoader
from vqvae.data.sampler import chunks_of_rank, rank_batches, training_indices
from vqvae.devices.copies import send
from vqvae.images import x_of
from vqvae.seeding import mix


class ItemBatch(NamedTuple):
    """x float (B, C, *S) in [-1, 1], labels (B,), -1 for no class."""

    x: Tensor
    labels: Tensor

    def split(self, parts: int) -> list[ItemBatch]:
        """Split into micro-batches of equal size."""
        return [ItemBatch(*part) for part in zip(self.x.chunk(parts), self.labels.chunk(parts))]


class ItemInputs(NamedTuple):
    """What a training batch is made of.

    items (B, C, *R), or indices (B,) of a set that is on the device; labels (B,); corners (B, dims) of the crops and
    flipped (B,) bool, where the data is cropped or flipped.
    """

    items: Tensor
    labels: Tensor
    corners: Tensor | None
    flipped: Tensor | None


class ItemTrainingSet:
    """Training batches of items, cropped and flipped at random.

    Args:
        data: the data set, which says how items are augmented.
        loader: its training split.
        batch_size: of all ranks together.
        seed: of the order, crops and flips.
    """

    def __init__(self, data: Data, loader: ItemLoader, batch_size: int, seed: int) -> None:
        self.data, self.loader, self.batch_size, self.seed = data, loader, batch_size, seed

    def __len__(self) -> int:
        return len(self.loader)

    def batches_from(self, start_step: int, parts: int = 1) -> Iterator[ItemBatch]:
        """Endless batches of this rank from `start_step` on, ordered by `parts` micro-batches."""
        return map(self.prepare, self.inputs_from(start_step, parts))

    def inputs_from(self, start_step: int, parts: int = 1) -> Iterator[ItemInputs]:
        """What those batches are made of, on the device."""
        indices = rank_batches(self.seed, start_step, self.batch_size, len(self), parts)
        for step, (items, labels) in enumerate(self.loader.inputs(indices), start_step):
            generator = torch.Generator().manual_seed(mix(self.seed + 1, step))
            yield ItemInputs(items, labels, *self._draw(generator, parts))

    def prepare(self, inputs: ItemInputs) -> ItemBatch:
        """Read items that are on the device, crop and flip them."""
        items = self.loader.items(inputs.items)
        if inputs.corners is not None:
            items = crop(items, inputs.corners, self.data.size)
        if inputs.flipped is not None:
            items = torch.where(inputs.flipped.view(-1, *[1] * (items.ndim - 1)), items.flip(-1), items)
        return ItemBatch(x_of(items), inputs.labels)

    def indices(self, step: int) -> Tensor:
        """Indices (batch_size,) of the items in a step's global batch."""
        return training_indices(self.seed, step, self.batch_size, len(self))

    def _draw(self, generator: torch.Generator, parts: int) -> tuple[Tensor | None, Tensor | None]:
        """Corners and flips. They are drawn for the global batch, so that they do not depend on the number of ranks."""
        own = distributed.rows_of_rank(self.batch_size, parts)
        corners = flipped = None
        if self.data.read_size != self.data.size:
            rooms = [read - kept + 1 for read, kept in zip(self.data.read_size, self.data.size)]
            draws = [torch.randint(room, (self.batch_size,), generator=generator)[own] for room in rooms]
            corners = send(torch.stack(draws, 1), self.loader.device)
        if self.data.flip:
            flipped = send(torch.rand(self.batch_size, generator=generator)[own] < 0.5, self.loader.device)
        return corners, flipped


class ItemEvaluationSet:
    """All items of a split once, in order, cropped at the center."""

    def __init__(self, data: Data, loader: ItemLoader) -> None:
        self.data, self.loader = data, loader

    def batches(self, chunk: int) -> Iterator[ItemBatch]:
        """This rank's share of the items, in batches of `chunk`."""
        for items, labels in self.loader.batches(chunks_of_rank(len(self.loader), chunk)):
            yield ItemBatch(x_of(center_crop(items, self.data.size)), labels)

    def preview(self, count: int) -> ItemBatch:
        """Items spread over the set: the same in every preview, on every rank."""
        count = min(count, len(self.loader))
        items, labels = next(iter(self.loader.batches([torch.arange(count) * len(self.loader) // count])))
        return ItemBatch(x_of(center_crop(items, self.data.size)), labels)


def crop(images: Tensor, corners: Tensor, size: tuple[int, ...]) -> Tensor:
    """Crop items (b, C, *R) at the corners (b, dims) -> (b, C, *size)."""
    for dim, (length, start) in enumerate(zip(size, corners.T), 2):
        span = start[:, None] + torch.arange(length, device=images.device)  # (b, length)
        index = span.view(len(span), *[-1 if axis == dim else 1 for axis in range(1, images.ndim)])
        images = images.gather(dim, index.expand(*images.shape[:dim], length, *images.shape[dim + 1 :]))
    return images  # (b, C, *size)


def center_crop(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Crop the center of items (b, C, *R) -> (b, C, *size)."""
    for dim, length in enumerate(size, 2):
        images = images.narrow(dim, (images.shape[dim] - length) // 2, length)
    return images
