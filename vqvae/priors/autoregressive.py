"""Priors that draw one code after another, from a cache of what was computed before."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vqvae.devices.graphs import captures_on
from vqvae.priors.base import Prior, Scored, graphs_of
from vqvae.priors.heads import CodeSampler, Head
from vqvae.priors.sampling import Drawing, Known, OnProgress, Way

GUESSES_IN_A_GRAPH = 4  # before the host looks whether all codes are final


class MapNetwork(nn.Module, ABC):
    """The network of one code map: p(codes | condition), one code after another in raster order.

    A variant writes `forward` for all codes at once, and `begin` and `next_hidden` for one after another: its cache
    keeps what every layer knows of the past, so that a code costs one position's work. What they give are hidden states
    of C channels, from which `head` predicts the codes. `grid` are the map's dims *s.
    """

    grid: tuple[int, ...]
    head: Head

    @abstractmethod
    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """codes (B, *s), condition (B, width, *s) -> hidden states (B, C, *s), each of the codes before it."""

    @abstractmethod
    def begin(self, condition: Tensor) -> Any:
        """condition (B, width, *s) -> the cache for a batch of samples, before their first code."""

    @abstractmethod
    def next_hidden(self, cache: Any, codes: Tensor, position: int) -> Tensor:
        """codes (B, N), those before `position` drawn -> state (B, C) at `position`. Called once for each, in order."""


class AutoregressivePrior(Prior):
    """p(codes) as a product over an order of (map, position); one MapNetwork a map.

    Three ways of sampling give the same codes for the same noise: `cached`; `uncached`, the whole network for every code;
    and `jacobi`, the whole network on guesses of all codes until they no longer change (fixed-point iteration: Wiggers &
    Hoogeboom 2020, arXiv 2002.09928, section 3; Song et al. 2021, arXiv 2002.03629).
    """

    methods = ("cached", "jacobi", "uncached")
    decided_by_host = ("jacobi",)
    networks: Sequence[MapNetwork]

    def order(self) -> Iterator[tuple[int, int]]:
        """(map, flat position in it) in the order of generation: maps coarse to fine, positions in raster order."""
        for m, shape in enumerate(self.code_shapes):
            for position in range(math.prod(shape)):
                yield m, position

    def hidden(self, codes: list[Tensor], labels: Tensor) -> list[Tensor]:
        """M maps (B, *s_m), labels (B,) -> M states (B, C, *s_m), aligned: that of a code sees only codes before it."""
        return [network(codes[m], self.condition(m, codes, labels)) for m, network in enumerate(self.networks)]

    def forward(self, codes: list[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> Scored:
        return self.scored(self.hidden(codes, labels), codes, label_smoothing)

    def sample_chunk(
        self, noise: Tensor, labels: Tensor, drawing: Drawing, known: Known | None, on_progress: OnProgress | None
    ) -> list[Tensor]:
        noises, progress = self.parts_of_maps(noise)
        codes, done = self.start_codes(labels, known)
        method = drawing.way.method or self.methods[0]
        for m, network in enumerate(self.networks):
            flat, known_here = codes[m].flatten(1), done[m].flatten(1)  # (B, N), views
            kept = known_here.clone() if known is not None else None
            draw = CodeSampler(drawing, noises[m], progress[m], flat.clone(), kept)
            condition = self.sampling_condition(m, codes, labels, drawing.way)
            if method == "jacobi":
                counts = draw_by_guesses(self.guesses(m, drawing.way, len(flat)), condition, flat, draw)
            else:
                counts = (draw_cached if method == "cached" else draw_uncached)(network, condition, flat, draw)
            for count in counts:
                if on_progress is not None:
                    known_here[:, :count] = True
                    on_progress(codes, done)
        return codes

    def guesses(self, m: int, way: Way, size: int) -> Callable[[Any], Any]:
        """`guess` of map m for `size` samples, some rounds of it as a graph where there are graphs."""
        if captures_on(self.device):
            return partial(graphs_of(self), (AutoregressivePrior.guess, (m, way, GUESSES_IN_A_GRAPH), size))
        return partial(self.guess, (m, way, 1))

    def guess(self, kind: tuple[int, Way, int], inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Rounds of `jacobi` for a map: guesses (B, N) and () how many are final -> both after (map, way, rounds).

        inputs: guesses, final, condition, numbers, and what a CodeSampler takes behind its Drawing. Guesses that are all final
        stay, so that further rounds do no harm.
        """
        (m, way, rounds), (flat, final, condition, numbers, *parts) = kind, inputs
        draw, count = CodeSampler(Drawing(way, numbers), *parts), flat.shape[1]
        places = torch.arange(count, device=flat.device)
        for _ in range(rounds):
            guesses = draw(self.networks[m].head, all_hidden(self.networks[m], condition, flat, draw.copies))  # (B, N)
            changed = (guesses != flat).any(0) & (places >= final)  # (N,)
            final = torch.where(changed.any(), changed.int().argmax() + 1, count)
            flat = guesses
        return flat, final


# Each writes the codes of one map into flat (B, N), and yields how many are final. condition (copies B, width, *s).


def draw_cached(network: MapNetwork, condition: Tensor, flat: Tensor, draw: CodeSampler) -> Iterator[int]:
    """One position's work for every code."""
    cache = network.begin(condition)
    for position in range(flat.shape[1]):
        hidden = network.next_hidden(cache, flat.repeat(draw.copies, 1) if draw.copies > 1 else flat, position)
        flat[:, position : position + 1] = draw(network.head, hidden, slice(position, position + 1))
        yield position + 1


def draw_uncached(network: MapNetwork, condition: Tensor, flat: Tensor, draw: CodeSampler) -> Iterator[int]:
    """The whole network for every code: slow, and needs no cache to be right."""
    for position in range(flat.shape[1]):
        hidden = all_hidden(network, condition, flat, draw.copies).flatten(2)[:, :, position]  # (copies B, C)
        flat[:, position : position + 1] = draw(network.head, hidden, slice(position, position + 1))
        yield position + 1


def draw_by_guesses(
    guess: Callable[[Any], tuple[Tensor, Tensor]], condition: Tensor, flat: Tensor, draw: CodeSampler
) -> Iterator[int]:
    """All codes again and again, each from the guesses of those before it; those up to the first change are final.

    guess: see AutoregressivePrior.guess.
    """
    final, count, parts = flat.new_zeros(()), 0, (draw.noise, draw.progress, draw.codes, draw.kept)
    while count < flat.shape[1]:
        guesses, final = guess((flat, final, condition, draw.drawing.numbers, *parts))
        flat.copy_(guesses)
        count = int(final)
        yield count


def all_hidden(network: MapNetwork, condition: Tensor, flat: Tensor, copies: int) -> Tensor:
    """flat (B, N) -> hidden states (copies B, C, *s)."""
    return network(flat.repeat(copies, 1).view(-1, *network.grid), condition)
