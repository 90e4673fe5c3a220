"""The data of a run: as it was when the run was started, and as it is now."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Any

from vqvae import distributed
from vqvae.config.build import build
from vqvae.data.base import Data, Split
from vqvae.data.tree import printable
from vqvae.errors import UserError
from vqvae.run.changed_data import find_again
from vqvae.run.data_record import NAME as RECORD
from vqvae.run.data_record import DataRecord, SplitRecord
from vqvae.run.folder import RunFolder


class KnownData:
    """Data set and splits of a run. What is in its data.json needs no files: `data` itself, `count` and `fingerprint`."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.record = folder, folder.data_record()
        self.data: Data = build(folder.config.data, "data")
        if self.record is not None:
            recall(self.data, self.record.facts, folder)
        self._splits: dict[str, Split] = {}

    @cached_property
    def found(self) -> Data:
        """The data set as it is now; `data` is as it was when the run was started."""
        if self.record is None:
            return self.data
        found: Data = build(self.folder.config.data, "data")
        facts = dict(self.record.facts)
        if facts["class_names"]:  # else folders are no classes
            del facts["class_names"]
        recall(found, facts, self.folder)
        return found

    def split(self, name: str) -> Split:
        """Split of the data: train, val or test. Raises UserError where it is not what the run was started on."""
        if name not in self._splits:
            self._splits[name] = self._found_again(name) if self.record is not None else self._limited(name)
        return self._splits[name]

    def count(self, split: str) -> int:
        """Number of items of a split, which need not be there."""
        record = self._recorded(split)
        return len(self.split(split)) if record is None else record.count

    def fingerprint(self, split: str) -> str:
        """Fingerprint of a split, which need not be there."""
        record = self._recorded(split)
        return self.split(split).fingerprint if record is None else record.fingerprint

    def is_there(self, split: str) -> bool:
        """True if the items of a split were looked for, and found."""
        return split in self._splits

    def notes(self) -> list[str]:
        """Sentences about what was understood of the data; none where it was not looked at."""
        return self.found.notes() if self._splits else []

    def _recorded(self, split: str) -> SplitRecord | None:
        return None if self.record is None else self.record.splits.get(split)

    def _limited(self, name: str) -> Split:
        split = self.found.split(name)
        return split.limited(self.data.limit) if self.data.limit else split

    def _found_again(self, name: str) -> Split:
        """The items of a split that the run was started on, as far as it is recorded."""
        assert self.record is not None
        record, then = self._recorded(name), self.record.class_names
        if record is None or record.items is None:
            split, names = self._limited(name), self.found.class_names
            problem = None if names == then else f"its classes were {shown(then)}, and are {shown(names)}"
            if record is not None and split.fingerprint != record.fingerprint:
                problem = f"it had {record.count:,} {name} items, and has {len(split):,}, or some of them are others"
        else:
            whole = self.found.whole(name)
            others = [one.items.names for one in self.record.splits.values() if whole.shared and one.items is not None]
            split, changes = find_again(record, then, whole, itertools.chain(*others))
            problem = changes.problem and f"of {record.count:,} {name} items, {changes.problem}"
            if changes.added and not problem and not self.data.limit and (name == "train" or not whole.shared):
                self.folder.note(f"the data has changed since this run was started: {changes.news}, and left out")
        if problem is not None:
            raise UserError(
                f"the data of {self.folder.path} is not what the run was started on: {problem}. Put it back, name its place "
                f"by data.root=..., or start a new run, with init_from={self.folder.path} from its weights"
            )
        return split

    def keep(self) -> None:
        """Write down what the run has to know of its data, unless it lies there. Call it on all ranks."""
        if distributed.is_main():
            if self.record is None:
                splits = {name: SplitRecord.of(self.split(name)) for name in ("train", "val")}
                DataRecord(self.data.facts(), splits).write(self.folder.path, self.data)
            elif self.record.moved:
                self.record.write(self.folder.path, self.data)
        distributed.barrier()


def recall(data: Data, facts: dict[str, Any], folder: RunFolder) -> None:
    """Have a data set take up recorded facts. Raises UserError, naming the file, for what are none."""
    try:
        data.recall(facts)
    except UserError as error:
        raise UserError(f"{folder.path / RECORD}: {error}") from error


def shown(names: list[str]) -> str:
    """Class names for a message."""
    return printable(", ".join(names[:5])) + ", ..." * (len(names) > 5) if names else "none"
