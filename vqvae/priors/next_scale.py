"""A transformer that predicts a whole scale of codes at a time, given all coarser ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.networks.attention import angles_of
from vqvae.networks.blocks import Dropout, attend
from vqvae.priors.base import Prior, Scored
from vqvae.priors.conditions import nothing
from vqvae.priors.context import to_grid
from vqvae.priors.heads import CodeSampler, Head
from vqvae.priors.sampling import Drawing, Known, OnProgress, Way
from vqvae.priors.transformer import Block, make_blocks
from vqvae.ranges import Count, LessThanOne, PositiveInt, checked


class ScaleNetwork(nn.Module):
    """What a scale has of its own: the head that predicts its codes."""

    def __init__(self, width: int, digits: list[int]) -> None:
        super().__init__()
        self.head = Head(width, digits)


@checked
class NextScale(Prior):
    """One transformer over all scales, block-causal: a scale sees itself and all coarser ones (VAR: Tian et al. 2024, arXiv

    2404.02905, section 3.2). The input at a position is the condition there: the class, the position, and the coarser maps.
    No code of a scale is an input of that scale, so codes of one scale are independent of each other given the coarser ones:
    the likelihood is exact for this model, and the model leaves out what such codes know of each other. Sampling takes one
    pass a scale; a known code has an influence on finer scales alone.

    `cached` keeps keys and values of the coarser scales, `uncached` computes them again; both draw the same codes.

    Deviations from the paper: coarser maps come through a ContextNetwork of each scale, as in the other priors, in place of
    the quantizer's own sum; the blocks are those of TransformerMap; the class modulates them and is part of every input.

    Args:
        code_shapes, digits, num_classes: as in Prior; maps of any number of dims, two or more, of any sizes.
        width, layers, heads: of the transformer.
        dropout: share of the input's and of every branch's channels that are dropped.

    Raises UserError for a single map, and for sizes that make no network.
    """

    draws = "scale"
    methods = ("cached", "uncached")
    networks: Sequence[ScaleNetwork]
    blocks: Sequence[Block]
    angles: Tensor

    def __init__(
        self,
        code_shapes: list[tuple[int, ...]],
        digits: list[list[int]],
        num_classes: int,
        width: PositiveInt,
        layers: Count,
        heads: Count,
        dropout: LessThanOne,
    ) -> None:
        if len(code_shapes) == 1:
            raise UserError(
                "next_scale predicts a map given coarser ones, and there is one map alone: take quantizer=multiscale, "
                "or another prior"
            )
        super().__init__(code_shapes, digits, num_classes, width, lambda of_map, _: ScaleNetwork(width, of_map))
        self.dropout = Dropout(dropout)
        self.blocks = make_blocks(width, layers, heads, dropout)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width)
        self.ends = [0, *accumulate(map(math.prod, self.code_shapes))]  # of each scale in the sequence, after a 0
        finest = tuple(map(max, zip(*self.code_shapes)))
        turns = angles_of(finest, width // heads).t().unflatten(1, finest)[None]  # (1, head_dim / 2, *finest)
        angles = [to_grid(turns, shape)[0].flatten(1).t() for shape in self.code_shapes]  # of the middle of each place
        self.register_buffer("angles", torch.cat(angles), persistent=False)  # (all codes, head_dim / 2)

    def forward(self, codes: list[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> Scored:
        return self.scored(self.hidden(codes, labels), codes, label_smoothing)

    def hidden(self, codes: list[Tensor], labels: Tensor) -> list[Tensor]:
        """M maps (B, *s_m), labels (B,) -> M hidden states (B, width, *s_m), each of the class and of coarser maps alone."""
        inputs = torch.cat([as_rows(self.condition(m, codes, labels)) for m in range(len(codes))], dim=1)
        x, style = self.dropout(inputs), self.style(labels)  # (B, all codes, width)
        for block in self.blocks:
            x = block(x, style, self.angles, self.over_scales)
        parts = (
            self.norm(x).transpose(1, 2).split([b - a for a, b in pairwise(self.ends)], dim=2)
        )  # M x (B, width, N_m)
        return [part.unflatten(2, shape) for part, shape in zip(parts, self.code_shapes)]

    def over_scales(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of each scale over itself and all coarser ones."""
        scales = [attend(q[:, :, a:b], k[:, :, :b], v[:, :, :b], causal=False) for a, b in pairwise(self.ends)]
        return torch.cat(scales, dim=2)  # (B, heads, all codes, head_dim)

    def style(self, labels: Tensor) -> Tensor:
        """Labels (B,) -> the class, which modulates the norms of all blocks (B, width)."""
        return self.classes(labels)

    def sample_chunk(
        self, noise: Tensor, labels: Tensor, drawing: Drawing, known: Known | None, on_progress: OnProgress | None
    ) -> list[Tensor]:
        noises, progress = self.parts_of_maps(noise)
        codes, done = self.start_codes(labels, known)
        uncached = drawing.way.method == "uncached"
        for m, hidden in enumerate((self.without_cache if uncached else self.with_cache)(codes, labels, drawing.way)):
            flat = codes[m].flatten(1)  # (B, N), a view
            before = progress[m][:1].expand(flat.shape[1])  # the whole scale is drawn at once
            kept = done[m].flatten(1) if known is not None else None
            flat.copy_(CodeSampler(drawing, noises[m], before, flat.clone(), kept)(self.networks[m].head, hidden))
            done[m].fill_(True)
            if on_progress is not None:
                on_progress(codes, done)
        return codes

    def with_cache(self, codes: list[Tensor], labels: Tensor, way: Way) -> Iterator[Tensor]:
        """Hidden states (copies B, width, *s_m) of one scale after another, whose codes are then filled in."""
        asked = torch.cat([labels, nothing(labels)]) if way.guided else labels
        style = self.style(asked)
        modulations = [block.modulation(style) for block in self.blocks]
        heads, width = self.blocks[0].heads, self.width
        shape = (2, len(asked), heads, self.codes_per_sample, width // heads)  # keys and values
        caches = [self.norm.weight.new_empty(shape) for _ in self.blocks]
        for m, (a, b) in enumerate(pairwise(self.ends)):
            x = as_rows(self.sampling_condition(m, codes, labels, way))  # (copies B, N_m, width)
            for block, modulation, (keys, values) in zip(self.blocks, modulations, caches):
                q, keys[:, :, a:b], values[:, :, a:b] = block.attended(x, modulation, self.angles[a:b])
                x = block.add(x, attend(q, keys[:, :, :b], values[:, :, :b], causal=False), modulation)
            yield self.norm(x).transpose(1, 2).unflatten(2, self.code_shapes[m])

    def without_cache(self, codes: list[Tensor], labels: Tensor, way: Way) -> Iterator[Tensor]:
        """The same from the whole transformer for each scale."""
        for m in range(len(codes)):
            copies = [labels, nothing(labels)] if way.guided else [labels]
            yield self.hidden([one.repeat(len(copies), *[1] * (one.ndim - 1)) for one in codes], torch.cat(copies))[m]


def as_rows(condition: Tensor) -> Tensor:
    """Condition (B, width, *s) -> (B, N, width)."""
    return condition.flatten(2).transpose(1, 2)
