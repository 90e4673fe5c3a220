"""A trained autoencoder, with the prior on its codes if there is one: encode, decode, reconstruct, sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.errors import UserError, suggest
from vqvae.images import to_uint8
from vqvae.inference.inputs import (
    DataInfo,
    Picture,
    as_input,
    as_seeds,
    as_sides,
    check_model_codes,
    check_sweeps,
    named_device,
)
from vqvae.inference.labels import Labels, labels_for
from vqvae.inference.search import check_places, search
from vqvae.inference.tiles import in_tiles
from vqvae.losses.heads import Head
from vqvae.losses.likelihood import Likelihood
from vqvae.model import VQVAE
from vqvae.priors.base import Prior
from vqvae.priors.sampling import Known, OnProgress, Sampling

CHUNK = 32  # items go through the networks in padded chunks of this size, so that none depends on the number of items


class TrainedModel:
    """Encodes, decodes, reconstructs and samples, in float32 on one device. Returned by `vqvae.load`.

    x (B, C, *S) is in [-1, 1]. Codes are M maps (B, *s_m), coarse to fine. x of data=tones are mu-law levels: see
    vqvae.data.waveforms. On a GPU, convolutions may use TF32 unless torch.backends.cudnn.allow_tf32 is False.

    Args:
        model, head: the autoencoder, and what turns its output into data.
        data: what the model was trained on.
        fingerprint: of the autoencoder's weights.
        prior: of the codes, or None.
        sampling: settings of `sample` where none are given.
        guidable: True if the prior was trained with and without classes.

    >>> import vqvae
    >>> model = vqvae.load("exports/mine")
    >>> codes = model.encode(torch.zeros(2, 3, 16, 16))
    >>> model.decode(codes).shape
    torch.Size([2, 3, 16, 16])
    >>> model.sample(seeds=[0, 1], labels=[3, 3], top_p=0.95).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        model: VQVAE,
        head: Head,
        data: DataInfo,
        fingerprint: str,
        prior: Prior | None = None,
        sampling: Sampling | None = None,
        guidable: bool = False,
    ) -> None:
        self.model, self.head, self.data, self.fingerprint = model, head, data, fingerprint
        self.prior, self.sampling, self.guidable = prior, sampling or Sampling(), guidable

    def __repr__(self) -> str:
        prior = "no prior" if self.prior is None else type(self.prior).__name__
        shape = "x".join(map(str, (self.data.channels, *self.data.size)))
        return f"TrainedModel({self.data.name} {shape}, codes {self.code_shapes} of {self.codebook_sizes}, {prior})"

    @property
    def code_shapes(self) -> list[tuple[int, ...]]:
        """Dims of each code map of an item, coarse to fine."""
        return self.model.code_shapes(self.data.size)

    @property
    def codebook_sizes(self) -> list[int]:
        """K of each code map."""
        return self.model.codebook_sizes

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty for data without classes."""
        return self.data.class_names

    @property
    def sampled_classes(self) -> list[str]:
        """Names of the classes that samples can be of: none where the prior has other conditions alone."""
        conditions = None if self.prior is None else self.prior.conditions
        return self.class_names if conditions is None else conditions.class_names

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> TrainedModel:
        """Move to a device, and return the model itself. Raises UserError for one that is not there."""
        device = named_device(device)
        for network in (self.model, self.head, self.prior):
            if network is not None:
                network.to(device).eval()
        return self

    @torch.no_grad()
    def encode(self, x: Tensor | Sequence[Picture], search: int | None = None) -> list[Tensor]:
        """Encode x (B, C, *S) -> M code maps (B, *s_m). Other sizes go too, if the stride divides them.

        x may be a list of Pillow's images, of paths of image files, or of arrays in the data's units: they are brought to the
        data's size as the data was. search: number of sweeps of a search for codes with less squared error (see
        inference/search.py); None or 0: the encoder's codes, which priors learn. Raises UserError for another shape, type or
        range of x, and if there is nothing to search.
        """
        check_sweeps(search)
        x = self._checked_input(x)
        codes = self.model.encode(x)
        return self._search(x, codes, search) if search else codes

    @torch.no_grad()
    def decode(self, codes: list[Tensor]) -> Tensor:
        """Decode M code maps (B, *s_m) -> x_hat (B, C, *S) in [-1, 1]. Raises UserError for others than those of this model."""
        check_model_codes(codes, self.code_shapes, self.codebook_sizes)
        return self.head.to_image(self.model.decode([m.to(self.device) for m in codes]))

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor | Sequence[Picture],
        search: int | None = None,
        tile: int | Sequence[int] | Literal["auto"] | None = None,
    ) -> Tensor:
        """Encode and decode x (B, C, *S) -> x_hat (B, C, *S) in [-1, 1]. x and `search` as in `encode`.

        tile: dims of a tile, or the side of all, or "auto". Then x has any size, pictures keep their own, and memory is needed
        for a tile at a time: see `in_tiles`.
        """
        check_sweeps(search)
        if tile is not None:
            whole = as_input(x, self.data._replace(fit="keep")).to(self.device)
            sides = as_sides(tile, len(self.data.size))
            return in_tiles(lambda part: self.reconstruct(part, search), self.model, whole, self.data.size, sides)
        if search:
            return self.decode(self.encode(x, search))
        return self.head.to_image(self.model(self._checked_input(x)).decoded)

    def values(self, x: Tensor) -> np.ndarray:
        """x (B, C, *S) in [-1, 1] -> the data's own units and type, such as uint16. Of data=tones mu-law levels, uint8."""
        return to_uint8(x).cpu().numpy() if self.data.levels is None else self.data.levels.values(x)

    def sample(
        self,
        seeds: Sequence[int],
        labels: Labels = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        known: Known | None = None,
        on_progress: OnProgress | None = None,
        **settings: Any,
    ) -> Tensor:
        """Draw one item per seed -> (n, C, *S) in [-1, 1], on the CPU. Arguments as in `sample_codes`."""
        codes = self.sample_codes(
            seeds, labels, conditions=conditions, known=known, on_progress=on_progress, **settings
        )
        return self.in_chunks(lambda maps: [self.decode(maps)], codes)[0]

    def sample_codes(
        self,
        seeds: Sequence[int],
        labels: Labels = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        known: Known | None = None,
        on_progress: OnProgress | None = None,
        **settings: Any,
    ) -> list[Tensor]:
        """Draw one set of code maps per seed from the prior -> M maps (n, *s_m), on the CPU.

        Sample i depends on seed i, label i and the i-th known codes alone.

        labels: class names or numbers, -1 or None for no class. conditions: of a prior with more than the class, name -> a
        value for all samples or one each, such as {"colour": "red", "vector": array (W,) or (n, W), or its .npy file}; others
        are not given. known: codes to keep. on_progress: called with the codes and the masks of those that are drawn, for
        the first chunk of samples. settings: fields of vqvae.priors.sampling.Sampling
        that differ from the model's own, such as temperature=0.9 or guidance=1.
        Raises UserError without a prior, for unknown settings, and for values out of range.
        """
        drawn = list(
            self.draw_chunks(seeds, labels, conditions=conditions, known=known, on_progress=on_progress, **settings)
        )
        return [torch.cat(maps) for maps in zip(*drawn)]

    def draw_chunks(
        self,
        seeds: Sequence[int],
        labels: Labels = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        known: Known | None = None,
        on_progress: OnProgress | None = None,
        **settings: Any,
    ) -> Iterator[list[Tensor]]:
        """Draw as `sample_codes` does, a chunk of samples at a time: for more than memory should hold."""
        if self.prior is None:
            raise UserError("this model has no prior: train one, and load or export the run when it is finished")
        sampling = self.sampling_with(settings)
        seeds = as_seeds(seeds)
        chosen = labels_for(self.prior, self.class_names, len(seeds), labels, conditions or {}).to(self.device)
        size = sampling.chunk or self.prior.samples_at_a_time
        starts = range(0, len(seeds), size)
        total = len(starts) * self.prior.codes_per_sample
        with tqdm(
            total=total, desc=f"drawing {len(seeds):,} samples", unit="code", disable=distributed.bar_hidden()
        ) as bar:
            for chunk, start in enumerate(starts):
                rows = slice(start, start + size)
                progress = Progress(bar, chunk * self.prior.codes_per_sample, None if start else on_progress)
                part = None if known is None else known.rows(rows, self.device)
                report = progress if (progress.needed and self.device.type == "cpu") or progress.on_progress else None
                maps = self.prior.sample(list(seeds[rows]), chosen[rows], sampling, part, report)
                bar.update((chunk + 1) * self.prior.codes_per_sample - bar.n)
                yield [m.cpu() for m in maps]

    def sampling_with(self, settings: dict[str, Any]) -> Sampling:
        """The model's sampling with other settings. Raises UserError for those that do not exist, or that the prior lacks."""
        names = [field.name for field in fields(Sampling)]
        if unknown := sorted(set(settings) - set(names)):
            raise UserError(f"{unknown[0]} is not a setting of sampling; {suggest(unknown[0], names)}")
        sampling = replace(self.sampling, **settings)
        if sampling.guided and not self.class_names and (self.prior is None or self.prior.conditions is None):
            raise UserError(f"guidance={sampling.guidance} needs classes, and this model's data has none")
        if sampling.guided and not self.guidable:
            raise UserError(
                f"guidance={sampling.guidance} needs a prior that was also trained without the class, and this one had "
                "prior.class_dropout=0: train one with prior.class_dropout=0.1"
            )
        if sampling.steps is not None and self.prior is not None and not self.prior.masks:
            raise UserError(
                f"steps={sampling.steps} is for masked priors: this one draws one {self.prior.draws} after another"
            )
        return sampling

    @torch.no_grad()
    def in_chunks(self, function: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
        """Apply `function` to tensors of n rows each, in chunks padded to CHUNK -> its outputs (n, ...), on the CPU."""
        count = len(inputs[0])
        parts = []
        for start in range(0, count, CHUNK):
            rows = torch.arange(start, start + CHUNK).clamp_max(count - 1)  # padded by the last row
            outputs = function([tensor[rows.to(tensor.device)].to(self.device) for tensor in inputs])
            parts.append([output[: count - start].cpu() for output in outputs])
        return [torch.cat(outputs) for outputs in zip(*parts)]

    def check_searchable(self, size: tuple[int, ...]) -> None:
        """Raise UserError if codes of data with dims *S cannot be searched for."""
        if isinstance(self.head, Likelihood):
            raise UserError(f"it searches for less squared error, and loss={self.head.name} is a likelihood")
        check_places(self.model, size)

    def _search(self, x: Tensor, codes: list[Tensor], sweeps: int) -> list[Tensor]:
        self.check_searchable(tuple(x.shape[2:]))
        return search(self.model, self.head.to_image, x, codes, sweeps)

    def _checked_input(self, x: Tensor | Sequence[Picture]) -> Tensor:
        """x on the device. Raises UserError for another shape, type or range."""
        x = as_input(x, self.data)
        self.model.code_shapes(tuple(x.shape[2:]))  # refuses sizes that the stride does not divide
        return x.to(self.device)


class Progress:
    """Progress callback of one chunk: moves the bar, which stood at `before`, and calls `on_progress`."""

    def __init__(self, bar: Any, before: int, on_progress: OnProgress | None) -> None:
        self.bar, self.before, self.on_progress = bar, before, on_progress

    @property
    def needed(self) -> bool:
        """True if a bar is shown or a callback is attached."""
        return self.on_progress is not None or not self.bar.disable

    def __call__(self, codes: list[Tensor], drawn: list[Tensor]) -> None:
        if not self.bar.disable:
            self.bar.update(self.before + sum(int(m[0].sum()) for m in drawn) - self.bar.n)
        if self.on_progress is not None:
            self.on_progress(codes, drawn)
