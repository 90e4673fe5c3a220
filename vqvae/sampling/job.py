"""What every mode of sample.py works with: the run, its tokenizer and prior, the settings, and where results go."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae.data.loader import centre_crop
from vqvae.errors import UserError
from vqvae.images import grid, normalise, to_uint8, write_png
from vqvae.priors.autoregressive import AutoregressivePrior
from vqvae.priors.base import Prior
from vqvae.priors.sampling import Sampling
from vqvae.run.pipeline import Run, Tokenizer
from vqvae.storage.files import write_bytes

CHUNK = (
    32  # items go through the networks in padded chunks of this size, so that none depends on how many are asked for
)


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
        return normalise(centre_crop(items, self.run.data.size).to(self.run.device))

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


@torch.no_grad()
def in_chunks(
    tokenizer: Tokenizer, network: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor]
) -> list[Tensor]:
    """A part of the tokenizer on tensors of n rows each, in chunks padded to CHUNK -> its outputs (n, ...), on the CPU."""
    device = next(tokenizer.model.parameters()).device
    count = len(inputs[0])
    parts = []
    for start in range(0, count, CHUNK):
        rows = torch.arange(start, start + CHUNK).clamp_max(count - 1)  # padded by the last
        outputs = network([one[rows.to(one.device)].to(device) for one in inputs])
        parts.append([one[: count - start].cpu() for one in outputs])
    return [torch.cat(outputs) for outputs in zip(*parts)]


def encode(tokenizer: Tokenizer, x: Tensor) -> list[Tensor]:
    """x (n, C, *S) in [-1, 1] -> M code maps (n, *s_m)."""
    return in_chunks(tokenizer, lambda inputs: tokenizer.encode(inputs[0]), [x])


def decode(tokenizer: Tokenizer, codes: list[Tensor]) -> Tensor:
    """M code maps (n, *s_m) -> items uint8 (n, C, *S)."""
    return in_chunks(tokenizer, lambda inputs: [to_uint8(tokenizer.decode(inputs))], codes)[0]


def features(tokenizer: Tokenizer, x: Tensor) -> list[Tensor]:
    """x (n, C, *S) in [-1, 1] -> what each level's encoder makes of it, L x (n, D, *s_l)."""
    return in_chunks(tokenizer, lambda inputs: tokenizer.model.features(inputs[0]), [x])


def from_features(tokenizer: Tokenizer, levels: list[Tensor]) -> Tensor:
    """L x (n, D, *s_l) of `features` -> quantized and decoded, (n, C, *S) in [-1, 1]."""

    def network(inputs: list[Tensor]) -> list[Tensor]:
        return [tokenizer.reconstruction.to_image(tokenizer.model.from_features(inputs).decoded)]

    return in_chunks(tokenizer, network, levels)[0]


def rows_of(pictures: Tensor, columns: int) -> list[Tensor]:
    """Pictures (n, C, H, W) -> rows of equal length, the last filled up with white."""
    missing = -len(pictures) % columns
    white = pictures.new_full((missing, *pictures.shape[1:]), 255)
    return list(torch.cat([pictures, white]).split(columns))


def paint(items: Tensor, where: Tensor) -> Tensor:
    """Items uint8 (n, C, *S) with the middle level, grey or silence, where `where` (n or 1, *S) is True."""
    return items.masked_fill(where[:, None], 128)
