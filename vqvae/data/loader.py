"""Batches of a split on the device, from memory or decoded as they are needed."""

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
from vqvae.devices.copies import send
from vqvae.errors import UserError
from vqvae.images import normalize

log = logging.getLogger(__name__)
RESIDENT_BYTES = 4 * 2**30  # resident=auto: larger sets are streamed
DEVICE_SHARE = 0.25  # resident=auto: share of the free device memory that items may take


class ReadableDataset(Dataset):
    """Items by index -> item, index that was read. An unreadable item is replaced by the next readable one.

    The index is -1 if none can be read, because workers mangle exception messages.
    """

    def __init__(self, split: Split) -> None:
        self.split, self.none_readable = split, False

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        count = len(self.split)
        for used in range(index, index if self.none_readable else index + count):
            try:
                return self.split.read(used % count), used % count
            except OSError:
                continue
        self.none_readable = True  # skip the rest of the batch
        return torch.empty(0), -1


class ItemLoader:
    """Reads batches of one split of `data` onto `device`. `unreadable` holds the indices that had to be replaced."""

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

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of indices -> items uint8 (b, C, *R) and labels (b,) on the device."""
        for items, labels in self.inputs(indices):
            yield self.items(items), labels

    def inputs(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `batches`, but of items that are on the device the indices alone, for `items` to read."""
        if self.images is not None and self.images.device == self.device:
            for chosen in indices:
                yield send(chosen, self.device), send(self.split.labels[chosen], self.device)
        else:
            source = self._stream(indices) if self.images is None else self._gather(indices)
            yield from copied_aside(source, self.device)

    def items(self, inputs: Tensor) -> Tensor:
        """Items of `inputs`: uint8 (b, C, *R)."""
        return inputs if self.images is None or inputs.dtype == torch.uint8 else self.images[inputs]

    def variance(self, most: int = 20_000) -> float:
        """Variance over all values in [-1, 1]; of `most` items in a fixed random order if there are more."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:most]
        count, total, squares = 0, 0.0, 0.0
        for images, _ in self.batches(order.split(1000)):
            x = normalize(images).double()
            count, total, squares = count + x.numel(), total + float(x.sum()), squares + float(x.square().sum())
        return squares / count - (total / count) ** 2

    def _gather(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.images is not None
        for chosen in indices:
            yield self.images[chosen], self.split.labels[chosen]

    def _stream(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, used, wanted in self._decode(indices):
            self._report(wanted[used != wanted])
            yield images, self.split.labels[used]

    def _decode(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Items, indices that were read, indices that were wanted."""
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
            generator=torch.Generator(),  # else it draws from torch's global generator
        )
        for images, used in loader:
            if used[0] < 0:
                raise UserError(f"none of the {len(self)} items of the split '{self.split.name}' can be decoded")
            yield images, used, wanted.pop(0)

    def _report(self, replaced: Tensor) -> None:
        for index in replaced.tolist():
            if index not in self.unreadable:
                self.unreadable.add(index)
                log.warning(
                    "cannot decode %s (%d so far): the next readable item takes its place",
                    self.split.title(index),
                    len(self.unreadable),
                )

    def _resident(self, cache_dir: Path, shape: tuple[int, ...]) -> Tensor:
        """All items (n, C, *R), decoded once, then read from the cache."""
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


def ignore_signals(worker: int) -> None:
    """Ignore signals in a worker, because terminals and Slurm signal the whole process group.

    The parent may still need the worker for its last step. A worker ends when its parent says so or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
