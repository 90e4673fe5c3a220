"""Conditions of a prior beyond one class: what they are, the labels that hold them, and the vectors that a prior makes of them.

Labels of a class alone are (B,) int64, -1 for none. Labels of several conditions are (B, F) float32: a column for each category
(its number) and each number, W columns for a vector of W numbers, NaN where it is not given.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqvae.errors import UserError

CLASS = "class"  # the condition that is the class of the data
KINDS = ("category", "number", "vector")
MOST_VALUES, MOST_COLUMNS = 10_000, 2**16  # of a category, and of all conditions
MOST_SHOWN, MOST_LISTED = 10, 50  # values in a description, and in a message
FARTHEST = 1e6  # deviations from the mean: numbers beyond that make a network's activations overflow


@dataclass(frozen=True)
class Condition:
    """One condition of a prior.

    kind: category, number or vector. values: of a category, in the order of their numbers. mean (W,), deviation: of numbers and
    vectors in the training set, by which a network sees them standardized.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: float = 1.0

    @property
    def width(self) -> int:
        """Columns of the labels."""
        return len(self.mean) or 1

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Value of a category -> its number."""
        return {value: number for number, value in enumerate(self.values)}

    def __str__(self) -> str:
        if self.kind == "category":
            return f"{self.name} ({', '.join(self.values[:MOST_SHOWN])}{', ...' * (len(self.values) > MOST_SHOWN)})"
        return f"{self.name} ({self.kind}{f' of {self.width}' if self.kind == 'vector' else ''})"

    def columns(self, values: np.ndarray) -> np.ndarray:
        """Values of n items, texts (n,) with None for unknown ones or numbers (n,) or (n, W) -> columns (n, W) float32.

        A text that the training set has not is not given. Raises UserError for numbers far beyond those of the training set.
        """
        if self.kind == "category":
            found = [self.numbers.get(value, math.nan) for value in values]
            return np.array(found, np.float32)[:, None]  # (n, 1)
        given = values.reshape(len(values), -1).astype(np.float64)
        numbers = (given - self.mean) / self.deviation
        if (far := np.abs(numbers) > FARTHEST).any():
            raise UserError(
                f"{self.name}={given[far][0]:g} is too far from the numbers of the training items, whose standard deviation is "
                f"{self.deviation:g}"
            )
        return numbers.astype(np.float32)  # (n, W)

    def asked(self, value: Any, count: int) -> np.ndarray:
        """What a user asks for, one value for all or one a sample -> columns (count, W). None is not given.

        Raises UserError for a value that is not known, and for numbers that are none or do not fit.
        """
        if self.kind == "vector":
            return self._asked_vectors(value, count)
        several = isinstance(value, (list, tuple, np.ndarray, Tensor)) and np.ndim(value) > 0
        given = [
            one.item() if isinstance(one, (np.generic, Tensor)) else one for one in (value if several else [value])
        ]
        if len(given) not in (1, count):
            raise UserError(f"{self.name} has {len(given)} values for {count} samples: give one for all, or one each")
        values = np.array([self._value(one) for one in given], object if self.kind == "category" else np.float64)
        return np.broadcast_to(self.columns(values), (count, 1))

    def _value(self, value: Any) -> str | float | None:
        """One value that is asked for, as `columns` takes it."""
        if self.kind == "category":
            text = str(value).lower() if isinstance(value, bool) and str(value) not in self.numbers else str(value)
            if value is not None and text not in self.numbers:
                more = ", ..." * (len(self.values) > MOST_LISTED)
                known = ", ".join(self.values[:MOST_LISTED]) + more
                raise UserError(f"{self.name}={text[:100]} is not known; known are: {known}")
            return None if value is None else text
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if value is not None and not math.isfinite(number):
            raise UserError(f"{self.name}={str(value)[:100]} is not a number")
        return number

    def _asked_vectors(self, value: Any, count: int) -> np.ndarray:
        if value is None:
            return np.full((count, self.width), math.nan, np.float32)
        named = f"{self.name}={value}" if isinstance(value, (str, Path)) else self.name
        try:
            read = np.load(Path(value).expanduser(), allow_pickle=False) if isinstance(value, (str, Path)) else value
            rows = np.atleast_2d(np.asarray(read, np.float64))
        except Exception as error:  # numpy and zipfile raise many kinds
            raise UserError(f"{named} cannot be read as vectors: {error}") from error
        if rows.ndim != 2 or rows.shape[1] != self.width or len(rows) not in (1, count):
            raise UserError(
                f"{named} must hold {self.width} numbers, or {count} rows of them, one a sample; it holds {rows.shape}"
            )
        if not np.isfinite(rows).all():
            raise UserError(f"{named} holds NaN or infinite numbers")
        return self.columns(np.broadcast_to(rows, (count, self.width)))


@dataclass(frozen=True)
class Conditions:
    """The conditions of a prior, in the order of their columns in labels (B, F)."""

    each: tuple[Condition, ...]

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.each]

    @property
    def widths(self) -> list[int]:
        """Columns of each condition."""
        return [one.width for one in self.each]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, where the class is one of the conditions."""
        return next((list(one.values) for one in self.each if one.name == CLASS), [])

    @cached_property
    def fingerprint(self) -> str:
        """Short digest of all that labels depend on."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:8]

    def __str__(self) -> str:
        return ", ".join(map(str, self.each))

    def plain(self) -> list[dict[str, Any]]:
        """Plain values for a JSON file."""
        return [{**asdict(one), "values": list(one.values), "mean": list(one.mean)} for one in self.each]

    @classmethod
    def of_plain(cls, listed: Any) -> Conditions:
        """The conditions of a JSON file, which may be a stranger's. Raises UserError for what are none."""
        if not isinstance(listed, list) or not listed or not all(map(is_condition, listed)):
            raise UserError("it does not describe conditions")
        each = tuple(Condition(**{**one, "values": (*one["values"],), "mean": (*one["mean"],)}) for one in listed)
        if len({one.name for one in each}) != len(each) or sum(one.width for one in each) > MOST_COLUMNS:
            raise UserError("it describes conditions of the same name, or too many")
        return cls(each)

    def labels(self, count: int, given: Mapping[str, Any], classes: Tensor | None = None) -> Tensor:
        """What a user asks for -> labels (count, F). given: name -> one value for all samples, or one each.

        classes: (count,) int64, -1 for none. Raises UserError for a condition or a value that is not known.
        """
        for name in given:
            if name == CLASS and self.class_names:
                raise UserError(
                    "the class is asked for by itself: class=... (in Python labels=...), not as a condition"
                )
            if name not in self.names:
                raise UserError(f"{name} is no condition of this prior; known are: {', '.join(self.names)}")
        asked = {one.name: one.asked(given.get(one.name), count) for one in self.each}
        if classes is not None and self.class_names:
            asked[CLASS] = torch.where(classes < 0, torch.nan, classes.float())[:, None].cpu().numpy()
        elif classes is not None and bool((classes >= 0).any()):
            raise UserError(f"this prior knows no class: its conditions are {', '.join(self.names)}")
        return torch.from_numpy(np.concatenate(list(asked.values()), axis=1))

    def hide(self, labels: Tensor, hidden: Tensor) -> Tensor:
        """Labels (B, F) without those conditions where hidden (B, conditions) bool is True."""
        parts = labels.split(self.widths, dim=1)
        return torch.cat([part.masked_fill(hidden[:, i, None], torch.nan) for i, part in enumerate(parts)], dim=1)

    def examples(self, most: int) -> tuple[list[str], Tensor]:
        """Captions and labels (n, F) of up to `most` values of the class, or else of the first category; none without one."""
        categories = [one for one in self.each if one.kind == "category"]
        shown = next((one for one in categories if one.name == CLASS), categories[0] if categories else None)
        if shown is None:
            return [], torch.empty(0, sum(self.widths))
        labels = torch.full((min(most, len(shown.values)), sum(self.widths)), torch.nan)
        labels[:, sum(self.widths[: self.each.index(shown)])] = torch.arange(len(labels)).float()
        named = "" if shown.name == CLASS else f"{shown.name} "
        return [f"{named}{value}" for value in shown.values[:most]], labels

    def check(self, labels: Tensor) -> None:
        """Raise UserError unless labels (n, F) hold numbers of categories, or NaN, in their columns."""
        for one, start in zip(self.each, np.cumsum([0, *self.widths])):
            column = labels[:, start]
            known = (column >= 0) & (column < len(one.values)) & (column == column.floor())
            if one.kind == "category" and not bool((known | column.isnan()).all()):
                raise UserError(f"it holds numbers that are no {one.name}")


def is_condition(plain: Any) -> bool:
    """True for the plain values of a condition."""
    if not isinstance(plain, dict) or set(plain) != {"name", "kind", "values", "mean", "deviation"}:
        return False
    values, mean, deviation = plain["values"], plain["mean"], plain["deviation"]
    numbers = [*mean, deviation] if isinstance(mean, list) else [None]
    return (
        isinstance(plain["name"], str)
        and plain["kind"] in KINDS
        and isinstance(values, list)
        and len(values) <= MOST_VALUES
        and all(isinstance(value, str) for value in values)
        and all(isinstance(one, float) and math.isfinite(one) for one in numbers)
        and deviation > 0
        and (bool(values) and not mean if plain["kind"] == "category" else bool(mean) and not values)
        and (plain["kind"] != "number" or len(mean) == 1)
    )


def nothing(labels: Tensor) -> Tensor:
    """Labels (B,) or (B, F) of the same kind that say nothing."""
    return torch.full_like(labels, torch.nan if labels.is_floating_point() else -1)


class ClassVectors(nn.Embedding):
    """Labels (B,) of the class alone, -1 for none -> (B, width): a learned vector of each; the last is that of none."""

    def forward(self, labels: Tensor) -> Tensor:
        return super().forward(labels.masked_fill(labels < 0, self.num_embeddings - 1))

    def no_labels(self, count: int) -> Tensor:
        """Labels (count,) that say nothing."""
        return torch.full((count,), -1, device=self.weight.device)


class CategoryVector(nn.Module):
    """Columns (B, 1) of a category -> its learned vector (B, width); the last is that of "not given"."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count + 1, width)

    def forward(self, columns: Tensor) -> Tensor:
        number = columns[:, 0].nan_to_num(nan=self.embedding.num_embeddings - 1)
        return self.embedding(number.long())


class NumbersVector(nn.Module):
    """Columns (B, W) of numbers -> a linear layer of them (B, width), or a learned vector where they are not given."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(count, width)
        self.none = nn.Parameter(torch.randn(width))
        nn.init.normal_(self.linear.weight, std=count**-0.5)

    def forward(self, columns: Tensor) -> Tensor:
        given = ~columns.isnan().any(1, keepdim=True)  # (B, 1)
        return torch.where(given, self.linear(columns.nan_to_num()), self.none)


class ConditionVectors(nn.Module):
    """Labels (B, F) -> the sum of a vector for each condition (B, width), of variance 1 in every channel at the start."""

    def __init__(self, conditions: Conditions, width: int) -> None:
        super().__init__()
        self.widths, self.scale = conditions.widths, len(conditions.each) ** -0.5
        self.parts = nn.ModuleList(
            CategoryVector(len(one.values), width) if one.kind == "category" else NumbersVector(one.width, width)
            for one in conditions.each
        )

    def forward(self, labels: Tensor) -> Tensor:
        vectors = [part(columns) for part, columns in zip(self.parts, labels.split(self.widths, dim=1))]
        return self.scale * torch.stack(vectors).sum(0)

    def no_labels(self, count: int) -> Tensor:
        """Labels (count, F) that say nothing."""
        return torch.full((count, sum(self.widths)), torch.nan, device=next(self.parameters()).device)


def labels_of(conditions: Conditions, columns: Sequence[np.ndarray]) -> Tensor:
    """Values of n items for each condition, see Condition.columns -> labels (n, F)."""
    parts = [one.columns(values) for one, values in zip(conditions.each, columns)]
    return torch.from_numpy(np.concatenate(parts, axis=1))
