"""What every mode of sample.py works with: the run, its tokenizer and prior, the settings, and where results go."""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vqvae.data.items import center_crop
from vqvae.errors import UserError
from vqvae.images import grid, normalise, rows_of, write_png
from vqvae.inference.tokenizer import Tokenizer
from vqvae.priors.autoregressive import AutoregressivePrior
from vqvae.priors.base import Prior
from vqvae.priors.sampling import Sampling
from vqvae.run.run import Run
from vqvae.storage.files import write_bytes


class Job:
    """One command. `settings` holds the keys of sample.yaml, checked; `out` is the folder of the results."""

    def __init__(self, run: Run, settings: dict[str, Any], out: Path) -> None:
        self.run, self.settings, self.out = run, settings, out

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.run.tokenizer()

    @property
    def seeds(self) -> list[int]:
        """One a picture: picture i depends on seed i alone."""
        return list(range(self.settings["seed"], self.settings["seed"] + self.settings["n"]))

    @cached_property
    def sampling(self) -> Sampling:
        """How codes are drawn. Raises UserError for guidance that this run's prior cannot give, ValueError out of range."""
        keys = ("temperature", "top_k", "top_p", "guidance", "guidance_schedule", "method", "steps")
        chosen = {key: self.settings[key] for key in keys}
        if chosen["guidance"] is None:
            chosen["guidance"] = self.run.sampling().guidance
        sampling = Sampling(**chosen)
        if sampling.guided and not self.run.data.class_names:
            raise UserError(f"guidance={sampling.guidance} needs classes, and this run's data has none")
        if sampling.guided and not self.run.cfg.prior.class_dropout:
            raise UserError(
                f"guidance={sampling.guidance} needs a prior that was also trained without the class, and this one had "
                "prior.class_dropout=0: train one with prior.class_dropout=0.1"
            )
        return sampling

    @cached_property
    def prior(self) -> Prior:
        """The finished prior. Raises UserError where there is none, or where it has no steps and is given some."""
        path = self.run.folder.path
        if self.run.folder.weights_file("prior") is None:
            raise UserError(
                f"mode={self.settings['mode']} needs a prior, and {path} has none: train one with python train.py "
                f"tokenizer={path} run_dir=..., or choose mode=reconstruct or mode=interpolate"
            )
        sampling, prior = self.sampling, self.run.prior(self.tokenizer.model)
        if sampling.steps is not None and isinstance(prior, AutoregressivePrior):
            raise UserError(f"steps={sampling.steps} is for masked priors: this one draws one code after another")
        return prior

    def x(self, items: Tensor) -> Tensor:
        """Items as they are read, uint8 (n, C, *R) -> (n, C, *S) in [-1, 1], on the device."""
        return normalise(center_crop(items, self.run.data.size).to(self.run.device))

    def write_pictures(self, name: str, items: Tensor, columns: int) -> Path:
        """Items uint8 (n, C, *S) -> a PNG of what the data set shows of them, in rows of `columns`."""
        file = self.out / name
        write_png(file, grid(rows_of(self.run.data.show(items), columns)))
        return file

    def write_singles(self, names: list[str], items: Tensor) -> None:
        """Each item as a file of the data set's own kind."""
        for name, item in zip(names, items):
            self.run.data.save(self.out / name, item)

    def write_arrays(self, name: str, **arrays: Any) -> Path:
        """An .npz file of tensors or lists."""
        plain: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
        data = io.BytesIO()
        np.savez_compressed(data, **plain)
        write_bytes(self.out / name, data.getvalue())
        return self.out / name


def paint(items: Tensor, where: Tensor) -> Tensor:
    """Items uint8 (n, C, *S) with the middle level, grey or silence, where `where` (n or 1, *S) is True."""
    return items.masked_fill(where[:, None], 128)
