"""Batches of a split on the device, from memory or decoded as they are needed."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from vqvae import distributed
from vqvae.data import arrays
from vqvae.data.base import Data, Split, TensorSplit
from vqvae.data.cache import Cache
from vqvae.data.resident import PLACES, choose_place, mapped, read_ahead
from vqvae.data.workers import read_batches
from vqvae.devices.copies import send
from vqvae.errors import TooManyUnreadable, UserError
from vqvae.images import x_of

log = logging.getLogger(__name__)
NUMPY_TYPES: dict[torch.dtype, np.dtype] = {
    torch.uint8: np.dtype(np.uint8),
    torch.float32: np.dtype(np.float32),
}  # of items
MOST_TRIED = 64  # items of a cache that could not be read, tried again


class ReadItem(NamedTuple):
    """An item, the index that was read (-1: none could be), and why those before it could not: (index, reason)."""

    item: Tensor
    used: int
    unreadable: list[tuple[int, str]]


class ReadableDataset(Dataset):
    """Items by index. An unreadable item is replaced by the next readable one; workers would mangle exceptions."""

    def __init__(self, split: Split) -> None:
        self.split, self.none_readable = split, False

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> ReadItem:
        count = len(self.split)
        unreadable: list[tuple[int, str]] = []
        for used in range(index, index if self.none_readable else index + count):
            try:
                return ReadItem(self.split.read(used % count), used % count, unreadable)
            except OSError as error:
                unreadable.append((used % count, str(error)))
        self.none_readable = True  # skip the rest of the batch
        return ReadItem(torch.empty(0), -1, unreadable[:1])


def collate(read: list[ReadItem]) -> tuple[Tensor, list[int], dict[int, str]]:
    """Items of a batch, indices that were read, and the unreadable ones with the reason of each.

    Only items are tensors, which take shared memory, so that an error of it is raised here: tensors that are made later are
    shared by a thread of the worker's queue, which loses its errors.
    """
    used = [one.used for one in read]
    reasons = dict(pair for one in read for pair in one.unreadable)
    return torch.empty(0) if -1 in used else default_collate([one.item for one in read]), used, reasons


class ItemLoader:
    """Reads batches of one split of `data` onto `device`. `unreadable` holds the indices that had to be replaced.

    Raises TooManyUnreadable at the first batch that shows that more than the share `data.most_unreadable` is unreadable.
    """

    def __init__(self, data: Data, split: Split, device: torch.device) -> None:
        self.split, self.workers, self.device = split, data.workers, device
        self.most_unreadable = data.most_unreadable
        self.unreadable: set[int] = set()
        self.used = torch.arange(len(split))  # item that is read for each, where one cannot be
        self.images: Tensor | None = None
        shape = (data.channels, *data.read_size)
        self.item_type = data.item_type
        self.size = len(split) * math.prod(shape) * self.item_type.itemsize
        cache = Cache(Path(data.cache_dir).expanduser(), split.fingerprint)
        place = choose_place(data.resident, self.size, device, cache.images.parent, cache.sums.is_file())
        self.place = distributed.broadcast_object(place)  # all ranks wait for rank 0 to decode, or none
        log.info(
            "%s split: %s, %s", split.name, f"{len(split):,} items, {self.size / 2**20:,.0f} MiB", PLACES[self.place]
        )
        if self.place != "stream":
            self.images = self._resident(cache, shape)
            if self.place == "device":
                self.images = self.images.to(device)

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of indices -> items (b, C, *R) and labels (b,) on the device."""
        for items, labels in self.inputs(indices):
            yield self.items(items), labels

    def inputs(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `batches`, but of items that are on the device the indices alone, for `items` to read."""
        if self.images is not None and self.images.device == self.device and self.place != "disk":
            for chosen in indices:
                yield send(chosen, self.device), send(self.split.labels[chosen], self.device)
        else:
            source = self._stream(indices) if self.images is None else self._gather(self.images, indices)
            yield from copied_aside(source, self.device)

    def items(self, inputs: Tensor) -> Tensor:
        """Items of `inputs`: (b, C, *R)."""
        return inputs if self.images is None or inputs.dtype == self.item_type else self.images[inputs]

    def numbered(self) -> ItemLoader:
        """The same items, with their numbers in the split for labels: those of the items that are read in their place."""
        other = copy.copy(self)
        other.split = copy.copy(self.split)
        other.split.labels = self.used
        return other

    def variance(self, most: int = 20_000) -> float:
        """Variance over all values in [-1, 1]; of `most` items in a fixed random order if there are more."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:most]
        count, total, squares = 0, 0.0, 0.0
        for images, _ in self.batches(order.split(1000)):
            x = x_of(images).double()
            count, total, squares = count + x.numel(), total + float(x.sum()), squares + float(x.square().sum())
        return squares / count - (total / count) ** 2

    def _gather(self, images: Tensor, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        if self.place == "disk":
            for items, chosen in read_ahead(images, indices, pinned=self.device.type == "cuda"):
                yield items, self.split.labels[chosen]
        else:
            for chosen in indices:
                yield (
                    images.index_select(0, chosen),
                    self.split.labels[chosen],
                )  # whole rows: faster than images[chosen]

    def _stream(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, used, _ in self._decode(indices):
            yield images, self.split.labels[used]

    def _decode(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Items, indices that were read, indices that were wanted. Reports what cannot be read."""
        wanted: list[Tensor] = []

        def batches() -> Iterator[list[int]]:
            for chosen in indices:
                wanted.append(chosen)
                yield chosen.tolist()

        pinned = self.device.type == "cuda"
        for images, used, reasons in read_batches(
            ReadableDataset(self.split), batches(), self.workers, pinned, collate
        ):
            if -1 in used:
                reason = next(iter(reasons.values()), "")
                raise UserError(
                    f"none of the {len(self)} items of the split '{self.split.name}' can be decoded: {reason}"
                )
            self._report(reasons)
            yield images, torch.tensor(used), wanted.pop(0)

    def _report(self, reasons: dict[int, str]) -> None:
        """Warn of items that cannot be read. Raises TooManyUnreadable."""
        for index, reason in reasons.items():
            if index not in self.unreadable:
                self.unreadable.add(index)
                title, count = self.split.title(index), len(self.unreadable)
                log.warning(
                    "cannot decode %s (%d so far): %s; the next readable item takes its place", title, count, reason
                )
        if len(self.unreadable) > self.most_unreadable * len(self):
            raise TooManyUnreadable(
                f"{len(self.unreadable)} of the {len(self)} items of the split '{self.split.name}' cannot be decoded so far, "
                f"such as {title}: {reason}; repair or remove them, or set data.most_unreadable to the share that may be lost",
                {self.split.name: len(self.unreadable)},
            )

    def _resident(self, cache: Cache, shape: tuple[int, ...]) -> Tensor:
        """All items (n, C, *R), decoded once, then read from the cache, or left there."""
        if isinstance(self.split, TensorSplit):
            return self.split.images
        count = len(self.split)
        known = self._known(cache) if distributed.is_main() else None
        if distributed.is_main() and known is None:
            self._decode_into(cache, count, shape)
        distributed.barrier()
        if not distributed.is_main():
            known = self._known(cache)
        self._report(known or {})
        used = torch.from_numpy(np.array(arrays.read(cache.used, np.dtype(np.int64), (count,))))
        array = arrays.read(cache.images, NUMPY_TYPES[self.item_type], (count, *shape))
        self.split.labels, self.used = self.split.labels[used], used
        return mapped(array) if self.place == "disk" else torch.from_numpy(np.array(array))

    def _known(self, cache: Cache) -> dict[int, str] | None:
        """Unreadable items of a cache, with reasons. None if it is not good, or if an item that was unreadable now is not."""
        if not cache.is_good():
            return None
        used = np.array(arrays.read(cache.used, np.dtype(np.int64), (len(self),)))
        replaced = np.flatnonzero(used != np.arange(len(self))).tolist()
        reasons = dict.fromkeys(replaced, "as before")
        for index in replaced[:MOST_TRIED]:
            try:
                self.split.read(index)
            except OSError as error:
                reasons[index] = str(error)
            else:
                return None
        return reasons

    def _decode_into(self, cache: Cache, count: int, shape: tuple[int, ...]) -> None:
        with cache.writing() as (images_file, used_file):
            images = arrays.create(images_file, NUMPY_TYPES[self.item_type], (count, *shape))
            used_indices = arrays.create(used_file, np.dtype(np.int64), (count,))
            with tqdm(total=count, desc=f"decoding {self.split.name}", unit="item", disable=None) as bar:
                for batch, used, wanted in self._decode(torch.arange(count).split(256)):
                    images[wanted.numpy()], used_indices[wanted.numpy()] = batch.numpy(), used.numpy()
                    bar.update(len(wanted))


def copied_aside(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same on the device; to CUDA by a stream of its own, while the step before is still running."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        if stream is None:
            yield batch[0].to(device), batch[1].to(device)
            continue
        with torch.cuda.stream(stream):
            items, labels = (send(part, device) for part in batch)
        for part in (items, labels):
            part.record_stream(torch.cuda.current_stream(device))
        torch.cuda.current_stream(device).wait_stream(stream)
        yield items, labels
