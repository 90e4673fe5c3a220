"""A folder of items as data=folder understands it: which folders are splits, and which are classes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from vqvae.data.tree import Tree, is_hidden, kind_of, list_tree, suffix_of
from vqvae.errors import UserError
from vqvae.surroundings.terminal import printable

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class Listing(ABC):
    """Files of the splits of a data set, and their classes.

    root: what paths are relative to. folders: split -> where its files lie; `train` alone where validation is to be held out of
    it. class_names: names of the classes in their order; empty without classes.
    """

    root: Path
    folders: dict[str, Path]
    class_names: list[str]

    @abstractmethod
    def tree(self, split: str) -> Tree:
        """Items of a split that is there."""

    @abstractmethod
    def labels(self, tree: Tree) -> list[int]:
        """Class number of each item, -1 without classes. Raises UserError for an item without a class where others have one."""

    @abstractmethod
    def numbers(self, tree: Tree) -> list[int]:
        """Class number of each item, -1 for one without a class."""

    @abstractmethod
    def rows(self) -> dict[tuple[Path, str], int]:
        """Root and file of every item -> its row in a file of vectors."""

    @abstractmethod
    def notes(self) -> list[str]:
        """What was understood, and what was left out, in sentences."""


class Layout(Listing):
    """Splits and classes below `root`.

    folders: split -> folder; `train` alone, perhaps `root` itself, where validation is to be held out of it. class_names:
    folders directly below the training split that hold items; none with classes="off". beside: what lies beside the splits.

    Args:
        root: the folder.
        splits: split -> its folder, relative to `root`; None: folders of the usual names, in any case.
        classes: auto or off.
        suffixes: of items, see `list_tree`.
        kind: what items are, in messages.

    Raises UserError for folders that are not there, and where it is not clear what is meant.
    """

    def __init__(
        self, root: Path, splits: dict[str, str] | None, classes: str, suffixes: Collection[str], kind: str = "image"
    ) -> None:
        self.root, self.suffixes = root, suffixes
        self.beside: list[str] = []
        self.folders = self._find() if splits is None else self._named(splits)
        self._check_apart()
        self._trees: dict[str, Tree] = {}
        train = self.tree("train")
        if not train.files:
            raise UserError("; ".join([f"no {kind} in {train.root} or its subfolders", *train.notes()]))
        self.class_names = train.groups if classes == "auto" else []

    def tree(self, split: str) -> Tree:
        """Items of a split that is there."""
        if split not in self._trees:
            self._trees[split] = list_tree(self.folders[split], self.suffixes)
        return self._trees[split]

    def labels(self, tree: Tree) -> list[int]:
        """Class number of each item, -1 without classes. Raises UserError for an item in none of the class folders."""
        labels = self.numbers(tree)
        if self.class_names and -1 in labels:
            stranger = printable(str(tree.root / tree.files[labels.index(-1)]))
            names = ", ".join(map(printable, self.class_names[:5])) + ", ..." * (len(self.class_names) > 5)
            raise UserError(
                f"{stranger} is in none of the class folders of the training images ({names}); "
                "move it there, or set data.classes=off to train without classes"
            )
        return labels

    def numbers(self, tree: Tree) -> list[int]:
        """Class number of each item, -1 for one in none of the class folders."""
        index = {name: number for number, name in enumerate(self.class_names)}
        return [index.get(file.split("/")[0], -1) if "/" in file else -1 for file in tree.files]

    def rows(self) -> dict[tuple[Path, str], int]:
        """Root and file of every item -> its row in a file of vectors: all splits, sorted by their paths below `root`."""
        found = [(folder, file) for split, folder in self.folders.items() for file in self.tree(split).files]
        order = sorted(found, key=lambda one: (one[0].relative_to(self.root) / one[1]).as_posix())
        return {one: row for row, one in enumerate(order)}

    def notes(self) -> list[str]:
        """Which folders are splits, and what was left out, in sentences."""
        splits = ", ".join(f"{split} in {printable(str(folder))}" for split, folder in self.folders.items())
        found = [splits] if self.folders["train"] != self.root else []
        if self.beside:
            more = ", ..." * (len(self.beside) > 5)
            found.append(f"left out beside the splits: {printable(', '.join(self.beside[:5]))}{more}")
        alike = {split: name for name in self.class_names for split in NAMES if split in name.lower()}
        if "train" in alike and len(alike) > 1:
            named = ", ".join(f"{split}: {printable(name)}" for split, name in alike.items())
            found.append(f"classes that look like splits: data.splits={{{named}}} would make them splits")
        return found + [note for tree in self._trees.values() for note in tree.notes()]

    def _find(self) -> dict[str, Path]:
        """Folders that have the usual name of a split."""
        try:
            with os.scandir(self.root) as entries:
                kinds = {entry.name: kind_of(entry) for entry in entries if not is_hidden(entry.name)}
        except OSError as error:
            raise UserError(f"{self.root} cannot be opened: {error.strerror}") from error
        names = sorted(name for name, kind in kinds.items() if kind == "folder")
        found: dict[str, Path] = {}
        for split, usual in NAMES.items():
            here = [name for name in names if name.lower() in usual]
            if len(here) > 1:
                raise UserError(
                    f"{self.root} has {' and '.join(here)}: say which is meant, as data.splits={{{split}: {here[0]}}}"
                )
            if here:
                found[split] = self.root / here[0]
        if not found:
            return {"train": self.root}
        if "train" not in found:
            raise UserError(
                f"{self.root} has {found.popitem()[1].name}/ but no train/: name the folders, as "
                "data.splits={train: <folder>, val: <folder>}; data.splits={train: .} takes all of it"
            )
        items = sorted(name for name in kinds if suffix_of(name) in self.suffixes)
        self.beside = [name for name in [*names, *items] if self.root / name not in found.values()]
        return found

    def _named(self, splits: dict[str, str]) -> dict[str, Path]:
        """The folders that `splits` names."""
        if "train" not in splits or not set(splits) <= set(NAMES):
            raise UserError(f"data.splits={splits} must name the folder of train, and may name those of val and test")
        found = {split: self.root / name for split, name in splits.items()}
        for split, name in splits.items():
            if os.path.isabs(name) or ".." in Path(name).parts or not found[split].is_dir():
                raise UserError(f"data.splits.{split}={name} is not a folder below {self.root}")
        return found

    def _check_apart(self) -> None:
        """Raise UserError if one split lies within another, because then images are in both."""
        real = {split: folder.resolve() for split, folder in self.folders.items()}
        for split, folder in real.items():
            for other, outer in real.items():
                if split != other and folder.is_relative_to(outer):
                    raise UserError(
                        f"{self.folders[split]} ({split}) lies in {self.folders[other]} ({other}): splits must be apart"
                    )
