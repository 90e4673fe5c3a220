"""A stage's log in tensorboard."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from vqvae.surroundings.own_folder import own_folder
from vqvae.training.mirror import Mirror


class TensorBoard(Mirror):
    """Curves, histograms and pictures in the folder `tensorboard` of a stage's folder: `tensorboard --logdir runs`.

    shown: a step -> what the files of the log hold of it, which is written again where the rest of the step is repeated.
    """

    def __init__(self, folder: Path, shown: Callable[[int], Iterator[dict[str, Any]]]) -> None:
        self.folder, self.shown = folder.absolute() / "tensorboard", shown
        self.writer: Any = None

    def begin(self, step: int, repeats: bool) -> None:
        with own_folder():
            from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=step if repeats else step + 1)
        for values in self.shown(step) if repeats else []:
            self.log(step, values)

    def log(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                self._histogram(step, name, value["edges"], value["counts"])
            else:
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def log_image(self, step: int, name: str, image: Tensor, file: Path) -> None:
        self.writer.add_image(f"images/{name}", image.cpu(), step)

    def finish(self, seconds: float) -> None:
        if self.writer is not None:
            self.writer.close()

    def _histogram(self, step: int, name: str, edges: list[float], counts: list[float]) -> None:
        middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
        total = sum(count * x for count, x in zip(counts, middles))
        squares = sum(count * x * x for count, x in zip(counts, middles))
        about = {"min": edges[0], "max": edges[-1], "num": sum(counts), "sum": total, "sum_squares": squares}
        self.writer.add_histogram_raw(name, **about, bucket_limits=edges[1:], bucket_counts=counts, global_step=step)
