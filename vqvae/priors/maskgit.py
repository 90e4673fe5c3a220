"""Masked bidirectional transformer on codes (MaskGIT, MaskBit): many are drawn at a time, in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.devices.graphs import captures_on
from vqvae.errors import UserError
from vqvae.priors.base import Prior, Scored
from vqvae.priors.digits import WHOLE_OR_BITS
from vqvae.priors.masked import MaskedMap
from vqvae.priors.sampling import Drawing, Known, OnProgress, Way
from vqvae.ranges import Count, LessThanOne, PositiveInt, checked

EVALUATION_SEED = 0
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, lie evenly wherever they start
GUMBEL_SCALE = 4.5  # of the noise on confidences, as in MaskGIT's published configuration


@checked
class MaskGIT(Prior):
    """One masked transformer per code map; coarser maps and the class as conditions (arXiv 2202.04200).

    Its likelihood is that of the mixture over all orders in which codes can be drawn one by one, of which `forward` gives
    an upper bound (ARDM: Hoogeboom et al. 2021, arXiv 2110.02037, equations 2 and 3). With prior/head=bits a code is
    several groups of bits (MaskBit: Weber et al. 2024, arXiv 2409.16211), and all that is said of codes, orders, steps and
    settings of sampling is true of groups. Two ways of sampling:

    - `halton`: positions in the order of a low-discrepancy sequence, so that codes drawn together lie far apart
      (Halton-MaskGIT: Besnier et al. 2025, arXiv 2503.17076). With as many steps as codes it draws exactly from the model
      in that order.
    - `confidence`: a code is drawn for every unknown position, and the most probable are kept, Gumbel noise added to their
      log-probabilities (MaskGIT, section 3.2); these are with guidance, before temperature, top_k and top_p. The noise
      falls with the share of codes that stay unknown (in MaskGIT linearly with the steps).

    Args:
        code_shapes, num_classes: as in Prior; maps of any number of dims.
        digits: [K] of each map, or its groups of bits, all with as many values.
        width, layers, heads: of each transformer.
        dropout: share of the input's and of every branch's channels that are dropped.
        steps: network calls to draw a map, where Sampling has none; fewer where fewer codes are unknown.

    Raises UserError for sizes that make no network.
    """

    bits_name = "bits_per_code_bound"
    masks = True
    methods = ("confidence", "halton")
    networks: Sequence[MaskedMap]

    def __init__(
        self,
        code_shapes: list[tuple[int, ...]],
        digits: list[list[int]],
        num_classes: int,
        width: PositiveInt,
        layers: Count,
        heads: Count,
        dropout: LessThanOne,
        steps: Count,
    ) -> None:

        for of_map in digits:
            if len(of_map) > 1 and (len({*of_map}) > 1 or of_map[0].bit_count() > 1):
                raise UserError(WHOLE_OR_BITS)

        def network(digits: list[int], shape: tuple[int, ...]) -> MaskedMap:
            return MaskedMap(digits, shape, width, layers, heads, dropout)

        super().__init__(code_shapes, digits, num_classes, width, network)
        self.steps = steps

    def forward(self, codes: list[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> Scored:
        """The bound: of every map n codes are hidden, n uniform on 1 .. N, and cost N / n times their nats; others cost 0.

        Of codes in G groups, n of the N G groups are hidden, and a code costs what its groups do. The bound's expectation over
        the draws is the mean over all orders of the nats of the codes drawn one by one, which is no less than those of the
        orders' mixture (Jensen). In training draws come from torch's global generator, for the batch of all ranks, as dropout
        does. In evaluation they come from a fixed one, so that the bound depends on the batch alone, on whatever rank: on
        2,000 images of 8x8 codes in batches of 250, other seeds moved 7.72 bits by 0.017 (one standard deviation).
        """
        generator = None if self.training else torch.Generator().manual_seed(EVALUATION_SEED)
        nats, losses = [], []
        for m, (network, target) in enumerate(zip(self.networks, codes)):
            groups = network.split(target.flatten(1))  # (B, N G)
            weight = draw_weights(groups, generator)
            hidden = network(groups, weight == 0, self.condition(m, codes, labels))  # (B, N, width)
            cost, loss = network.head.score(hidden, groups, label_smoothing, dim=2)  # (B, N G)
            nats.append((weight * cost).view(*target.shape, network.groups).sum(-1))  # (B, *s)
            losses.append((weight * loss).sum())
        return Scored(sum(losses) / sum(map(torch.numel, codes)), nats)  # type: ignore[arg-type]

    def counts(self) -> list[int]:
        """Groups of each map, N G."""
        return [math.prod(shape) * len(of_map) for shape, of_map in zip(self.code_shapes, self.digits)]

    def rounds(self, way: Way) -> list[int]:
        """How often a group of each map is drawn."""
        steps, redrawn = way.steps or self.steps, (way.method or self.methods[0]) == "confidence"
        return [min(steps, count) if redrawn else 1 for count in self.counts()]

    def noise_count(self, way: Way) -> int:
        return sum(2 * rounds * count for rounds, count in zip(self.rounds(way), self.counts()))

    def sample_chunk(
        self, noise: Tensor, labels: Tensor, drawing: Drawing, known: Known | None, on_progress: OnProgress | None
    ) -> list[Tensor]:
        way = drawing.way
        steps, rounds = way.steps or self.steps, self.rounds(way)
        scores_of = {"halton": in_halton_order, "confidence": by_confidence}[way.method or self.methods[0]]
        codes, done = self.start_codes(labels, known)
        copies = 2 if way.guided else 1  # with the class, and without
        counts, before = self.counts(), 0  # groups of each map; codes of the maps before
        noises = noise.split([2 * r * count for r, count in zip(rounds, counts)], dim=1)
        for m, network in enumerate(self.networks):
            condition = self.sampling_condition(m, codes, labels, way)
            groups = network.split(codes[m].flatten(1))  # (B, N G)
            here = done[m].flatten(1).repeat_interleave(network.groups, dim=1)  # (B, N G)
            unknown = here.logical_not().sum(1)  # (B,)
            some_known = known is not None and not captures_on(
                labels.device
            )  # where the host can look, it needs fewer calls
            calls = min(steps, int(unknown.max()) if some_known else counts[m])
            of_map = noises[m].unflatten(1, (rounds[m], 2, -1))  # (B, rounds, 2, N G)
            for step, remaining in enumerate(plan(unknown, steps, calls)):
                for_code, for_order = of_map[:, min(step, rounds[m] - 1)].unbind(1)  # (B, N G)
                hidden = network(groups.repeat(copies, 1), here.repeat(copies, 1), condition)
                logits = network.head.logits(hidden, dim=2)  # (copies B, N G, K)
                progress = (before + here.sum(1) / network.groups) / self.codes_per_sample  # (B,)
                logits = drawing.guide(logits, progress[:, None, None])  # (B, N G, K)
                drawn = drawing.draw(logits.flatten(0, 1), for_code.flatten()).view_as(groups)  # (B, N G)
                scores = scores_of(network.halton_rank, logits, drawn, remaining / counts[m], for_order)
                scores = scores.masked_fill(here, -torch.inf)
                rank = scores.argsort(dim=1, descending=True, stable=True).argsort(1)  # (B, N G)
                chosen = (rank < (here.logical_not().sum(1) - remaining)[:, None]) & ~here
                groups, here = torch.where(chosen, drawn, groups), here | chosen
                codes[m].copy_(network.join(groups).view_as(codes[m]))
                done[m].copy_(here.view(*done[m].shape, network.groups).all(-1))
                if on_progress is not None:
                    on_progress(codes, done)
            before += math.prod(self.code_shapes[m])
        return codes


# Orders of drawing: -> scores (B, N) or (N,); of the unknown ones those with the highest become known. N are codes, or groups.
# They are given each one's halton_rank (N,), logits (B, N, K), what is drawn (B, N), the share (B,) of the map that will
# still be unknown after this step, and noise (B, N) uniform in [0, 1).


def in_halton_order(rank: Tensor, logits: Tensor, drawn: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    return -rank.double().expand(drawn.shape)


def by_confidence(rank: Tensor, logits: Tensor, drawn: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    log_p = logits.log_softmax(2).gather(2, drawn[:, :, None])[:, :, 0]  # (B, N)
    gumbel = -torch.log(-torch.log1p(-noise))  # never minus infinity, which marks known codes
    return log_p + GUMBEL_SCALE * share[:, None] * gumbel


def plan(unknown: Tensor, steps: int, rounds: int) -> list[Tensor]:
    """unknown (B,) codes, at most `steps` network calls a sample -> after each of `rounds` calls, how many remain (B,).

    A cosine, as in MaskGIT, but every sample's calls give it at least one code each, and a sample needs no more calls than it
    has unknown codes; what others need has no influence.
    """
    calls = unknown.clamp(max=steps)
    rows = []
    for call in range(1, rounds + 1):
        share = (call / calls.clamp(min=1).double()).clamp(max=1)  # a sample without unknown codes has no calls
        cosine = (unknown * torch.cos(math.pi / 2 * share)).floor().long()
        rows.append(torch.minimum(cosine, (unknown - call).clamp(min=0)))  # (B,)
    return rows


def draw_weights(codes: Tensor, generator: torch.Generator | None) -> Tensor:
    """codes (B, N) -> weights (B, N): N / n for the n codes of each example that are hidden, 0 for the others.

    n is uniform on 1 .. N for each example, and spread evenly over them: a golden-ratio sequence with one random start
    (as Kingma et al. 2021, arXiv 2107.00630, spread diffusion times, at equal distances; this one is even over any part of
    the batch too). generator: where None, torch's global one draws for the batch of all ranks.
    """
    count = codes.shape[1]
    device = codes.device if generator is None else generator.device

    def draw(batch: int) -> Tensor:
        start = torch.rand((), dtype=torch.float64, device=device, generator=generator)
        places = (start + torch.arange(batch, device=device, dtype=torch.float64) * GOLDEN) % 1  # (batch,), float64
        hidden = 1 + (places * count).long()  # (batch,), n
        rank = torch.rand(batch, count, device=device, generator=generator).argsort(1).argsort(1)
        return ((rank < hidden[:, None]) * (count / hidden[:, None])).float()  # (batch, N)

    weights = draw(len(codes)) if generator is not None else distributed.draw_of_rank(draw, len(codes))
    return weights.to(codes.device)  # (B, N)
