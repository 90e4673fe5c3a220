"""A stage's log: numbers and images in files, mirrored to wandb, tensorboard and a table."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from torch import Tensor

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.images import write_png
from vqvae.metrics.registry import in_split, without_split
from vqvae.metrics.renames import rename_line
from vqvae.storage.files import append_line, write_bytes
from vqvae.training.log_settings import LogSettings
from vqvae.training.mirror import Mirror, Samples, Table
from vqvae.training.tensorboard_log import TensorBoard
from vqvae.training.wandb_run import FINISH_SECONDS, STOP_SECONDS, WandbRun

log = logging.getLogger(__name__)
MOST = 1e100  # of a float in a log; figures are computed from float32, which ends at 3e38


class Logger:
    """One stage's log, mirrored to other places within a context.

    metrics.jsonl is the source of truth and reproducible; times and memory go to timing.jsonl.

    Args:
        folder: the stage's folder in the run folder.
        stage: its name.
        settings: the other places.
        config: the resolved config, for wandb.
    """

    def __init__(self, folder: Path, stage: str, settings: LogSettings, config: dict[str, Any]) -> None:
        self.folder, self.stage, self.settings = folder, stage, settings
        self.images = folder / "images"
        self.wandb = WandbRun(folder, stage, settings, config)
        self.mirrors: list[Mirror] = []
        if distributed.is_main():
            boards = [TensorBoard(folder, self.shown)] if settings.tensorboard else []
            self.mirrors = [self.wandb, *boards, *([Table(folder, read_lines)] if settings.csv else [])]

    def __enter__(self) -> Logger:
        """Start the mirrors, before any work, so that trouble with them is known in the first seconds."""
        self._mirror(lambda mirror: mirror.start())
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.wandb.goes_on = kind is None
        seconds = FINISH_SECONDS if kind is None else STOP_SECONDS
        self._mirror(lambda mirror: mirror.finish(seconds))

    def start(self, step: int, pending: Sequence[str]) -> None:
        """Opens the log at `step`: lines after it, written by a run that was killed, are cut; and the evaluation at `step`,
        if that is still `pending`."""
        if not distributed.is_main():
            return
        self.images.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "timing.jsonl", "skipped_steps.jsonl"):
            cut_after(self.folder / name, step, "evaluate" not in pending)
        self._mirror(lambda mirror: mirror.begin(step, repeats=bool(pending)))

    def shown(self, step: int) -> Iterator[dict[str, Any]]:
        """What the files hold of a step, as mirrors show it."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            for line in read_lines(self.folder / name):
                if line.pop("step") == step:
                    yield self.settings.chosen(line)

    def log(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Writes one line of reproducible figures of a split, by name: numbers, and histograms as made in metrics.codebook."""
        named = {in_split(name, split): value for name, value in metrics.items()}
        self._write("metrics.jsonl", step, named)
        self._show(step, named)

    def log_timing(self, step: int, values: dict[str, float]) -> None:
        """Writes one line of what differs from run to run."""
        self._write("timing.jsonl", step, values)
        self._show(step, values)

    def log_skipped(self, step: int, skipped: int, indices: list[int]) -> None:
        """Write a line for a skipped step: the number of steps before it, and its batch as indices of the training set."""
        self._write("skipped_steps.jsonl", step, {"after_steps": skipped, "indices": indices})

    def log_image(self, step: int, name: str, image: Tensor) -> None:
        """image uint8 (C, H, W) -> images/<name>_<step>.png."""
        if distributed.is_main():
            file = self.images / f"{name}_{step:09d}.png"
            write_png(file, image)
            self._mirror(lambda mirror: mirror.log_image(step, name, image, file))

    def alert(self, step: int, title: str, text: str) -> None:
        """A warning in the log, and a wandb alert."""
        if distributed.is_main():
            log.warning("step %d: %s: %s", step, title, text)
            self._mirror(lambda mirror: mirror.alert(title, text))

    def results(self, figures: dict[str, Any]) -> None:
        """Sends the figures of the stage, which has ended, by name; files have them anyway."""
        self._mirror(lambda mirror: mirror.results(figures))

    def artifact(self, name: str, kind: str, path: Path | None, metadata: dict[str, Any], made_from: list[str]) -> None:
        """Sends a file or folder; see Mirror.artifact."""
        if path is not None:
            self._mirror(lambda mirror: mirror.artifact(name, kind, path, metadata, made_from))

    def samples(self, draw: Callable[[], Samples]) -> None:
        """Sends samples, which are drawn only where they are wanted."""
        self._mirror(lambda mirror: mirror.samples(draw))

    def _show(self, step: int, values: dict[str, Any]) -> None:
        if chosen := self.settings.chosen(values):
            self._mirror(lambda mirror: mirror.log(step, chosen))

    def _mirror(self, act: Callable[[Mirror], None]) -> None:
        """Does something with every mirror; one that fails is told of once, and left out from then on."""
        for mirror in list(self.mirrors):
            try:
                act(mirror)
            except Exception as error:  # whatever a library raises
                self.mirrors.remove(mirror)
                name, text = type(mirror).__name__.lower(), f"{type(error).__name__}: {error}"
                log.warning("%s failed (%s): from here on it is left out", name, " ".join(text.split())[:300])

    def _write(self, name: str, step: int, values: dict[str, Any]) -> None:
        if distributed.is_main():
            append_line(self.folder / name, json.dumps({"step": step, **values}))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file in a stage's folder, figures by their names of today; a last line cut short is left out.

    Raises UserError for a line that is not what `Logger` writes.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else [], 1):
        try:
            line = json.loads(text)
            if not is_line(line):
                raise ValueError("it is not a step and its figures")
            lines.append(rename_line(line, path.parent.name))
        except (ValueError, RecursionError) as error:
            raise UserError(f"line {number} of {path} is damaged ({error}); take it out to go on without it") from error
    return lines


def is_line(value: Any) -> bool:
    """True for {"step": number, figure: number, histogram: as made in metrics.codebook, "indices": numbers}."""
    return isinstance(value, dict) and type(value.get("step")) is int and all(starmap(is_figure, value.items()))


def is_figure(name: str, value: Any) -> bool:
    if "histogram" in name:
        parts = (
            value if isinstance(value, dict) and value.keys() == {"edges", "counts"} else {"edges": [], "counts": []}
        )
        good = all(isinstance(part, list) and all(map(is_number, part)) for part in parts.values())
        return good and len(parts["edges"]) == len(parts["counts"]) + 1 and all(map(math.isfinite, parts["edges"]))
    return all(map(is_number, value)) if name == "indices" and isinstance(value, list) else is_number(value)


def is_number(value: Any) -> bool:
    """True for numbers that a run can have computed, and a plot can show: no floats near the largest, no endless integers."""
    if type(value) is float:
        return abs(value) < MOST or not math.isfinite(value)
    return type(value) is int and abs(value) < 2**63


def cut_after(path: Path, step: int, evaluated: bool) -> None:
    """Removes lines after `step`, a last line that is not whole, and what is not `evaluated` yet: see Logger.start."""
    if path.is_file():
        last = step if evaluated else step - 1  # of lines of evaluations
        kept = [line for line in read_lines(path) if line["step"] <= (last if is_evaluation(line) else step)]
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def is_evaluation(line: dict[str, Any]) -> bool:
    return any(without_split(name)[1] == "val" for name in line)
