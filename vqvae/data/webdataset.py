"""WebDataset shards on local or mounted disks, read by random access, for data larger than memory."""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os.path import expanduser
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from braceexpand import braceexpand
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.data import held_out
from vqvae.data.base import Split, fingerprint, no_labels
from vqvae.data.folder import CONTENT_PROBES, DECODING
from vqvae.data.framing import as_setting
from vqvae.data.images import read_image
from vqvae.data.resized import ResizedImages
from vqvae.data.shards import identity, index_file, read_bytes, read_index
from vqvae.errors import UserError
from vqvae.ranges import checked
from vqvae.storage.files import read_own_text
from vqvae.surroundings.terminal import printable

MOST_SHARDS = 100_000
REMOTE = re.compile(r"^(pipe(?=:)|[a-z][a-z0-9+.-]+(?=://))", re.IGNORECASE)
PLACE = [("shard", "i4"), ("row", "i4"), ("offset", "i8"), ("size", "i8")]  # row in the shard's index


@dataclass
class ShardSplit(Split):
    """Images by their places in shards, (n,) of PLACE, decoded by `read_file`. Names stay in the index files."""

    shards: list[Path]
    indices: list[Path]
    places: np.ndarray
    read_file: Callable[[BinaryIO], Tensor]

    def content(self, index: int) -> bytes:
        """Bytes of an image file. Raises OSError if it cannot be read."""
        place = self.places[index]
        return read_bytes(self.shards[place["shard"]], int(place["offset"]), int(place["size"]))

    def read(self, index: int) -> Tensor:
        return self.read_file(io.BytesIO(self.content(index)))

    def title(self, index: int) -> str:
        place = self.places[index]
        name = read_index(self.indices[place["shard"]])["name"][place["row"]]
        return printable(f"{self.shards[place['shard']]}: {name.decode('utf-8', 'surrogateescape')}")

    def subset(self, indices: Tensor) -> Split:
        return replace(self, labels=self.labels[indices], places=self.places[indices.numpy()])


@checked
@dataclass(kw_only=True)
class WebDataset(ResizedImages):
    """Shards `urls` for training, and `val_urls` or else a share that is held out for validation.

    Both are names with braces (train-{000000..000009}.tar) or wildcards (train-*.tar), or a list of them;
    scripts/make_shards.py writes shards. A sample is an image <key>.jpg, .png, ... with its class in <key>.cls (a number, or
    a name listed in classes.txt beside the first shard), or in `cls` or `label` of <key>.json; else there are no labels.
    Images are resized and cropped as in `Folder`.

    Shards are read by random access, not as a stream. So the images of a step depend on the seed and the step alone, as in
    every data set: a resumed run continues with the same batches, and shards give the same batches as a folder with the
    same images in the same order. Memory: 32 bytes per image. Each shard is indexed once, in `cache_dir`.
    Raises UserError for shards that are missing, remote, truncated, or without images.
    """

    urls: str | list[str]
    val_urls: str | list[str] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.added = 0  # shards that are left out, because a run was started without them

    @cached_property
    def shards(self) -> dict[str, list[Path]]:
        """Shards of `urls` and `val_urls`, indexed."""
        found = {"urls": self._named_shards("urls", self.urls)}
        found["val_urls"] = [] if self.val_urls is None else self._named_shards("val_urls", self.val_urls)
        if distributed.is_main():  # the other ranks read the indices from the cache
            for shard in tqdm(itertools.chain(*found.values()), desc="indexing", unit="shard", disable=None, delay=1):
                index_file(shard, Path(self.cache_dir).expanduser())
        distributed.barrier()
        return found

    @cached_property
    def train(self) -> ShardSplit:
        """All images of `urls`."""
        return self._whole("train", self.shards["urls"], self._listed_names)

    @cached_property
    def val(self) -> ShardSplit | None:
        """All images of `val_urls`."""
        shards = self.shards["val_urls"]
        return self._whole("val", shards, self._found_names) if shards else None

    @cached_property
    def _listed_names(self) -> list[str]:
        return (read_own_text(self.shards["urls"][0].with_name("classes.txt")) or "").splitlines()

    @cached_property
    def _found_names(self) -> list[str]:
        if self._listed_names and int(self.train.labels[0]) >= 0:
            return self._listed_names
        return [str(label) for label in range(int(self.train.labels.max()) + 1)]

    def found_class_names(self) -> list[str]:
        return self._found_names

    def facts(self) -> dict[str, Any]:
        names = {key: [shard.name for shard in files] for key, files in self.shards.items()}
        unique = all(len(set(files)) == len(files) for files in names.values())
        return {**super().facts(), **({"shards": names} if unique else {})}

    def recall(self, facts: dict[str, Any]) -> None:
        shards = facts.get("shards", {})
        if not isinstance(shards, dict) or not all(isinstance(names, list) for names in shards.values()):
            raise UserError("shards are not lists of names")
        super().recall(facts)

    def _named_shards(self, key: str, urls: str | list[str]) -> list[Path]:
        """Shards that `urls` names; of a run that goes on, those that it was started on, and others are left out."""
        found = find_shards(f"data.{key}", urls)
        names = self.recalled.get("shards", {}).get(key)
        if names is None:
            return found
        by_name = {shard.name: shard for shard in found}
        if missing := [str(name) for name in names if name not in by_name]:
            raise UserError(
                f"data.{key}={urls}: {len(missing)} of the {len(names)} shards that this run was started on are missing, "
                f"such as {printable(missing[0])[:80]}"
            )
        self.added += len(found) - len(names)
        return [by_name[name] for name in names]

    def notes(self) -> list[str]:
        added = f"left out: {self.added} shards that are new since this run was started"
        return [*super().notes(), *([added] if self.added else [])]

    def split(self, name: str) -> Split:
        train = name == "train"
        split = self.train if train else self.val
        if self.val is None:
            chosen = np.flatnonzero(self._held_out() != train)
            split = self.train.subset(torch.from_numpy(chosen))  # type: ignore[assignment]
        assert split is not None
        split = replace(split, name="train" if train else "val", read_file=self.read_file)
        return replace(split, fingerprint=self._identity(split, train))

    def probes(self) -> Iterable[Path | BinaryIO]:
        for index in probed(self.train):
            yield io.BytesIO(content_of(self.train, index))

    def _held_out(self) -> np.ndarray:
        """bool (n,), True for the images of validation. As in Folder, so that the same images are held out."""
        if self.held_out == "shuffle":
            return held_out.by_shuffle(len(self.train), self.val_share, self.split_seed)
        names = (identity(name) for file in self.train.indices for name in read_index(file)["name"])
        return held_out.by_hash(names, self.val_share, self.split_seed)

    def _whole(self, name: str, shards: list[Path], class_names: list[str]) -> ShardSplit:
        """Split of all images of some shards. Raises UserError if there are none, or for invalid labels."""
        cache = Path(self.cache_dir).expanduser()
        labels, places, indices = [], [], [index_file(shard, cache) for shard in shards]
        for number, shard in enumerate(shards):
            table = read_index(indices[number])
            place = np.empty(len(table), PLACE)
            place["shard"], place["row"] = number, np.arange(len(table))
            place["offset"], place["size"] = table["offset"], table["size"]
            places.append(place)
            kinds, inverse = np.unique(table["label"], return_inverse=True)
            numbers = [class_number(shard, kind, class_names) for kind in kinds.tolist()]
            labels.append(torch.tensor(numbers, dtype=torch.int64)[torch.from_numpy(inverse)])
        found = torch.cat(labels)
        if not len(found):
            raise UserError(f"no image in {shards[0]}{' and the other shards' if shards[1:] else ''}")
        without = int((found < 0).sum())
        if 0 < without < len(found):
            raise UserError(
                f"{without} of the {len(found)} images in {shards[0].parent} have no class (.cls): all need one, or none"
            )
        if name == "val" and not class_names:
            found = no_labels(len(found))
        elif name == "val" and without:
            raise UserError("the images of val_urls have no classes (.cls), but those of urls do")
        read_file = partial(read_image, size=self.read_size, channels=self.channels)
        return ShardSplit(name, found, "", shards, indices, np.concatenate(places), read_file)

    def _identity(self, split: ShardSplit, train: bool) -> str:
        """Fingerprint: names, sizes and labels of all images, the content of some, and how they are read."""
        digest = hashlib.sha256(split.labels.numpy().tobytes())
        for number, file in enumerate(split.indices):
            table = read_index(file)[split.places["row"][split.places["shard"] == number]]
            digest.update(table["name"].tobytes())
            digest.update(table["size"].tobytes())
        contents = [hashlib.sha256(content_of(split, index)).hexdigest() for index in probed(split)]
        parts = ["webdataset", DECODING, train, as_setting(self.read_size), self.channels, digest.hexdigest(), contents]
        return fingerprint([*parts, *self.reading])


def class_number(shard: Path, text: bytes, class_names: list[str]) -> int:
    """Class number of a written label, -1 for none."""
    if not text:
        return -1
    name, count = text.decode("utf-8", "replace"), len(class_names)
    if text.isdigit() and len(text) < 7 and (not count or int(text) < count):
        return int(text)  # before names: a class may be called 7 and not be the seventh
    if name not in class_names:
        classes = f"one of the {count} classes" if count else "a class number, and there is no classes.txt"
        raise UserError(f"{shard}: the class {printable(name)[:80]} is not {classes}")
    return class_names.index(name)


def probed(split: ShardSplit) -> range:
    """About CONTENT_PROBES indices, evenly spread."""
    return range(0, len(split), max(1, len(split) // CONTENT_PROBES))


def content_of(split: ShardSplit, index: int) -> bytes:
    """Bytes of an image file; empty if it cannot be read, because then no image comes from it."""
    try:
        return split.content(index)
    except OSError:
        return b""


def find_shards(key: str, urls: str | list[str]) -> list[Path]:
    """Files that `urls` names, in its order; those of a wildcard sorted. Raises UserError if one is missing."""
    found: list[Path] = []
    for url in [urls] if isinstance(urls, str) else urls:
        if match := REMOTE.match(url):
            raise UserError(
                f"{key}={url} is remote, and shards need random access, which {match[1]}: does not offer: "
                "copy the shards here, or mount their disk, and name the files"
            )
        try:
            names = list(itertools.islice(braceexpand(url), MOST_SHARDS + 1))
        except ValueError as error:
            raise UserError(f"{key}={url}: {error}") from error
        if len(names) > MOST_SHARDS:
            raise UserError(f"{key}={url} names more than {MOST_SHARDS} shards")
        for name in names:
            path = expanduser(name)
            files = sorted(glob.glob(path)) if glob.has_magic(path) and not Path(path).is_file() else [path]
            found += [Path(file) for file in files]
            if not files or not all(Path(file).is_file() for file in files):
                raise UserError(f"{key}={url}: there is no shard {name}; python scripts/make_shards.py makes some")
    if not found:
        raise UserError(f"{key} names no shards, got {urls}")
    if len(set(found)) != len(found):
        raise UserError(f"{key}={urls} names a shard twice")
    return found
