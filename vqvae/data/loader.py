"""From a split to batches on the device: resident or streamed, the same batches for the same seed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvae import distributed
from vqvae.data.base import Data, Split, TensorSplit
from vqvae.data.sampler import chunks_of_rank, rank_batches
from vqvae.images import normalise
from vqvae.seeding import mix

log = logging.getLogger(__name__)
Batch = tuple[Tensor, ...]

RESIDENT_BYTES = 4 * 2**30  # resident=auto: larger sets are streamed
DEVICE_SHARE = 0.25  # resident=auto: of the free device memory, for pictures


class ReadableDataset(Dataset):
    """Pictures by index, an unreadable one replaced by the next that can be read. -> image, index of what was read."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        count = len(self.split)
        for used in range(index, index + count):
            try:
                return self.split.read(used % count), used % count
            except OSError:
                continue
        raise ValueError(f"none of the {count} pictures of the split '{self.split.name}' can be decoded")


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
            generator=torch.Generator(),  # else it draws from the global one, and random codes would start elsewhere
        )
        for images, used in loader:
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
        images_file, used_file = (cache_dir / f"{self.split.fingerprint}-{part}.npy" for part in ("images", "used"))
        if distributed.is_main() and not (images_file.is_file() and used_file.is_file()):
            self._write_cache(images_file, used_file, shape)
        distributed.barrier()
        used = torch.from_numpy(np.load(used_file, allow_pickle=False))
        images = torch.from_numpy(np.load(images_file, allow_pickle=False))
        self._report(torch.nonzero(used != torch.arange(len(used)))[:, 0])
        self.split.labels = self.split.labels[used]
        return images

    def _write_cache(self, images_file: Path, used_file: Path, shape: tuple[int, ...]) -> None:
        images_file.parent.mkdir(parents=True, exist_ok=True)
        count = len(self.split)
        temporary = images_file.with_suffix(f".{os.getpid()}-tmp")  # two runs may decode the same set at once
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, *shape))
        used_indices = np.empty(count, np.int64)
        with tqdm(total=count, desc=f"decoding {self.split.name}", unit="picture", disable=None) as bar:
            for batch, used, wanted in self._decode(torch.arange(count).split(256)):
                images[wanted.numpy()], used_indices[wanted.numpy()] = batch.numpy(), used.numpy()
                bar.update(len(wanted))
        images.flush()
        used_temporary = used_file.with_suffix(temporary.suffix)
        with used_temporary.open("wb") as file:
            np.save(file, used_indices, allow_pickle=False)
        used_temporary.replace(used_file)
        temporary.replace(images_file)  # last: the cache counts once both files are whole


class PictureFeed:
    """What the trainer reads in stage 1: batches of (x float (B, C, *S) in [-1, 1], labels (B,))."""

    def __init__(self, data: Data, train: PictureLoader, val: PictureLoader, batch_size: int, seed: int) -> None:
        self.data, self.train, self.val = data, train, val
        self.batch_size, self.seed = batch_size, seed
        self.train_size = len(train)

    def training_batches(self, start_step: int) -> Iterator[Batch]:
        """Endless batches of this rank from `start_step` on, cropped and flipped by the step's seed."""
        indices = rank_batches(self.seed, start_step, self.batch_size, self.train_size)
        for step, (images, labels) in enumerate(self.train.batches(indices), start_step):
            generator = torch.Generator().manual_seed(mix(self.seed + 1, step))
            yield normalise(self._augment(images, generator)), labels

    def evaluation_batches(self, chunk: int) -> Iterator[Batch]:
        """The validation items, once, in order, this rank's share."""
        for images, labels in self.val.batches(chunks_of_rank(len(self.val), chunk)):
            yield normalise(centre_crop(images, self.data.size)), labels

    def preview_batch(self, count: int) -> Batch:
        """Validation items spread over the set: the same in every preview, on every rank."""
        count = min(count, len(self.val))
        images, labels = next(iter(self.val.batches([torch.arange(count) * len(self.val) // count])))
        return normalise(centre_crop(images, self.data.size)), labels

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draws are made for the global batch and sliced, so that they do not depend on the number of ranks."""
        own = distributed.slice_of_rank(self.batch_size)
        if self.data.read_size != self.data.size:
            rooms = [read - kept + 1 for read, kept in zip(self.data.read_size, self.data.size)]
            draws = [torch.randint(room, (self.batch_size,), generator=generator)[own] for room in rooms]
            images = crop(images, torch.stack(draws, 1).to(images.device), self.data.size)
        if self.data.flip:
            flipped = torch.rand(self.batch_size, generator=generator)[own].to(images.device) < 0.5
            images = torch.where(flipped.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)
        return images


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
