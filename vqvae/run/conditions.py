"""The conditions of a run's prior beyond the class: found in its data once, then kept in conditions.json of the run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data.attributes import Attribute
from vqvae.data.base import Data, Split
from vqvae.data.table import in_order
from vqvae.errors import UserError
from vqvae.priors.conditions import CLASS, MOST_COLUMNS, MOST_VALUES, Condition, Conditions, labels_of
from vqvae.run.folder import CONDITIONS, STAGES, RunFolder
from vqvae.run.known_data import KnownData
from vqvae.storage.files import read_own_text, write_bytes

ROWS_AT_ONCE = 4096


class KnownConditions:
    """Conditions of a run's prior, None where it has the class alone, and their rates of dropout.

    Args:
        folder: the run.
        known: its data, which is looked at only before conditions.json is there.

    Raises UserError for conditions that the data does not bring.
    """

    def __init__(self, folder: RunFolder, known: KnownData) -> None:
        self.folder, self.known = folder, known
        self.rates = rates_of(folder.config.prior.conditions, folder.config.prior.class_dropout)
        self._found: Conditions | None = None

    def found(self) -> Conditions | None:
        """The conditions, of the file or else of the data."""
        if self.rates is None:
            return None
        if self._found is None:
            self._found = self.recorded() or find(list(self.rates), self.known.found, self.known.split("train"))
        return self._found

    def recorded(self) -> Conditions | None:
        """The conditions of the file; None if there is none of this run. Raises UserError if it is damaged, or was lost."""
        file = self.folder.path / CONDITIONS
        if self.rates is None or self.folder.replaces or not any(map(self.folder.has_begun, STAGES)):
            return None
        if (text := read_own_text(file)) is None:
            if self.folder.has_begun("prior"):
                raise UserError(f"{file} is missing, which says what the conditions of this run's prior stand for")
            return None
        try:
            conditions = Conditions.of_plain(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
        same = conditions.names == list(self.rates)
        if not same and self.folder.has_begun("prior"):
            raise UserError(f"{file} is damaged: it is of {', '.join(conditions.names)}, not of prior.conditions")
        return conditions if same else None

    def keep(self) -> None:
        """Write them down, so that a finished run needs no data. Call it on all ranks."""
        conditions = self.found()
        if conditions is not None and distributed.is_main():
            text = json.dumps(conditions.plain(), indent=1) + "\n"
            write_bytes(self.folder.path / CONDITIONS, text.encode())
        distributed.barrier()

    def labels(self, split: Split) -> LabelsOfItems:
        """Labels of a split's items, read as they are asked for."""
        conditions = self.found()
        assert conditions is not None
        return LabelsOfItems(conditions, self.known.found, split)


class LabelsOfItems:
    """Labels (b, F) of items of a split by their numbers (b,). Vectors are read from disk, rows at a time."""

    def __init__(self, conditions: Conditions, data: Data, split: Split) -> None:
        self.conditions, self.class_names = conditions, data.class_names
        self.classes = split.labels.numpy()
        self.attributes = {name: data.attribute(name, split) for name in conditions.names if name != CLASS}

    def __call__(self, items: Tensor) -> Tensor:
        columns = [self.values(name, items.numpy()) for name in self.conditions.names]
        return labels_of(self.conditions, columns)

    def values(self, name: str, items: np.ndarray) -> np.ndarray:
        if name in self.attributes:
            return self.attributes[name].of(items)
        names = [*self.class_names, None]  # -1, no class, is the last
        return np.array([names[label] for label in self.classes[items]], object)


def rates_of(node: Any, class_dropout: float) -> dict[str, float] | None:
    """prior.conditions -> the share of examples in which each is hidden by itself; None for the class alone.

    node: null, a list of names, or name -> share. Raises UserError for what makes no sense.
    """
    if node is None or (list(node) == [CLASS] and not isinstance(node, Mapping)):
        return None
    names = [str(name) for name in node]
    if not names:
        raise UserError("prior.conditions names none; prior.conditions=null takes the class, data.classes=off none")
    if len(set(names)) < len(names):
        raise UserError(f"prior.conditions={names} names one twice")
    rates = {str(name): float(rate) for name, rate in node.items()} if isinstance(node, Mapping) else {}
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"prior.conditions.{name}={rate} must be at least 0 and below 1: the share that is hidden")
    return rates or dict.fromkeys(names, float(class_dropout))


def find(names: Sequence[str], data: Data, train: Split) -> Conditions:
    """Describe the conditions with these names, as the training items have them. Raises UserError."""
    found = Conditions(
        tuple(of_class(data) if name == CLASS else of(name, data.attribute(name, train)) for name in names)
    )
    for one in found.each:
        if one.kind == "category" and not 0 < len(one.values) <= MOST_VALUES:
            raise UserError(
                f"prior.conditions names {one.name}, which has {len(one.values):,} values in the training items: a category "
                f"has 1 to {MOST_VALUES:,}"
            )
        if not math.isfinite(one.deviation):
            raise UserError(f"prior.conditions names {one.name}, whose numbers are too large")
    if sum(found.widths) > MOST_COLUMNS:
        raise UserError(f"prior.conditions has {sum(found.widths)} numbers in all, and at most {MOST_COLUMNS} fit")
    return found


def of_class(data: Data) -> Condition:
    if not data.class_names:
        raise UserError("prior.conditions names class, and this data has no classes")
    return Condition(CLASS, "category", tuple(data.class_names))


def of(name: str, attribute: Attribute) -> Condition:
    """The condition that an attribute makes, of its values for the training items."""
    rows = attribute.rows
    if attribute.kind == "category":
        values = sorted({value for value in attribute.values[rows] if value is not None}, key=in_order)
        return Condition(name, "category", tuple(values))
    mean, deviation = moments(attribute.values, rows)
    if mean is None:
        raise UserError(f"prior.conditions names {name}, which no training item has")
    return Condition(name, attribute.kind, (), tuple(mean.tolist()), deviation)


@np.errstate(over="ignore")  # then it is infinite
def moments(values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Mean (W,) and standard deviation, one for all columns, of those rows of values (R,) or (R, W) that are not NaN."""
    count, total, squares = 0, np.zeros(1), 0.0
    parts = np.array_split(rows, max(1, -(-len(rows) // ROWS_AT_ONCE)))
    for part in parts:
        numbers = values[part].reshape(len(part), -1).astype(np.float64)  # (b, W)
        numbers = numbers[~np.isnan(numbers).any(1)]
        count, total = count + len(numbers), total + numbers.sum(0)
    if not count:
        return None, 1.0
    mean = total / count
    for part in parts:
        squares += float(np.nansum((values[part].reshape(len(part), -1).astype(np.float64) - mean) ** 2))
    return mean, math.sqrt(squares / count / len(mean)) or 1.0


def sample_rows(conditions: Conditions | None, class_names: list[str], most: int = 10) -> tuple[list[str], Tensor]:
    """Captions and labels (n,) or (n, F) of the rows of samples.png: classes, or else values of the first category."""
    if conditions is None:
        return class_names[:most], torch.arange(len(class_names[:most]))
    return conditions.examples(most)
