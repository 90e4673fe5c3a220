"""Items that a run was started on, found again in its data as that is now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from vqvae.data.base import Items, Split, Whole
from vqvae.data.tree import printable
from vqvae.run.data_record import SplitRecord, content_of


class Changes(NamedTuple):
    """Names of items that are missing, edited, of another class, or new."""

    missing: list[str]
    edited: list[str]
    relabeled: list[str]
    added: list[str]

    @property
    def problem(self) -> str | None:
        """Why a run cannot go on with what it was started on; None if it can."""
        found = {"missing": self.missing, "edited": self.edited, "of another class": self.relabeled}
        parts = [f"{len(names):,} are {what} (such as {printable(names[0])})" for what, names in found.items() if names]
        return ", ".join([*parts, *([self.news] if self.added else [])]) if parts else None

    @property
    def news(self) -> str:
        return f"{len(self.added):,} are new (such as {printable(self.added[0])})"


def find_again(record: SplitRecord, then: list[str], whole: Whole, others: Iterable[str]) -> tuple[Split, Changes]:
    """Split of the items that a record names, in their order, and what has changed. It is of use if that is no problem.

    then: class names of the record. others: items of other splits, which are not new.
    An item is the same if its size and time of change are, or else its size and contents; times are then taken over.
    """
    now, items = whole.split, whole.split.items()
    assert record.items is not None
    assert record.contents is not None
    assert items is not None
    place = {name: index for index, name in enumerate(items.names)}
    rows = np.array([place.get(name, -1) for name in record.items.names])
    missing, edited = rows < 0, np.zeros(len(rows), bool)
    edited |= ~missing & (items.sizes[rows] != record.items.sizes)
    moved = ~missing & ~edited & (items.times[rows] != record.items.times)
    for index in np.flatnonzero(moved & (record.contents != 0)):
        edited[index] = content_of(now, int(rows[index])) != record.contents[index]
    number = {name: index for index, name in enumerate(then)}
    numbers = torch.tensor([*(number.get(name, -2) for name in whole.class_names), -1])  # -1, no class, is the last
    labels = numbers[now.labels[torch.from_numpy(rows).clamp_min(0)]]
    relabeled = ~missing & (labels != record.labels).numpy()
    own = {*record.items.names, *others}
    names = np.array(record.items.names, object)
    added = [name for name in items.names if name not in own]
    changes = Changes(list(names[missing]), list(names[edited]), list(names[relabeled]), added)
    if changes.problem is not None:
        return now, changes
    record.items = Items(record.items.names, record.items.sizes, items.times[rows])
    record.moved = bool(moved.any())
    split = now.subset(torch.from_numpy(rows))
    split.labels, split.fingerprint = record.labels.clone(), record.fingerprint
    return split, changes
