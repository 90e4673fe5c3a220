"""Image sets in the form of Hugging Face's library datasets, from a local folder or by name."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vqvae.data import held_out
from vqvae.data.base import Split, fingerprint
from vqvae.data.folder import spread
from vqvae.data.framing import as_setting
from vqvae.data.layout import NAMES
from vqvae.data.resized import ResizedImages
from vqvae.data.torchvision_sets import SetSplit
from vqvae.errors import UserError
from vqvae.ranges import checked
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import printable

VERSION = 1  # part of the fingerprint; raise it when the same set gives other items
SAVED = ("dataset_dict.json", "state.json")  # files of a folder that save_to_disk has written
LONGEST = 300  # letters of a reason


class Encoded:
    """Image files of a column by their numbers, as `SetSplit` asks for them: a tuple with the file as its first part."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Path | BinaryIO]:
        cell = self.rows[number][self.column]
        if not cell or (cell["bytes"] is None and not cell["path"]):
            raise OSError("it is empty")
        return (io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"]),)

    def content(self, number: int) -> bytes:
        """Bytes of a file; empty if there is none that can be read."""
        try:
            (file,) = self[number]
            return file.read_bytes() if isinstance(file, Path) else file.read()
        except OSError:
            return b""


@checked
@dataclass(kw_only=True)
class HuggingFace(ResizedImages):
    """A set of images that the library datasets loads. Images are resized and cropped as in `Folder`.

    path: a local folder (of images, of .parquet files, or one that `save_to_disk` has written), else a name, owner/name, on
    the Hugging Face Hub. subset: the configuration of a set that has several. image_column, label_column: names of columns;
    label_column null: no classes. Their names are those of the column's ClassLabel, or else its values. splits: split -> its
    name in the set; null: the usual ones, in any case. Without a split for validation that for test serves, else a share is
    held out.
    """

    path: str
    subset: str | None = None
    image_column: str = "image"
    label_column: str | None = "label"
    splits: dict[str, str] | None = None

    @cached_property
    def loaded(self) -> dict[str, Any]:
        """Split -> its rows, as datasets.Dataset. Raises UserError for a set that cannot be loaded, and for missing columns."""
        found = load(self.path, self.subset)
        chosen: dict[str, Any] = {}
        for split, usual in NAMES.items():
            names = (self.splits or {}).get(split)
            here = [name for name in found if (name == names if self.splits else name.lower() in usual)]
            chosen |= {split: found[here[0]]} if here else {}
        if self.splits and (missing := [name for name in self.splits.values() if name not in found]):
            raise UserError(f"data.path={self.path} has no split {missing[0]}; it has {listed(found)}")
        if "train" not in chosen:
            raise UserError(
                f"data.path={self.path} has no split train; it has {listed(found)}: say which is meant, as "
                f"data.splits={{train: {next(iter(found))}}}"
            )
        for rows in chosen.values():
            for key in ("image_column", "label_column"):
                column = getattr(self, key)
                if column is not None and column not in rows.column_names:
                    more = ", or null for no classes" if key == "label_column" else ""
                    raise UserError(
                        f"data.path={self.path} has no column {column}; it has {listed(rows.column_names)}: name one by "
                        f"data.{key}=...{more}"
                    )
        return chosen

    @cached_property
    def labels(self) -> dict[str, list[Any]]:
        """Split -> the value of each row's label, None without classes."""
        column = self.label_column
        return {
            split: [None] * len(rows) if column is None else list(rows.select_columns([column])[:][column])
            for split, rows in self.loaded.items()
        }

    def found_class_names(self) -> list[str]:
        if self.label_column is None:
            return []
        names = getattr(self.loaded["train"].features[self.label_column], "names", None)
        if names is not None:
            return [str(name) for name in names]
        values = [value for value in self.labels["train"] if value is not None]
        wrong = next((type(value).__name__ for value in values if not isinstance(value, (str, int))), None)
        if wrong is not None:
            raise UserError(f"data.label_column={self.label_column} holds {wrong}, and no classes")
        return [str(value) for value in sorted(set(values), key=lambda value: (isinstance(value, str), value))]

    def numbers(self, split: str) -> Tensor:
        """Class of each row (n,), -1 for none. Raises UserError for a class that training has not."""
        if self.label_column is None:
            return torch.full((len(self.loaded[split]),), -1)
        by_name = getattr(self.loaded[split].features[self.label_column], "int2str", str)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        known = {None: -1, -1: -1} if by_name is not str else {None: -1}
        for value in dict.fromkeys(self.labels[split]):
            if value not in known:
                name = str(by_name(value))
                if name not in numbers:
                    raise UserError(f"the class {printable(name)} of the split {split} is none of the training images")
                known[value] = numbers[name]
        return torch.tensor([known[value] for value in self.labels[split]])

    def images(self, split: str) -> Encoded:
        """Image files of a split. Raises UserError for a column that holds none."""
        rows, column = self.loaded[split].select_columns([self.image_column]), self.image_column
        try:
            rows = rows.with_format(None).cast_column(column, library().Image(decode=False))
        except Exception as error:  # pyarrow raises many kinds
            raise UserError(f"data.image_column={column} holds {rows.features[column]}, and no images") from error
        return Encoded(rows, column)

    def split(self, name: str) -> Split:
        train, held = name == "train", len(self.loaded) == 1
        source = "train" if held else name if name in self.loaded else {"val": "test", "test": "val"}[name]
        images, labels = self.images(source), self.numbers(source)
        chosen = torch.arange(len(labels))
        if held:
            out = held_out.by_hash(
                (str(number).encode() for number in chosen.tolist()), self.val_share, self.split_seed
            )
            chosen, source = torch.from_numpy(np.flatnonzero(out != train)), "train" if train else "val"
        labels = labels[chosen]
        contents = [hashlib.sha256(images.content(number)).hexdigest() for number in spread(chosen.tolist())]
        digest = hashlib.sha256(labels.numpy().tobytes()).hexdigest()
        size = as_setting(self.read_size)
        identity = fingerprint(["huggingface", VERSION, source, size, self.channels, digest, contents, *self.reading])
        return SetSplit(source, labels, identity, images, chosen, self.read_file, self.path)

    def probes(self) -> Iterable[Path | BinaryIO]:
        images = self.images("train")
        for number in spread(range(len(images))):
            if content := images.content(number):
                yield io.BytesIO(content)


def library() -> Any:
    """The package datasets. Raises UserError if it is missing."""
    try:
        with own_folder():
            import datasets
    except ImportError as error:
        raise UserError(f"data=huggingface needs the package datasets ({error}): pip install '.[datasets]'") from error
    return datasets


def load(path: str, subset: str | None) -> dict[str, Any]:
    """Name of a split -> its rows. Raises UserError for whatever cannot be loaded."""
    datasets, folder = library(), Path(expanduser(path))
    if folder.is_file():
        raise UserError(f"data.path={path} is a file: name the folder in which it lies")
    if not folder.is_dir() and (path.count("/") > 1 or path[:1] in "./~"):
        raise UserError(f"data.path={path} is neither a folder nor a name, such as owner/name")
    try:
        if folder.is_dir() and any((folder / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(os.path.abspath(folder) if folder.is_dir() else path, subset)
    except Exception as error:  # of the network, the Hub, pyarrow and datasets itself
        reason = " ".join(str(error).split())[:LONGEST]
        raise UserError(f"data.path={path} cannot be loaded by datasets: {type(error).__name__}: {reason}") from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}


def listed(names: Iterable[Any]) -> str:
    found = [printable(str(name)) for name in names]
    return ", ".join(found[:8]) + ", ..." * (len(found) > 8)
