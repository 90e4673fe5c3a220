"""From a split to batches on the device: resident or streamed, the same batches for the same seed."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvae import distributed
from vqvae.data import arrays
from vqvae.data.base import Data, Split, TensorSplit
from vqvae.data.cache import Cache
from vqvae.data.sampler import chunks_of_rank, rank_batches, training_indices
from vqvae.errors import UserError
from vqvae.images import normalise
from vqvae.seeding import mix

log = logging.getLogger(__name__)
Batch = tuple[Tensor, ...]

RESIDENT_BYTES = 4 * 2**30  # resident=auto: larger sets are streamed
DEVICE_SHARE = 0.25  # resident=auto: of the free device memory, for pictures


class ReadableDataset(Dataset):
    """Pictures by index, an unreadable one replaced by the next that can be read. -> image, index of what was read.

    The index is -1 where none can be read: an exception would lose its sentence on its way out of a worker.
    """

    def __init__(self, split: Split) -> None:
        self.split, self.hopeless = split, False

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        count = len(self.split)
        for used in range(index, index if self.hopeless else index + count):
            try:
                return self.split.read(used % count), used % count
            except OSError:
                continue
        self.hopeless = True  # so that the rest of the batch is not tried in vain
        return torch.empty(0), -1


class PictureLoader:
    """One split of `data`, ready to be batched on `device`. `unreadable` holds the indices that had to be replaced."""

    def __init__(self, data: Data, split: Split, device: torch.device) -> None:
        self.split, self.workers, self.device = split, data.workers, device
        self.unreadable: set[int] = set()
        self.images: Tensor | None = None
        shape = (data.channels, *data.read_size)
        size = len(split) * math.prod(shape)
        streamed = data.resident == "stream" or (data.resident == "auto" and size > RESIDENT_BYTES)
        if not streamed:
            self.images = self._resident(Path(data.cache_dir).expanduser(), shape)
            room = torch.cuda.mem_get_info(device)[0] * DEVICE_SHARE if device.type == "cuda" else 0
            if data.resident == "device" or (data.resident == "auto" and size < room):
                self.images = self.images.to(device)

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        """Batches of indices -> uint8 items (b, C, *R) and labels (b,) on the device."""
        source = self._stream(indices) if self.images is None else self._gather(indices)
        for images, labels in source:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def variance(self, most: int = 20_000) -> float:
        """Variance over all values in [-1, 1]; of the first pictures in a fixed random order where there are more."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:most]
        count, total, squares = 0, 0.0, 0.0
        for images, _ in self.batches(order.split(1000)):
            x = normalise(images).double()
            count, total, squares = count + x.numel(), total + float(x.sum()), squares + float(x.square().sum())
        return squares / count - (total / count) ** 2

    def _gather(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        assert self.images is not None
        for chosen in indices:
            yield self.images[chosen.to(self.images.device)], self.split.labels[chosen]

    def _stream(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        for images, used, wanted in self._decode(indices):
            self._report(wanted[used != wanted])
            yield images, self.split.labels[used]

    def _decode(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """-> pictures, indices that were read, indices that were wanted."""
        wanted: list[Tensor] = []

        def batches() -> Iterator[list[int]]:
            for chosen in indices:
                wanted.append(chosen)
                yield chosen.tolist()

        loader: Iterable[list[Tensor]] = DataLoader(
            ReadableDataset(self.split),
            batch_sampler=batches(),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # else it draws from the global one, and random codes would start elsewhere
        )
        for images, used in loader:
            if used[0] < 0:
                raise UserError(f"none of the {len(self)} pictures of the split '{self.split.name}' can be decoded")
            yield images, used, wanted.pop(0)

    def _report(self, replaced: Tensor) -> None:
        for index in replaced.tolist():
            if index not in self.unreadable:
                self.unreadable.add(index)
                log.warning(
                    "cannot decode %s (%d so far): the next readable picture takes its place",
                    self.split.title(index),
                    len(self.unreadable),
                )

    def _resident(self, cache_dir: Path, shape: tuple[int, ...]) -> Tensor:
        """All items (n, C, *R); decoded once, then read from the cache."""
        if isinstance(self.split, TensorSplit):
            return self.split.images
        count = len(self.split)
        cache = Cache(cache_dir, self.split.fingerprint)
        if distributed.is_main() and not cache.is_good():
            self._decode_into(cache, count, shape)
        distributed.barrier()
        used = torch.from_numpy(np.array(arrays.read(cache.used, np.dtype(np.int64), (count,))))
        images = torch.from_numpy(np.array(arrays.read(cache.images, np.dtype(np.uint8), (count, *shape))))
        self._report(torch.nonzero(used != torch.arange(count))[:, 0])
        self.split.labels = self.split.labels[used]
        return images

    def _decode_into(self, cache: Cache, count: int, shape: tuple[int, ...]) -> None:
        with cache.writing() as (images_file, used_file):
            images = arrays.create(images_file, np.dtype(np.uint8), (count, *shape))
            used_indices = arrays.create(used_file, np.dtype(np.int64), (count,))
            with tqdm(total=count, desc=f"decoding {self.split.name}", unit="picture", disable=None) as bar:
                for batch, used, wanted in self._decode(torch.arange(count).split(256)):
                    images[wanted.numpy()], used_indices[wanted.numpy()] = batch.numpy(), used.numpy()
                    bar.update(len(wanted))


class PictureFeed:
    """What the trainer reads in stage 1: batches of (x float (B, C, *S) in [-1, 1], labels (B,)).

    Args:
        data, train, val: what is read.
        batch_size: of all ranks together.
        seed: of the order, crops and flips.
    """

    def __init__(self, data: Data, train: PictureLoader, val: PictureLoader, batch_size: int, seed: int) -> None:
        self.data, self.train, self.val = data, train, val
        self.batch_size, self.seed = batch_size, seed
        self.train_size = len(train)

    def training_batches(self, start_step: int, parts: int) -> Iterator[Batch]:
        """Endless batches of this rank from `start_step` on, cropped and flipped by the step's seed, in order of `parts`
        micro-batches."""
        indices = rank_batches(self.seed, start_step, self.batch_size, self.train_size, parts)
        for step, (images, labels) in enumerate(self.train.batches(indices), start_step):
            generator = torch.Generator().manual_seed(mix(self.seed + 1, step))
            yield normalise(self._augment(images, generator, parts)), labels

    def training_indices(self, step: int) -> Tensor:
        """The items (batch_size,) of a step's global batch."""
        return training_indices(self.seed, step, self.batch_size, self.train_size)

    def evaluation_batches(self, chunk: int) -> Iterator[Batch]:
        """The validation items, once, in order, this rank's share."""
        for images, labels in self.val.batches(chunks_of_rank(len(self.val), chunk)):
            yield normalise(centre_crop(images, self.data.size)), labels

    def preview_batch(self, count: int) -> Batch:
        """Validation items spread over the set: the same in every preview, on every rank."""
        count = min(count, len(self.val))
        images, labels = next(iter(self.val.batches([torch.arange(count) * len(self.val) // count])))
        return normalise(centre_crop(images, self.data.size)), labels

    def _augment(self, images: Tensor, generator: torch.Generator, parts: int) -> Tensor:
        """Draws are made for the global batch, so that they do not depend on the number of ranks."""
        own = distributed.rows_of_rank(self.batch_size, parts)
        if self.data.read_size != self.data.size:
            rooms = [read - kept + 1 for read, kept in zip(self.data.read_size, self.data.size)]
            draws = [torch.randint(room, (self.batch_size,), generator=generator)[own] for room in rooms]
            images = crop(images, torch.stack(draws, 1).to(images.device), self.data.size)
        if self.data.flip:
            flipped = torch.rand(self.batch_size, generator=generator)[own].to(images.device) < 0.5
            images = torch.where(flipped.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)
        return images


def ignore_signals(worker: int) -> None:
    """In a worker: a signal to a whole group of processes, as terminals and Slurm send it, is for its parent to answer.

    The run may be about to write its last checkpoint. A worker ends when its parent says so, or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def crop(images: Tensor, corners: Tensor, size: tuple[int, ...]) -> Tensor:
    """(b, C, *R), the first position of each item's crop (b, n) -> (b, C, *size)."""
    for dim, (length, start) in enumerate(zip(size, corners.T), 2):
        span = start[:, None] + torch.arange(length, device=images.device)  # (b, length)
        index = span.view(len(span), *[-1 if axis == dim else 1 for axis in range(1, images.ndim)])
        images = images.gather(dim, index.expand(*images.shape[:dim], length, *images.shape[dim + 1 :]))
    return images  # (b, C, *size)


def centre_crop(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """(b, C, *R) -> (b, C, *size)."""
    for dim, length in enumerate(size, 2):
        images = images.narrow(dim, (images.shape[dim] - length) // 2, length)
    return images
