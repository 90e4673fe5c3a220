"""A transformer over several maps side by side, each a step behind the one before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.networks.attention import angles_of
from vqvae.networks.blocks import Dropout
from vqvae.priors.base import Prior, Scored
from vqvae.priors.conditions import nothing
from vqvae.priors.heads import CodeSampler, Head
from vqvae.priors.sampling import Drawing, Known, OnProgress
from vqvae.priors.transformer import Block, make_blocks, over_past
from vqvae.ranges import Count, LessThanOne, PositiveInt, checked


class DelayedMap(nn.Module):
    """What a map has of its own: the embedding of its codes, the last of which is "none here", and the head."""

    def __init__(self, width: int, digits: list[int]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(math.prod(digits) + 1, width)
        self.head = Head(width, digits)


@checked
class Delayed(Prior):
    """One transformer over all maps, which are shifted against each other (the delay pattern of MusicGen: Copet et al. 2023,

    arXiv 2306.05284, section 2.2). Step s predicts code s of the first map, code s - 1 of the second, s - 2 of the third,
    and so on, from all codes of the steps before it. So M maps of N codes take N + M - 1 steps of one network, where the
    other priors take M N steps of M networks. The price: codes of one step are independent of each other given the steps
    before. The likelihood is exact for this model.

    `cached` keeps keys and values of the steps before, `uncached` computes them again; both draw the same codes.

    Deviations from the paper: the class modulates the blocks, which are those of TransformerMap; positions are learned for
    each map, and rotate the attention.

    Args:
        code_shapes, digits, num_classes: as in Prior; maps of any number of dims, all of the same size.
        width, layers, heads: of the transformer.
        dropout: share of the input's and of every branch's channels that are dropped.

    Raises UserError for maps of several sizes, and for sizes that make no network.
    """

    draws = "step of all maps"
    methods = ("cached", "uncached")
    networks: Sequence[DelayedMap]
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
        if len(set(map(tuple, code_shapes))) > 1:
            raise UserError(
                f"delayed predicts maps of one size side by side, such as those of quantizer=residual, got {code_shapes}: "
                "take prior=next_scale or transformer"
            )
        super().__init__(code_shapes, digits, num_classes, width, lambda of_map, _: DelayedMap(width, of_map))
        self.contexts = nn.ModuleList()  # the other maps are the transformer's own input
        self.dropout = Dropout(dropout)
        self.blocks = make_blocks(width, layers, heads, dropout)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width)
        self.codes_per_map = math.prod(self.code_shapes[0])
        self.steps = self.codes_per_map + len(self.code_shapes) - 1
        angles = angles_of(self.code_shapes[0], width // heads)  # (N, head_dim / 2)
        last = angles[-1:].expand(self.steps - len(angles), -1)  # where later maps are finished
        self.register_buffer(
            "angles", torch.cat([angles, last]), persistent=False
        )  # of the first map's place in each step

    def forward(self, codes: list[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> Scored:
        return self.scored(self.hidden(codes, labels), codes, label_smoothing)

    def hidden(self, codes: list[Tensor], labels: Tensor) -> list[Tensor]:
        """M maps (B, *s), labels (B,) -> M hidden states (B, width, *s), each of the codes of earlier steps."""
        style, flats = self.classes(labels), [m.flatten(1) for m in codes]
        x = self.dropout(self.inputs(flats, slice(0, self.steps), style))  # (B, steps, width)
        for block in self.blocks:
            x = block(x, style, self.angles, over_past)
        x = self.norm(x).transpose(1, 2)  # (B, width, steps)
        spans = [x[:, :, m : m + self.codes_per_map] for m in range(len(codes))]
        return [span.unflatten(2, shape) for span, shape in zip(spans, self.code_shapes)]

    def inputs(self, flats: list[Tensor], span: slice, style: Tensor) -> Tensor:
        """Maps M x (B, N), style (B, width) -> the input of the steps in `span` (B, n, width).

        That of a step: the code of each map that the step before predicted, the places of those that it predicts itself, and
        the class.
        """
        x = style[:, None]
        for m, (network, flat) in enumerate(zip(self.networks, flats)):
            none = flat.new_full((len(flat), self.steps), network.embedding.num_embeddings - 1)
            none[:, m + 1 : m + 1 + self.codes_per_map] = flat[:, : self.steps - m - 1]
            place = F.pad(self.positions[m]().flatten(1), (m, self.steps - m - self.codes_per_map))  # (width, steps)
            x = x + network.embedding(none[:, span]) + place.t()[span]
        return x

    def sample_chunk(
        self, noise: Tensor, labels: Tensor, drawing: Drawing, known: Known | None, on_progress: OnProgress | None
    ) -> list[Tensor]:
        noises, _ = self.parts_of_maps(noise)
        codes, done = self.start_codes(labels, known)
        flats, marks = [m.flatten(1) for m in codes], [m.flatten(1) for m in done]  # M x (B, N), views
        progress = torch.arange(self.codes_per_map, device=noise.device) / self.steps
        draws = [
            CodeSampler(drawing, noises[m], progress + m / self.steps, flat.clone(), mark.clone() if known else None)
            for m, (flat, mark) in enumerate(zip(flats, marks))
        ]
        asked = torch.cat([labels, nothing(labels)]) if drawing.way.guided else labels
        states = Uncached(self, asked) if drawing.way.method == "uncached" else Cached(self, asked)
        for step in range(self.steps):
            hidden = states.at(step, [flat.repeat(len(asked) // len(labels), 1) for flat in flats])  # (copies B, width)
            for m, (network, draw) in enumerate(zip(self.networks, draws)):
                place = step - m
                if 0 <= place < self.codes_per_map:
                    span = slice(place, place + 1)
                    flats[m][:, span] = draw(network.head, hidden, span)
                    marks[m][:, span] = True
            if on_progress is not None:
                on_progress(codes, done)
        return codes


class Cached:
    """The state of one step after another, of labels (B,), by keys and values of the steps before."""

    def __init__(self, prior: Delayed, labels: Tensor) -> None:
        self.prior, self.style = prior, prior.classes(labels)
        self.modulations = [block.modulation(self.style) for block in prior.blocks]
        heads, width = prior.blocks[0].heads, self.style.shape[1]
        self.keys, self.values = (
            [self.style.new_empty(len(labels), heads, prior.steps, width // heads) for _ in prior.blocks]
            for _ in range(2)
        )

    def at(self, step: int, flats: list[Tensor]) -> Tensor:
        """Maps M x (B, N), those of earlier steps drawn -> (B, width). Called once for each step, in order."""
        x = self.prior.inputs(flats, slice(step, step + 1), self.style)  # (B, 1, width)
        for block, modulation, keys, values in zip(self.prior.blocks, self.modulations, self.keys, self.values):
            x = block.step(x, modulation, self.prior.angles, keys, values, step)
        return self.prior.norm(x)[:, 0]


class Uncached:
    """The same from the whole transformer for each step."""

    def __init__(self, prior: Delayed, labels: Tensor) -> None:
        self.prior, self.labels = prior, labels

    def at(self, step: int, flats: list[Tensor]) -> Tensor:
        codes = [flat.unflatten(1, shape) for flat, shape in zip(flats, self.prior.code_shapes)]
        m = max(0, step - self.prior.codes_per_map + 1)  # the first map that this step predicts
        return self.prior.hidden(codes, self.labels)[m].flatten(2)[:, :, step - m]
