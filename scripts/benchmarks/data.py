"""Items/s of every place that training items can lie in, beside torchvision's ImageFolder with a DataLoader; decoders."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from scripts import make_shards
from scripts.benchmarks.decoders import decoders
from vqvae import distributed
from vqvae.config.build import build
from vqvae.config.compose import compose, resolve
from vqvae.data.items import ItemTrainingSet
from vqvae.data.loader import ItemLoader
from vqvae.run.tables import table

BATCH, SECONDS, WARM_UP = 64, 4.0, 8  # WARM_UP batches start workers and fill what is read ahead
SIDES = (32, 128)
IMAGES, SIDE = 2000, 256  # smooth noise, where no data.root is named


def data(overrides: list[str], folder: str) -> None:
    """Print a table; data.root=<a folder of images> takes those."""
    named = [word.partition("=")[2] for word in overrides if word.startswith("data.root=")]
    root = Path(named[-1]).resolve() if named else draw_images(Path(folder) / "images")
    print(f"\nitems/s of batches of {BATCH}, images of {root if named else f'{SIDE} x {SIDE} noise'}, by their side")
    make_shards.main([str(root), f"{folder}/shards"])
    own, streamed = ["data=folder", f"data.root={root}"], "data.resident=stream"
    ways = {place: [*own, f"data.resident={place}"] for place in places()}
    ways |= {f"stream, {workers} workers": [*own, streamed, f"data.workers={workers}"] for workers in (0, 1, 2)}
    shards = ["data=webdataset", f"data.urls={folder}/shards/train-*.tar"]
    if list(Path(folder, "shards").glob("val-*.tar")):
        shards.append(f"data.val_urls={folder}/shards/val-*.tar")
    ways["shards, 2 workers"] = [*shards, streamed, "data.workers=2"]
    rows = [[name, *(rate(ours(way, side, folder)) for side in SIDES)] for name, way in ways.items()]
    tree = class_folders(root, Path(folder) / "classes")
    for workers in (0, 2):
        cells = [rate(image_folder(tree, side, workers)) for side in SIDES]
        rows.append([f"torchvision, {workers} workers", *cells])
    print(table(["place", *(f"{side} x {side}" for side in SIDES)], rows))
    decoders(root)


def places() -> list[str]:
    return ["device", "memory", "disk"] if torch.cuda.is_available() else ["memory", "disk"]


def ours(overrides: list[str], side: int, folder: str) -> Iterator[object]:
    """Endless training batches of this program."""
    more = [f"data.image_size={side}", f"data.cache_dir={folder}/cache"]
    node = resolve(compose("train", [*overrides, *more])).data
    items = build(node, "data")
    loader = ItemLoader(items, items.split("train"), distributed.device())
    return ItemTrainingSet(items, loader, BATCH, seed=0).batches_from(0)


def image_folder(root: Path, side: int, workers: int) -> Iterator[object]:
    """Endless batches as torchvision's examples make them: the same pixels, shuffled, scaled to -1 .. 1."""
    steps = [
        transforms.Resize(side),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
        transforms.Normalize(0.5, 0.5),
    ]
    images = ImageFolder(str(root), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def rate(batches: Iterator[object]) -> float:
    """Items/s of a stream of batches, after some that are not counted."""
    for _ in range(WARM_UP):
        next(batches)
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < SECONDS:
        next(batches)
        count += BATCH
    return count / passed


def class_folders(root: Path, at: Path) -> Path:
    """A folder of class folders: the training images, or a link to all of them as one class."""
    train = root / "train" if (root / "train").is_dir() else root
    if any(part.is_dir() for part in train.iterdir()):
        return train
    at.mkdir()
    os.symlink(train, at / "all")
    return at


def draw_images(folder: Path) -> Path:
    """Images of smooth noise as JPEG files, in two classes."""
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        file = folder / str(index % 2) / f"{index:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, quality=90)
    return folder
