"""The contract of every prior: likelihood and sampling of code maps, given a class and coarser maps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from vqvae.devices.graphs import Graphs, captures_on
from vqvae.errors import UserError
from vqvae.priors.conditions import ClassVectors, Conditions, ConditionVectors, nothing
from vqvae.priors.context import ContextNetwork, Positions
from vqvae.priors.sampling import Drawing, Known, OnProgress, Sampling, Way, uniform_noise
from vqvae.ranges import PositiveInt, checked


@dataclass
class Scored:
    """loss: what training minimizes, nats per code, scalar. nats: negative log-likelihood of every code, or a bound on it:

    M maps (B, *s_m), float32.
    """

    loss: Tensor
    nats: list[Tensor]


GRAPHS: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Graphs]] = WeakKeyDictionary()


def graphs_of(prior: Prior) -> Graphs:
    """The graphs that draw from a prior; new ones when its weights have moved in memory.

    Their kinds begin with a method of the prior and its first argument. (Its second are the inputs.)
    """
    places = tuple(tensor.data_ptr() for tensor in [*prior.parameters(), *prior.buffers()])
    if prior not in GRAPHS or GRAPHS[prior][0] != places:
        weak = ref(prior)  # else the graphs would keep the prior
        GRAPHS[prior] = places, Graphs("sampling", lambda kind, inputs: kind[0](weak(), kind[1], inputs))
    return GRAPHS[prior][1]


def check_heads(heads: int, width: int) -> None:
    """Raises UserError unless `heads` divides `width`."""
    if width % heads:
        raise UserError(f"heads must divide width={width}, got {heads}")


def plane_of(grid: tuple[int, ...]) -> tuple[int, int]:
    """Dims of a map of 1 or 2 dims as (H, W): 1-D maps are grids of one row."""
    return (grid[0], grid[1]) if len(grid) == 2 else (1, grid[0])


def check_planes(code_shapes: list[tuple[int, ...]], what: str) -> None:
    """Raises UserError for maps of more than 2 dims."""
    if any(len(shape) > 2 for shape in code_shapes):
        raise UserError(f"{what} predicts maps of 1 or 2 dims, got {code_shapes}: prior=transformer predicts any")


@checked
class Prior(nn.Module, ABC):
    """A distribution over M code maps (B, *s_m), given a class where the data has classes.

    Maps are predicted in their order, coarse to fine: each has a network of its own, whose condition at each position is the
    sum of a learned vector of the class, one of the position, and what a ContextNetwork makes of the maps before it.

    Args:
        code_shapes: dims of each map, coarse to fine.
        digits: of each map, how many values the digits of its codes have, whose product is K: see heads.Head. [K] where a code
            is predicted whole.
        num_classes: 0 for data without classes.
        width: channels of the condition.
        network: (digits, dims of a map) -> the network of that map.

    bits_name says what the nats are; methods are the ways of drawing, the default first; masks: True if digits are hidden and
    predicted each on its own, not each given those before it; draws: what is drawn after another otherwise.
    """

    bits_name = "bits_per_code"
    masks = False
    draws = "code"
    methods: tuple[str, ...]
    decided_by_host: tuple[
        str, ...
    ] = ()  # of them, those that look at values to know how to go on: no graph of a chunk
    classes: ClassVectors | ConditionVectors  # of labels
    conditions: Conditions | None  # what labels hold; None: the class alone
    networks: Sequence[
        nn.Module
    ]  # one a map, coarse to fine, with the `embedding` of its codes where they are its inputs

    def __init__(
        self,
        code_shapes: list[tuple[int, ...]],
        digits: list[list[int]],
        num_classes: int,
        width: PositiveInt,
        network: Callable[[list[int], tuple[int, ...]], nn.Module],
    ) -> None:
        super().__init__()
        if not code_shapes:
            raise UserError("a prior needs codes, and quantizer=identity has none: train with stages=[autoencoder]")
        self.code_shapes = [tuple(shape) for shape in code_shapes]
        self.digits, self.codebook_sizes = digits, [math.prod(of_map) for of_map in digits]  # K of each map
        self.num_classes = num_classes
        self.codes_per_sample = sum(math.prod(shape) for shape in self.code_shapes)
        self.width, self.conditions = width, None
        self.classes = ClassVectors(num_classes + 1, width)
        self.positions = nn.ModuleList(Positions(shape, width) for shape in self.code_shapes)
        self.contexts = nn.ModuleList(
            ContextNetwork(len(shape), self.codebook_sizes[:m], width) for m, shape in enumerate(self.code_shapes) if m
        )

        self.networks = nn.ModuleList(  # type: ignore[assignment]
            network(of_map, shape) for of_map, shape in zip(digits, self.code_shapes)
        )

    def condition_on(self, conditions: Conditions) -> None:
        """Take labels (B, F) of several conditions in place of the class alone, before weights are trained or loaded."""
        self.conditions, self.classes = conditions, ConditionVectors(conditions, self.width)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def samples_at_a_time(self) -> int:
        """Samples are drawn in padded chunks of this size, so that none depends on how many are asked for.

        Large for small grids, where many small matrix products cost more than a few large ones; small for large ones,
        where padding would cost the most. On a GPU, where a small chunk takes as long as a large one, up to 1,024, as long as
        a GiB holds the logits of all codes at once.
        """
        if self.device.type != "cuda":
            return min(64, max(16, 16384 // self.codes_per_sample))
        logits = sum(math.prod(shape) * max(of_map) for shape, of_map in zip(self.code_shapes, self.digits))
        return max(16, min(1024, 2**18 // self.codes_per_sample, 2**28 // logits))

    def begin_step(self, step: int, steps: int) -> Hashable:
        """Sets what follows a schedule, before every training step. Returns its kind, as Quantizer.begin_step does."""
        return None

    def condition(self, m: int, coarser: list[Tensor], labels: Tensor) -> Tensor:
        """Maps before m, labels (B,), -1 for no class, or (B, F) -> (B, width, *s_m)."""
        vector = self.classes(labels)  # (B, width)
        field = self.positions[m]()[None]  # (1, width, *s_m)
        if m:
            field = field + self.contexts[m - 1](coarser[:m], self.code_shapes[m])  # (B, width, *s_m)
        return vector.view(*vector.shape, *[1] * len(self.code_shapes[m])) + field

    @torch.no_grad()
    def start_embeddings(self, code_vectors: list[Tensor]) -> None:
        """Lets all embeddings of codes start as random projections of what the codes stand for, M x (K_m, D).

        So codes that look alike are alike from the first step on. Every coordinate has variance 1, as nn.Embedding gives it.
        """
        for m, network in enumerate(self.networks):
            coarser = list(self.contexts[m - 1].get_submodule("embeddings").children()) if m and self.contexts else []
            embedding = getattr(network, "embedding", None)  # groups of bits are no table
            own = [embedding] if isinstance(embedding, nn.Embedding) else []
            for table, vectors in zip([*coarser, *own], code_vectors):
                assert isinstance(table, nn.Embedding)
                centered = vectors.float().cpu() - vectors.float().cpu().mean(0)
                spread = centered.square().mean().sqrt()
                if spread > 0:  # else all codes stand for the same
                    projection = torch.randn(centered.shape[1], table.embedding_dim) / centered.shape[1] ** 0.5
                    table.weight[: len(centered)] = centered / spread @ projection  # (K, width)

    def sampling_condition(self, m: int, codes: list[Tensor], labels: Tensor, way: Way) -> Tensor:
        """`condition` of a chunk that is drawn; where it is guided 2 B, with labels and then without."""
        if not way.guided:
            return self.condition(m, codes[:m], labels)
        asked = torch.cat([labels, nothing(labels)])
        return self.condition(m, [torch.cat([maps, maps]) for maps in codes[:m]], asked)

    @abstractmethod
    def forward(self, codes: list[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> Scored:
        """M maps (B, *s_m), labels (B,) -> their score; `label_smoothing` changes the loss alone."""

    def scored(self, hidden: list[Tensor], codes: list[Tensor], label_smoothing: float) -> Scored:
        """Hidden states M x (B, C, *s_m) of the codes, M x (B, *s_m) -> what the head of each map's network makes of them."""
        scored = [n.head.score(h, m, label_smoothing) for n, h, m in zip(self.networks, hidden, codes)]  # type: ignore[operator, union-attr]
        nats, losses = ([*maps] for maps in zip(*scored))  # M x (B, *s_m)
        return Scored(sum(m.sum() for m in losses) / sum(m.numel() for m in losses), nats)

    def sample(
        self,
        seeds: list[int],
        labels: Tensor,
        sampling: Sampling,
        known: Known | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[Tensor]:
        """Draws one set of maps per seed, from float32 logits; labels (n,) int64, -1 for no class, or (n, F) of conditions.

        -> M maps (n, *s_m). Sample i depends on seed i, label i, the i-th known codes and `sampling` alone. `on_progress` is
        called as codes are drawn, chunk by chunk. Raises UserError for a method that this prior does not have, and for
        guidance without classes. (Guidance also needs training with class_dropout above 0.)
        """
        if sampling.method is not None and sampling.method not in self.methods:
            raise UserError(f"method must be one of {', '.join(self.methods)} for this prior, got {sampling.method!r}")
        if sampling.guided and not self.num_classes and self.conditions is None:
            raise UserError(f"guidance={sampling.guidance} needs a prior that was trained with classes")
        chunks = []
        known_maps = () if known is None else (known.codes, known.kept)
        way, numbers = sampling.way, sampling.on(labels.device).numbers
        size = sampling.chunk or self.samples_at_a_time
        for start in range(0, len(seeds), size):
            rows = torch.arange(start, start + size).clamp_max(len(seeds) - 1)  # padded by the last
            part = rows.to(labels.device)
            with torch.inference_mode(), torch.autocast(labels.device.type, enabled=False):
                noise = uniform_noise([seeds[i] for i in rows], self.noise_count(way), labels.device)
                inputs = noise, labels[part], numbers, *([m[part] for m in maps] for maps in known_maps)
                if on_progress is None and captures_on(labels.device) and sampling.method not in self.decided_by_host:
                    maps = graphs_of(self)((Prior.draw, way, size, known is None), inputs)
                else:
                    maps = self.draw(way, inputs, on_progress)
            chunks.append([m[: len(seeds) - start].clone() for m in maps])
        return [torch.cat(maps) for maps in zip(*chunks)]

    def draw(self, way: Way, inputs: Sequence[Any], on_progress: OnProgress | None = None) -> list[Tensor]:
        """`sample_chunk` of inputs as a sequence, the codes and the masks of known ones behind the others."""
        noise, labels, numbers, *known = inputs
        return self.sample_chunk(noise, labels, Drawing(way, numbers), Known(*known) if known else None, on_progress)

    def noise_count(self, way: Way) -> int:
        """Uniform numbers that a sample takes: one for every digit of a code."""
        return sum(math.prod(shape) * len(of_map) for shape, of_map in zip(self.code_shapes, self.digits))

    def parts_of_maps(self, noise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Noise (B, noise_count) -> that of each map, M x (B, N, digits), and the share of codes before each, M x (N,)."""
        progress = torch.arange(self.codes_per_sample, device=noise.device) / self.codes_per_sample
        counts, digits = [math.prod(shape) for shape in self.code_shapes], [len(of_map) for of_map in self.digits]
        of_maps = noise.split([count * each for count, each in zip(counts, digits)], dim=1)
        return [n.unflatten(1, (-1, each)) for n, each in zip(of_maps, digits)], list(progress.split(counts))

    @abstractmethod
    def sample_chunk(
        self, noise: Tensor, labels: Tensor, drawing: Drawing, known: Known | None, on_progress: OnProgress | None
    ) -> list[Tensor]:
        """`sample` for one chunk: noise (B, noise_count), labels (B,)."""

    def start_codes(self, labels: Tensor, known: Known | None) -> tuple[list[Tensor], list[Tensor]]:
        """Start of sampling: M maps (B, *s_m) of codes to be filled in, the known ones in their places, and masks of those."""
        if known is not None:
            return [m.clone() for m in known.codes], [m.clone() for m in known.kept]
        codes = [labels.new_zeros(len(labels), *shape, dtype=torch.int64) for shape in self.code_shapes]
        return codes, [torch.zeros_like(m, dtype=torch.bool) for m in codes]
