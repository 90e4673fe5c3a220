"""Codes from the prior, decoded by the tokenizer, with a bar; and the classes that a user may ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.errors import UserError, suggest
from vqvae.inference.chunks import decode
from vqvae.inference.tokenizer import Tokenizer
from vqvae.priors.base import Prior
from vqvae.priors.sampling import Known, Sampling, Watch


def draw_pictures(
    prior: Prior,
    tokenizer: Tokenizer,
    seeds: list[int],
    labels: Tensor,
    sampling: Sampling,
    known: Known | None = None,
    watch: Watch | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """seeds (n), labels (n,) -> items uint8 (n, C, *S) and their M code maps; item i depends on seed i alone.

    `known` codes are kept. `watch` sees the first of the chunks that are drawn at a time.
    """
    device = next(prior.parameters()).device
    size, labels = prior.samples_at_a_time, labels.to(device)
    drawn: list[list[Tensor]] = []
    starts = range(0, len(seeds), size)
    with tqdm(
        total=len(starts) * prior.codes_per_sample, desc="drawing", unit="code", disable=distributed.bar_hidden()
    ) as bar:
        for chunk, start in enumerate(starts):
            rows = slice(start, start + size)
            part = known_rows(known, rows, device) if known else None
            look = Look(bar, chunk * prior.codes_per_sample, watch if start == 0 else None)
            drawn.append(prior.sample(seeds[rows], labels[rows], sampling, part, look if look.needed else None))
    codes = [torch.cat(maps).cpu() for maps in zip(*drawn)]
    return decode(tokenizer, codes), codes


def known_rows(known: Known, rows: slice, device: torch.device) -> Known:
    """The known codes of some of the samples."""
    return Known(*([m[rows].to(device) for m in maps] for maps in (known.codes, known.kept)))


class Look:
    """Moves the bar while a chunk is drawn, `before` being where it stood, and passes on what it sees."""

    def __init__(self, bar: Any, before: int, watch: Watch | None) -> None:
        self.bar, self.before, self.watch = bar, before, watch

    @property
    def needed(self) -> bool:
        """Whether anybody looks."""
        return self.watch is not None or not self.bar.disable

    def __call__(self, codes: list[Tensor], drawn: list[Tensor]) -> None:
        if not self.bar.disable:
            self.bar.update(self.before + sum(int(m[0].sum()) for m in drawn) - self.bar.n)
        if self.watch is not None:
            self.watch(codes, drawn)


def choose_labels(wanted: Any, class_names: list[str], seeds: list[int]) -> Tensor:
    """What a user calls `class` -> labels (n,): a number, a name, 'all' for each class in turn, or null.

    null draws each sample's class from its own seed. Without classes every label is -1. Raises UserError for an
    unknown class.
    """
    count = len(seeds)
    if not class_names:
        if wanted is not None:
            raise UserError(f"class={wanted}: this run's data has no classes")
        return torch.full((count,), -1)
    if wanted is None:
        generators = (torch.Generator().manual_seed(seed + 1) for seed in seeds)
        return torch.stack([torch.randint(len(class_names), (), generator=g) for g in generators])
    if wanted == "all":
        rows = -(-count // len(class_names))
        return torch.arange(len(class_names)).repeat_interleave(rows)[:count]
    if str(wanted) in class_names:
        return torch.full((count,), class_names.index(str(wanted)))
    if isinstance(wanted, int) and 0 <= wanted < len(class_names):
        return torch.full((count,), wanted)
    raise UserError(
        f"class={wanted} does not exist; {suggest(str(wanted), class_names)} (or 0 .. {len(class_names) - 1})"
    )
