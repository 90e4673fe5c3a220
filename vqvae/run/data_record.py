"""data.json of a run folder: what the run has to know of its data where that is not there, or has changed.

Its keys, which every start writes that finds none:
    format                             1
    data, channels, size, sample_rate  class of the data set, C, dims *S, samples per second (of sounds)
    facts                              what the data set found in its files: the names of the classes in their order, ...
    splits                             of train and val: items, fingerprint; labels (int32) and, of files, names, sizes in
                                       bytes, times of change in ns, and the first 8 bytes of SHA-256 (0: not read)
The columns of a split are compressed by zlib, in base64.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.config.types import fits
from vqvae.data.base import Data, Items, Split
from vqvae.errors import UserError
from vqvae.storage.files import write_bytes

NAME, FORMAT = "data.json", 1
READ_BYTES = 4 * 2**30  # of larger sets, only so much is read for SHA-256, of items evenly spread
MOST_BYTES, MOST_RATIO = 2**30, 200  # of data.json, and of names unpacked to names packed
KINDS: dict[str, Any] = {
    "data": str,
    "channels": int,
    "size": list[int],
    "sample_rate": int | None,
    "facts": dict,
    "splits": dict,
}
COLUMNS = {"sizes": np.int64, "times": np.int64, "contents": np.uint64}


@dataclass
class SplitRecord:
    """A split as it was: number of items, fingerprint, labels (n,), and the files of the items with their contents (n,)."""

    count: int
    fingerprint: str
    labels: Tensor
    items: Items | None
    contents: np.ndarray | None
    moved: bool = False  # the times are newer than those of the file

    @classmethod
    def of(cls, split: Split) -> SplitRecord:
        items = split.items()
        contents = None if items is None else read_contents(split, items)
        return cls(len(split), split.fingerprint, split.labels.clone(), items, contents)


class DataRecord:
    """What data.json holds: facts, and splits by name."""

    def __init__(self, facts: dict[str, Any], splits: dict[str, SplitRecord]) -> None:
        self.facts, self.splits = facts, splits

    @property
    def moved(self) -> bool:
        return any(split.moved for split in self.splits.values())

    @property
    def class_names(self) -> list[str]:
        return self.facts["class_names"]

    def write(self, folder: Path, data: Data) -> None:
        """Write the file."""
        about = {
            "format": FORMAT,
            "data": type(data).__name__,
            "channels": data.channels,
            "size": list(data.size),
            "sample_rate": getattr(data, "sample_rate", None),
            "facts": self.facts,
            "splits": {name: packed_split(split) for name, split in self.splits.items()},
        }
        write_bytes(folder / NAME, (json.dumps(about, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> DataRecord | None:
        """The record of a run folder, which may be a stranger's; None if there is none. Raises UserError if it is damaged."""
        file = folder / NAME
        if not file.is_file():
            return None
        try:
            with file.open("rb") as opened:
                text = opened.read(MOST_BYTES + 1)
            if len(text) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes")
            about = json.loads(text)
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            for key, kind in KINDS.items():
                if key not in about or not fits(about[key], kind):
                    raise ValueError(f"{key} is not what it should be")
            names = about["facts"].get("class_names")
            if not fits(names, list[str]) or len(set(names)) != len(names):
                raise ValueError("class_names is not a list of names")
            splits = {str(name): unpacked_split(split, len(names)) for name, split in about["splits"].items()}
        except (ValueError, TypeError, LookupError, RecursionError, zlib.error) as error:
            raise UserError(
                f"{file} is damaged: {error}; delete it, and the next start of train.py makes it again"
            ) from error
        return cls(about["facts"], splits)


def packed_split(split: SplitRecord) -> dict[str, Any]:
    about: dict[str, Any] = {"items": split.count, "fingerprint": split.fingerprint}
    about["labels"] = pack(split.labels.numpy().astype(np.int32).tobytes())
    if split.items is not None:
        about["names"] = pack("\0".join(split.items.names).encode("utf-8", "surrogateescape"))
        values = {"sizes": split.items.sizes, "times": split.items.times, "contents": split.contents}
        about |= {key: pack(np.asarray(values[key], kind).tobytes()) for key, kind in COLUMNS.items()}
    return about


def unpacked_split(about: Any, classes: int) -> SplitRecord:
    """A split of data.json. Raises ValueError for one that is damaged."""
    count, fingerprint = about["items"], about["fingerprint"]
    if not fits(count, int) or not fits(fingerprint, str) or not 0 < count < 2**31:
        raise ValueError("a split has no number of items, or no fingerprint")
    labels = unpack_numbers(about["labels"], np.int32, count).astype(np.int64)
    if labels.min() < -1 or labels.max() >= max(classes, 1):
        raise ValueError("a split has labels that are no class")
    items, contents = None, None
    if "names" in about:
        names = unpack(about["names"], MOST_RATIO * len(about["names"])).decode("utf-8", "surrogateescape").split("\0")
        if len(names) != count or len(set(names)) != count:
            raise ValueError(f"a split has {count} items and other names")
        columns = {key: unpack_numbers(about[key], kind, count) for key, kind in COLUMNS.items()}
        items, contents = Items(names, columns["sizes"], columns["times"]), columns["contents"]
    return SplitRecord(count, fingerprint, torch.from_numpy(labels), items, contents)


def pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def unpack(text: Any, most: int) -> bytes:
    """The bytes that were packed. Raises ValueError if there are more than `most`."""
    if not isinstance(text, str):
        raise ValueError("a column is no text")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text, validate=True), most + 1)
    if len(data) > most:
        raise ValueError(f"a column has more than {most} bytes")
    return data


def unpack_numbers(text: Any, kind: Any, count: int) -> np.ndarray:
    """A column of `count` numbers (count,)."""
    size = np.dtype(kind).itemsize * count
    data = unpack(text, size)
    if len(data) != size:
        raise ValueError("the columns of a split are not equally long")
    return np.frombuffer(data, kind).copy()


def read_contents(split: Split, items: Items) -> np.ndarray:
    """First 8 bytes of SHA-256 (n,) of a split's items, 0 where it was not read, or cannot be."""
    contents = np.zeros(len(split), np.uint64)
    every = max(1, math.ceil(int(items.sizes.sum()) / READ_BYTES))
    rows = range(0, len(split), every)
    for row in tqdm(rows, desc=f"reading {split.name}", unit="item", disable=distributed.bar_hidden(), delay=1):
        contents[row] = content_of(split, row)
    return contents


def content_of(split: Split, index: int) -> np.uint64:
    """First 8 bytes of an item's SHA-256; 0 if it cannot be read."""
    try:
        return np.frombuffer(split.digest(index)[:8], np.uint64)[0]
    except OSError:
        return np.uint64(0)
