"""What a stage's log is shown in beside its own files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vqvae.storage.files import write_bytes


class Samples(NamedTuple):
    """Samples uint8 (n, 1 or 3, H, W), with the class and the seed of each."""

    images: Tensor
    classes: list[str]
    seeds: list[int]


class Mirror:
    """A second place for a stage's log, on rank 0. What a place has no use for, it leaves out."""

    def start(self) -> None:
        """Open it, before any work."""

    def begin(self, step: int, repeats: bool) -> None:
        """Training begins, or goes on, at this step: what came later is void. repeats: what was due at it is done again."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Take numbers, and histograms {edges, counts} as made in metrics.codebook, by their names in logs."""

    def log_image(self, step: int, name: str, image: Tensor, file: Path) -> None:
        """Take an image uint8 (1 or 3, H, W), which is also in a file."""

    def alert(self, title: str, text: str) -> None:
        """Take a warning."""

    def results(self, figures: dict[str, Any]) -> None:
        """Take the figures of a stage that has ended, by name."""

    def samples(self, draw: Callable[[], Samples]) -> None:
        """Take samples of a prior that has ended; `draw` makes them."""

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any], made_from: list[str]) -> None:
        """Take a file or folder, which stays as it is. `made_from` names the artifacts that it came from."""

    def finish(self, seconds: float) -> None:
        """Close it, within so many seconds."""


class Table(Mirror):
    """metrics.csv: a row for each step that has figures, a column for each of them; histograms are left out.

    It is made of the files of the log, at each evaluation and at the end, so it holds what they hold after any stop.

    Args:
        folder: the stage's folder.
        read_lines: reads a file of the log.
    """

    def __init__(self, folder: Path, read_lines: Callable[[Path], list[dict[str, Any]]]) -> None:
        self.folder, self.read_lines = folder, read_lines

    def log(self, step: int, values: dict[str, Any]) -> None:
        if any("/val/" in name for name in values):
            self.write()

    def finish(self, seconds: float) -> None:
        self.write()

    def write(self) -> None:
        """Write the file anew."""
        rows: dict[int, dict[str, Any]] = {}
        for name in ("metrics.jsonl", "timing.jsonl"):
            for line in self.read_lines(self.folder / name):
                numbers = {key: value for key, value in line.items() if not isinstance(value, dict)}
                rows.setdefault(line["step"], {}).update(numbers)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows.values() for name in row)))
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))
        write_bytes(self.folder / "metrics.csv", text.getvalue().encode())
