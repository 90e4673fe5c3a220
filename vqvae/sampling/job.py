"""The common part of the modes of sample.py: the run, its model, the settings, and output files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae.data.items import center_crop
from vqvae.errors import UserError
from vqvae.images import Captions, grid, rows_of, write_png, x_of
from vqvae.inference.trained_model import TrainedModel
from vqvae.priors.sampling import Known, OnProgress
from vqvae.run.run import Run
from vqvae.sampling.classes import choose_labels
from vqvae.storage.files import path_part, write_bytes
from vqvae.surroundings.terminal import counted

SAMPLING_KEYS = ("temperature", "top_k", "top_p", "guidance", "guidance_schedule", "method", "steps", "chunk")
MOST_SHOWN = 1_000  # images in a PNG
Drawn = tuple[Tensor, list[Tensor]]  # items (n, C, *S), and their M code maps (n, *s_m)


class Job:
    """One command. `settings` holds the checked keys of sample.yaml; `out` is the folder of the results."""

    def __init__(self, run: Run, settings: dict[str, Any], out: Path) -> None:
        self.run, self.settings, self.out = run, settings, out
        if settings.get("format") is not None:
            run.data.write_as(settings["format"])

    @cached_property
    def trained(self) -> TrainedModel:
        """The run's model, with its prior if that is finished."""
        return self.run.trained_model()

    @property
    def seeds(self) -> list[int]:
        """One seed per item."""
        return list(range(self.settings["seed"], self.settings["seed"] + self.settings["n"]))

    @property
    def writes_singles(self) -> bool:
        """True if each item is also written to a file of its own: on request, and of sounds and clips by default."""
        wanted = self.settings["singles"]
        return self.run.data.writes_singles if wanted is None else wanted

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that samples can be of."""
        return self.run.class_names

    @property
    def conditions(self) -> dict[str, Any]:
        """Conditions beside the class that this command asks for."""
        return {name: value for name, value in self.settings["condition"].items() if value is not None}

    def labels(self) -> Tensor:
        """Class (n,) of each sample, -1 for none. Raises UserError for a class that samples cannot be of."""
        wanted, own = self.settings["class"], self.run.conditions.found()
        if wanted is not None and own is not None and not self.class_names:
            raise UserError(f"class={wanted}: this prior knows no class, its conditions are {', '.join(own.names)}")
        return choose_labels(wanted, self.class_names, self.seeds)

    def captions(self, labels: Tensor) -> list[str]:
        """Name of the class of each label (b,); none without classes."""
        return [self.class_names[label] if label >= 0 else "" for label in labels.tolist()]

    def draw(self, labels: Tensor, known: Known | None = None, on_progress: OnProgress | None = None) -> Drawn:
        """Draw from the prior with this command's settings -> items (n, C, *S), and their M code maps.

        Raises UserError if there is no prior, or for settings that it does not have.
        """
        return join(self.draw_chunks(labels, known, on_progress))

    def draw_chunks(
        self, labels: Tensor, known: Known | None = None, on_progress: OnProgress | None = None
    ) -> Iterator[Drawn]:
        """Draw and decode as `draw` does, a chunk of samples at a time."""
        path, mode = self.run.folder.path, self.settings["mode"]
        if self.trained.prior is None:
            raise UserError(
                f"mode={mode} needs a prior, and {path} has none: train one with python train.py "
                f"tokenizer={path} run_dir=..., or choose mode=reconstruct or mode=interpolate"
            )
        settings = {key: self.settings[key] for key in SAMPLING_KEYS if self.settings[key] is not None}
        settings |= {"conditions": self.conditions, "known": known, "on_progress": on_progress}
        for codes in self.trained.draw_chunks(self.seeds, labels, **settings):
            yield self.decode(codes), codes

    def decode(self, codes: list[Tensor]) -> Tensor:
        """Decode M code maps (n, *s_m) -> items (n, C, *S)."""
        return self.trained.in_chunks(lambda maps: [self.run.data.to_items(self.trained.decode(maps))], codes)[0]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Encode x (n, C, *S) in [-1, 1] -> M code maps (n, *s_m)."""
        return self.trained.in_chunks(lambda inputs: self.trained.encode(inputs[0]), [x])

    def x(self, items: Tensor) -> Tensor:
        """Crop and scale items as read, (n, C, *R) -> (n, C, *S) in [-1, 1], on the device."""
        return x_of(center_crop(items, self.run.data.size).to(self.run.device))

    def write_images(self, name: str, items: Tensor, columns: int, captions: Captions) -> Path:
        """Write a PNG of items (n, C, *S), in rows of `columns`; of more than MOST_SHOWN the first rows, which a note says."""
        file, rows = self.out / name, max(1, MOST_SHOWN // columns)
        if len(items) > rows * columns:
            note = f"the first {rows * columns:,} of {counted(len(items), self.run.data.noun)}"
            captions = captions._replace(rows=captions.rows[:rows], tiles=captions.tiles[: rows * columns], note=note)
            items = items[: rows * columns]
        write_png(file, grid(rows_of(self.run.data.picture(items), columns), captions))
        return file

    def write_singles(self, names: list[str], items: Tensor) -> None:
        """Write each item to a file of the data set's own kind. Names may be out of the data."""
        for name, item in zip(names, items):
            self.run.data.save(self.out / path_part(name), item)

    def write_arrays(self, name: str, items: Tensor, **arrays: Any) -> Path:
        """Write `items` in the data's own units and type, and other tensors or lists, to an .npz file."""
        plain: dict[str, Any] = {"items": self.run.data.values(items)}
        plain |= {key: np.asarray(value) for key, value in arrays.items()}
        data = io.BytesIO()
        np.savez_compressed(data, **plain)
        write_bytes(self.out / name, data.getvalue())
        return self.out / name


def join(parts: Iterable[Drawn]) -> Drawn:
    """Join what was drawn in parts."""
    items, codes = zip(*parts)
    return torch.cat(items), [torch.cat(maps) for maps in zip(*codes)]


def paint(items: Tensor, where: Tensor) -> Tensor:
    """Set items (n, C, *S) to the middle level, gray or silence, where `where` (n or 1, *S) is True."""
    return items.masked_fill(where[:, None], 128 if items.dtype == torch.uint8 else 0)
