"""A table of images: a CSV or JSONL file with the path, the class and the split of each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import Any

from vqvae.data.attributes import Attribute, Kind, read_column
from vqvae.data.base import Split
from vqvae.data.folder import Folder
from vqvae.data.layout import NAMES, Listing
from vqvae.data.tree import Tree
from vqvae.errors import UserError
from vqvae.ranges import checked
from vqvae.surroundings.terminal import printable

Row = dict[str, Any]
MOST_NAMED = 20  # columns in a message


@checked
@dataclass(kw_only=True)
class Table(Folder):
    """Images that the rows of `root`, a .csv or .jsonl file, name: paths relative to its folder, or absolute.

    path, label, split: names of the columns. Without a column of labels there are no classes; without one of splits, a share is
    held out. `splits`: split -> the word for it in its column; null: the usual ones, in any case. classes=off: no labels.
    attributes: kinds of further columns that prior.conditions names, where they are not what they look like: numbers if all
    their values are, else categories.
    """

    path: str = "path"
    label: str = "label"
    split_column: str = "split"
    attributes: dict[str, Kind] | None = None

    @cached_property
    def layout(self) -> TableListing:
        """What the table names. Raises UserError for a table that cannot be read, and for files that are not there."""
        file = Path(expanduser(self.root))
        if not file.is_file():
            raise UserError(f"data.root={self.root} is not a file; name the .csv or .jsonl file that lists the images")
        without = self.classes == "off" or self.recalled.get("class_names") == []
        columns = {"path": self.path, "label": None if without else self.label, "split": self.split_column}
        return TableListing(file, columns, self.splits)

    def attribute(self, name: str, split: Split) -> Attribute:
        if name in self.vector_files or self.layout.has(name):
            if name in self.vector_files and self.layout.has(name):
                raise UserError(
                    f"{name} is a column of {self.root}, and data.vectors too: data.vectors={{<a name>: ...}} names it"
                )
            return super().attribute(name, split) if name in self.vector_files else self._column(name, split)
        raise self.layout.no_column(name, "prior.conditions")

    def _column(self, name: str, split: Split) -> Attribute:
        kinds = self.attributes or {}
        for other in kinds:
            if not self.layout.has(other):
                raise self.layout.no_column(other, "data.attributes")
        values = read_column(
            self.layout.column(name), kinds.get(name), lambda row: f"{self.root}, row {row + 1}: {name}"
        )
        return Attribute(values, self.rows_of(split))


class TableListing(Listing):
    """Files, classes and splits that a table names; see `Table`.

    Args:
        file: the table.
        columns: the names of its columns path, label and split; label None: no classes.
        splits: split -> the word for it in the table.
    """

    def __init__(self, file: Path, columns: dict[str, str | None], splits: dict[str, str] | None) -> None:
        self.file, self.root, self.columns = file, file.parent, columns
        words = {name: [name_in_table] for name, name_in_table in (splits or {}).items()} or NAMES
        self.words = {word.lower(): split for split, several in words.items() for word in several}
        rows = list(rows_of(file))
        if not rows:
            raise UserError(f"{file} has no rows")
        self.names = [str(name) for name in {name: None for row in rows for name in row if name is not None}]
        if columns["path"] not in rows[0]:
            raise self.no_column(str(columns["path"]), "data.path")
        self.labels_of: dict[str, str | None] = {}
        self.files: dict[str, list[str]] = {}
        for number, row in enumerate(rows, 1):
            self._add(number, row)
        self._check()
        self.class_names = sorted({name for name in self.labels_of.values() if name is not None}, key=in_order)
        self.folders = dict.fromkeys(sorted(self.files, key=list(NAMES).index), self.root)
        self._trees = {split: Tree(self.root, sorted(files)) for split, files in self.files.items()}

    def tree(self, split: str) -> Tree:
        return self._trees[split]

    def labels(self, tree: Tree) -> list[int]:
        labels = self.numbers(tree)
        if self.class_names and -1 in labels:
            stranger = printable(tree.files[labels.index(-1)])
            raise UserError(
                f"{self.file}: {stranger} has no {self.columns['label']}: give it one, or set data.classes=off"
            )
        return labels

    def numbers(self, tree: Tree) -> list[int]:
        index: dict[str | None, int] = {name: number for number, name in enumerate(self.class_names)}
        return [index.get(self.labels_of[file], -1) for file in tree.files]

    def rows(self) -> dict[tuple[Path, str], int]:
        """Root and file of every item -> its row, from 0: in the table, and in a file of vectors."""
        return {(self.root, path): row for row, path in enumerate(self.labels_of)}

    def has(self, name: str) -> bool:
        """True for a column that is an attribute: further than path, class and split."""
        return name in self.names and name not in self.columns.values()

    def column(self, name: str) -> list[Any]:
        """The values of all rows, None where there is none."""
        return [row.get(name) for row in rows_of(self.file)]

    def no_column(self, name: str, key: str) -> UserError:
        """The error of a setting that names a column which is not there."""
        known = ", ".join(map(printable, self.names[:MOST_NAMED])) + ", ..." * (len(self.names) > MOST_NAMED)
        if name in self.names and name == self.columns["label"]:
            return UserError(f"{key} names {name}, the column of the classes: as a condition it is called class")
        return UserError(f"{self.file} has no column {printable(name)}; its columns are {known}: name one by {key}=...")

    def notes(self) -> list[str]:
        counts = ", ".join(f"{len(files):,} {split}" for split, files in self.files.items())
        return [f"{printable(str(self.file))} lists {counts} images"]

    def _add(self, number: int, row: Row) -> None:
        """Take down a row. Raises UserError for one that makes no sense."""
        path, label, split = (row.get(str(self.columns[key])) for key in ("path", "label", "split"))
        where = f"{self.file}, row {number}"
        if not isinstance(path, str) or not path or "\0" in path:
            raise UserError(f"{where}: {self.columns['path']} is no path")
        if path in self.labels_of:
            raise UserError(f"{where}: {printable(path)} is listed twice")
        word = "train" if split in (None, "") else str(split)
        if word.lower() not in self.words:
            raise UserError(
                f"{where}: the split {printable(word)[:80]} is none of {', '.join(self.words)}; name it, "
                f"as data.splits={{train: {printable(word)[:80]}, val: ...}}"
            )
        self.labels_of[path] = None if self.columns["label"] is None or label in (None, "") else str(label)
        self.files.setdefault(self.words[word.lower()], []).append(path)

    def _check(self) -> None:
        if "train" not in self.files:
            raise UserError(f"{self.file} has no rows of the split train; data.splits={{train: ...}} names its word")
        missing = [path for path in self.labels_of if not (self.root / path).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(self.labels_of)} files that {self.file} lists are not there, such as "
                f"{printable(missing[0])}; paths are relative to {self.root}"
            )


def rows_of(file: Path) -> Iterator[Row]:
    """Rows of a .csv file with a header, or of a .jsonl file. Raises UserError for what is neither."""
    kind = file.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise UserError(f"data.root={file} must end with .csv, .tsv or .jsonl")
    try:
        text = file.read_text("utf-8-sig")
        if kind == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f'{file}, line {number} is no object such as {{"path": ...}}')
                    yield row
        else:
            yield from csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",")
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} cannot be read: {error}") from error


def in_order(name: str) -> tuple[int, int, str]:
    """Numbers in their order, before names in theirs."""
    number = name.isascii() and name.isdecimal() and len(name) < 10
    return (0, int(name), name) if number else (1, 0, name)
