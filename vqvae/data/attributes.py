"""What data brings of an item beside its class: texts, numbers, and vectors that were made elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vqvae.errors import UserError
from vqvae.surroundings.terminal import printable

Kind = Literal["category", "number"]
AT_ONCE = 2**24  # numbers of a file of vectors


class Attribute(NamedTuple):
    """Values of an attribute, and the rows of them (n,) that the items of a split have.

    values: texts (R,), None where there is none; numbers (R,) float64, NaN where there is none; or vectors (R, W), on disk.
    """

    values: np.ndarray
    rows: np.ndarray

    @property
    def kind(self) -> str:
        return "category" if self.values.dtype == object else "number" if self.values.ndim == 1 else "vector"

    def of(self, items: np.ndarray) -> np.ndarray:
        """Values of the items with these numbers (b,)."""
        return self.values[self.rows[items]]


def read_column(column: Sequence[Any], kind: Kind | None, where: Callable[[int], str]) -> np.ndarray:
    """A column of a table, None or empty where there is no value -> texts (R,), None for none, or numbers (R,), NaN for none.

    kind: None: numbers where all values are numbers. where: row -> its name in messages. Raises UserError for what is neither a
    text nor a number, and for numbers that are not finite.
    """
    given = [None if value is None or value == "" else value for value in column]
    for row, value in enumerate(given):
        if value is not None and not isinstance(value, (str, int, float)):
            raise UserError(f"{where(row)} is neither a text nor a number")
    numbers = [number_of(value) for value in given]
    if kind is None:
        kind = "category" if all(value is None for value in given) or None in numbers else "number"
    if kind == "category":
        texts = np.empty(len(given), object)
        texts[:] = [None if value is None else as_text(value) for value in given]
        return texts
    for row, (value, number) in enumerate(zip(given, numbers)):
        if value is not None and (number is None or not math.isfinite(number)):
            raise UserError(
                f"{where(row)}={printable(str(value))[:80]} is no number: leave it empty where there is none, or set "
                "data.attributes={<its column>: category}"
            )
    return np.array(numbers, np.float64)


def number_of(value: Any) -> float | None:
    """A number, NaN for no value; None for a text that is none."""
    if value is None:
        return math.nan
    try:
        return None if isinstance(value, bool) else float(value)
    except (ValueError, OverflowError):
        return None


def as_text(value: str | int | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_vectors(file: Path, key: str, count: int) -> np.ndarray:
    """Vectors (count, W) of a .npy file, mapped into memory. key: the setting that names it.

    Raises UserError for a file that cannot be read, holds another number of rows, or NaN.
    """
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy and zipfile raise many kinds
        raise UserError(f"{key} cannot be read: {error}") from error
    if (
        not isinstance(vectors, np.ndarray)
        or vectors.ndim != 2
        or vectors.dtype.kind not in "fiu"
        or not vectors.shape[1]
    ):
        raise UserError(f"{key} must hold an array (items, W) of numbers")
    if len(vectors) != count:
        raise UserError(
            f"{key} has {len(vectors):,} rows, and there are {count:,} items: it needs a row for each, in their order"
        )
    for start in range(0, count, max(1, AT_ONCE // vectors.shape[1])):
        good = np.isfinite(vectors[start : start + max(1, AT_ONCE // vectors.shape[1])]).all(1)
        if not good.all():
            raise UserError(f"{key} holds NaN or infinite numbers in row {start + int(good.argmin())}")
    return vectors
