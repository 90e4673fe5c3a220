"""Training on images of several shapes: each in the bucket of the nearest proportions, and batches of one bucket each."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data.base import fingerprint
from vqvae.data.file_facts import FileFacts
from vqvae.data.folder import Folder, FolderSplit
from vqvae.data.formats import open_image
from vqvae.data.items import ItemBatch, ItemInputs, ItemTrainingSet
from vqvae.data.loader import ItemLoader
from vqvae.data.resident import choose_place
from vqvae.seeding import mix

DRAWN = 2**14  # steps whose buckets are drawn together
UPRIGHT = 0x0112  # the tag of EXIF that tells how an image is turned
SIDEWAYS = (5, 6, 7, 8)  # its values for images whose height and width change places


class BucketedTrainingSet:
    """Training batches of several shapes, as `ItemTrainingSet` makes those of one.

    The bucket of a step is drawn from (seed, step), each as often as it has images, and the images of the step from the seed
    and the number of earlier steps of that bucket. So there is no state to save. Empty buckets are left out.

    Args:
        data: the data set, with `buckets`.
        split: its training split.
        batch_size: of all ranks together.
        seed: of the order, crops and flips.
        device: where batches go.
    """

    def __init__(self, data: Folder, split: FolderSplit, batch_size: int, seed: int, device: torch.device) -> None:
        self.split, self.seed, self.batch_size = split, seed, batch_size
        self.members, self.sets = [], list[ItemTrainingSet]()
        buckets = data.buckets or []
        assigned = assign(data, split)
        for number, size in enumerate(buckets):
            members = torch.nonzero(assigned == number)[:, 0]
            if len(members):
                own = data_of(data, size, len(members), sum(bool((assigned == n).any()) for n in range(len(buckets))))
                part = replace(split.subset(members), read_file=own.read_file)
                part.fingerprint = fingerprint([split.fingerprint, "bucket", own.read_size, len(members)])
                self.members.append(members)
                self.sets.append(ItemTrainingSet(own, ItemLoader(own, part, device), batch_size, mix(seed + 2, number)))
        self.counts = tuple(map(len, self.members))

    def __len__(self) -> int:
        return len(self.split)

    def batches_from(self, start_step: int, parts: int = 1) -> Iterator[ItemBatch]:
        """Endless batches of this rank from `start_step` on, ordered by `parts` micro-batches."""
        return map(self.prepare, self.inputs_from(start_step, parts))

    def inputs_from(self, start_step: int, parts: int = 1) -> Iterator[ItemInputs]:
        """What those batches are made of, on the device."""
        streams: dict[int, Iterator[ItemInputs]] = {}
        for step in itertools.count(start_step):
            bucket, own_step = place_of(self.seed, step, self.counts)
            if bucket not in streams:
                streams[bucket] = self.sets[bucket].inputs_from(own_step, parts)
            inputs = next(streams[bucket])
            yield inputs._replace(
                items=self.sets[bucket].loader.items(inputs.items)
            )  # indices would not tell the bucket

    def prepare(self, inputs: ItemInputs) -> ItemBatch:
        """Crop and flip items; their dims tell the bucket."""
        size = tuple(inputs.items.shape[2:])
        return next(one for one in self.sets if one.data.read_size == size).prepare(inputs)

    def indices(self, step: int) -> Tensor:
        """Indices (batch_size,) of the items in a step's global batch."""
        bucket, own_step = place_of(self.seed, step, self.counts)
        return self.members[bucket][self.sets[bucket].indices(own_step)]

    def notes(self) -> list[str]:
        """How many images are in each bucket, in one sentence."""
        found = ", ".join(f"{len(one):,} of {' x '.join(map(str, one.data.size))}" for one in self.sets)
        return [f"training images by bucket: {found}"]


def data_of(data: Folder, size: tuple[int, int], count: int, buckets: int) -> Folder:
    """The data set with images of another size, read larger by the same factor. What was found in its files is kept."""
    own = copy.copy(data)
    own.image_size, own.buckets = size, None
    own.resize = tuple(round(side * read / kept) for side, read, kept in zip(size, data.read_size, data.size))  # type: ignore
    own.workers = max(1, data.workers // buckets) if data.workers else 0
    own.most_unreadable = 1.0  # the loader of the whole split counts them
    if data.resident in ("auto", "device"):  # items that lie on the device would not tell their bucket
        length = count * data.channels * math.prod(own.read_size)
        own.resident = choose_place("auto", length, torch.device("cpu"), Path(data.cache_dir), cached=False)  # type: ignore
    return own


def assign(data: Folder, split: FolderSplit) -> Tensor:
    """The number of each image's bucket (n,): the one whose proportions are nearest. Call it on all ranks.

    Headers of images are read for that, once. One that cannot be opened goes to the first bucket, where decoding will say why.
    """
    if distributed.is_main():  # the other ranks read it from the cache
        proportions(data, split)
    distributed.barrier()
    own = torch.tensor(proportions(data, split))[:, None]  # (n, 1)
    of_buckets = torch.tensor([math.log(height / width) for height, width in data.buckets or []])
    return (own - of_buckets).abs().argmin(1)


def proportions(data: Folder, split: FolderSplit) -> list[float]:
    """The logarithm of height over width of each image."""
    facts = FileFacts(Path(data.cache_dir).expanduser(), ["size of images", data.root])
    try:
        found = [facts.get(split.root / file, size_of) for file in split.files]
    finally:
        facts.save()
    return [math.log(height / width) if height and width else 0.0 for height, width in found]


def size_of(file: Path) -> list[int]:
    """Height and width of an image that is turned upright; zeros if it cannot be opened."""
    try:
        with open_image(file) as image:
            turned = image.getexif().get(UPRIGHT) in SIDEWAYS
            return [image.width, image.height] if turned else [image.height, image.width]
    except Exception:  # Pillow's parsers raise many kinds
        return [0, 0]


def place_of(seed: int, step: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """The bucket of a step, and how many steps before it had the same. counts: images in each bucket."""
    block, place = divmod(step, DRAWN)
    buckets, before = drawn(seed, block, counts)
    bucket = int(buckets[place])
    return bucket, int(before[bucket]) + int((buckets[:place] == bucket).sum())


@lru_cache(maxsize=4)
def drawn(seed: int, block: int, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Buckets (DRAWN,) of the steps of a block, and how many steps of each there are before it (buckets,)."""
    weights, before = torch.tensor(counts, dtype=torch.float64), torch.zeros(len(counts), dtype=torch.int64)
    for number in range(block + 1):
        generator = torch.Generator().manual_seed(mix(seed + 3, number))
        own = torch.multinomial(weights, DRAWN, replacement=True, generator=generator)
        if number < block:
            before += torch.bincount(own, minlength=len(counts))
    return own, before
