"""Replacement of codes that are no longer used."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Annotated

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.quantizers.codebook import Codebook
from vqvae.ranges import Gt, Le, LessThanOne, Lt, PositiveFloat, PositiveInt, Share, checked

Until = Annotated[float, Gt(0), Le(1)]  # a share of the steps


class Revival(nn.Module):
    """Hooks of one step: begin_step, observe (in every training forward), revive (after the codebook has moved).

    What a step's forwards show is held in buffers of fixed shape, which observe merges into: so however many forwards a
    step has, nothing grows and nothing is compiled again, and ranks may see different numbers of vectors.
    """

    def attach(self, codebook: Codebook) -> None:
        """Makes buffers for this codebook; once, when the quantizer is built."""

    def plan(self, steps: int) -> str | None:
        """When codes are replaced in a run of `steps`, in words; None: never."""
        return None

    def first(self, steps: int) -> int:
        """The number of steps, of `steps`, after which codes are first replaced; 0: never, or from the start on."""
        return 0

    def begin_step(self, step: int, steps: int) -> Hashable:
        """step: 0-based, of `steps`. Returns the kind of step, as Quantizer.begin_step does."""
        return None

    def observe(self, z: Tensor, distance: Tensor, codes: Tensor) -> None:
        """One training forward: vectors z (N, d), their distance (N,) in the lookup's metric, and all codes (K, d)."""

    def revive(self, codebook: Codebook, counts: Tensor, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        """counts (K,) of this step over all ranks -> {parameter: (K,) bool mask of replaced rows}."""
        return {}


class NoRevival(Revival):
    """Dead codes stay dead."""


@checked
class BatchRevival(Revival):
    """Base of those that replace codes by vectors of the step's batch, every `every_steps`, up to the share `until` of the run.

    The end is there because a code that is replaced while the learning rate runs out never finds its place.
    """

    candidates: Tensor
    priority: Tensor
    next_row: Tensor

    def __init__(self, every_steps: PositiveInt, until: Until) -> None:
        super().__init__()
        self.every_steps, self.until = every_steps, until
        self.due = False

    def attach(self, codebook: Codebook) -> None:
        self.register_buffer("candidates", torch.zeros(codebook.size, codebook.dim), persistent=False)
        self.register_buffer("priority", torch.full((codebook.size,), -1), persistent=False)  # random; -1: no vector
        self.register_buffer("next_row", torch.zeros((), dtype=torch.int64), persistent=False)

    def first_dead(self) -> int:
        """The number of steps after which a code that nothing has chosen is dead at the earliest."""
        return 1

    def plan(self, steps: int) -> str:
        return plan_of("dead codes", self.first(steps), self.every_steps, self.until, steps)

    def first(self, steps: int) -> int:
        return math.ceil(self.first_dead() / self.every_steps) * self.every_steps

    def begin_step(self, step: int, steps: int) -> Hashable:
        self.due = (step + 1) % self.every_steps == 0 and step < self.until * steps
        if self.due:
            self.priority.fill_(-1)
            self.next_row.fill_(int(torch.randint(2**32, ())))  # the same on every rank; on the CPU, so nothing waits
        return self.due

    @torch.no_grad()
    def observe(self, z: Tensor, distance: Tensor, codes: Tensor) -> None:
        if self.due:
            rows = self.next_row + distributed.rank() * len(z) + torch.arange(len(z), device=z.device)  # (N,)
            self.next_row += distributed.world_size() * len(z)
            vectors, priority = torch.cat([self.candidates, z]), torch.cat([self.priority, shuffled(rows)])
            vectors, priority = top(vectors, priority, len(self.priority))
            self.candidates.copy_(vectors)
            self.priority.copy_(priority)

    def random_vectors(self) -> tuple[Tensor, Tensor]:
        """Draw (K, d) from the step's vectors over all ranks, and whether there were any (0-d bool); same on every rank.

        They are different ones as far as there are.
        """
        size = len(self.priority)
        gathered = distributed.gather_rows(self.candidates), distributed.gather_rows(self.priority)
        vectors, priority = top(*gathered, size)
        available = (priority >= 0).sum()
        return vectors[torch.arange(size, device=vectors.device) % available.clamp_min(1)], available > 0


@checked
class RandomRevival(BatchRevival):
    """Codes with a share of use below `threshold` / K become random vectors of the batch.

    The share is an exponential moving average over steps (decay `decay`), so the threshold means the same for every batch
    size and K: 0.1 is a tenth of what uniform use would give. After Jukebox (arXiv 2005.00341, section 3.1), which
    restarts codes below an absolute count, at every step.

    `start_weight`: weight of uniform use, from which the average starts. At 0 it is the mean of the steps so far, corrected
    for its start as Adam's are, so a code that nothing has chosen is dead the first time that one asks, after `every_steps`
    steps. At 1 (as in earlier versions) such a code is dead after log(threshold) / log(decay) steps at the earliest.
    """

    usage: Tensor
    weight: Tensor

    def __init__(
        self,
        threshold: Annotated[float, Gt(0), Lt(1)],
        decay: LessThanOne,
        start_weight: Share,
        every_steps: PositiveInt,
        until: Until,
    ) -> None:
        super().__init__(every_steps, until)
        self.threshold, self.decay, self.start_weight = threshold, decay, start_weight

    def attach(self, codebook: Codebook) -> None:
        super().attach(codebook)
        self.register_buffer("usage", torch.full((codebook.size,), self.start_weight / codebook.size))
        self.register_buffer("weight", torch.ones(()), persistent=False)  # of all that is in the average by now

    def first_dead(self) -> int:
        share = self.threshold / (self.threshold + self.start_weight * (1 - self.threshold))
        return 1 + math.floor(math.log(share) / math.log(self.decay)) if self.decay > 0 else 1

    def begin_step(self, step: int, steps: int) -> Hashable:
        due = super().begin_step(step, steps)
        if due:
            self.weight.fill_(1 - (1 - self.start_weight) * self.decay ** (step + 1))
        return due

    @torch.no_grad()
    def revive(self, codebook: Codebook, counts: Tensor, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        usage = torch.lerp(counts / counts.sum().clamp_min(1), self.usage, self.decay)  # clamp: a step without vectors
        self.usage.copy_(torch.where(applied, usage, self.usage))
        if not self.due:
            return {}
        vectors, available = self.random_vectors()
        dead = applied & available & (self.usage * codebook.size < self.threshold * self.weight)
        self.usage.copy_(torch.where(dead, self.weight * (1 / codebook.size), self.usage))
        return codebook.replace(dead, vectors)


@checked
class LeastRecentlyUsed(BatchRevival):
    """Codes that nothing has chosen while `patience` x K vectors went by become random vectors of the batch.

    Under uniform use each code is chosen `patience` times meanwhile, so the number means the same for every batch size
    and K. After vqtorch, the code of VQ-STE++ (arXiv 2305.08842), which counts forward passes.
    """

    waited: Tensor

    def __init__(self, patience: PositiveFloat, every_steps: PositiveInt, until: Until) -> None:
        super().__init__(every_steps, until)
        self.patience = patience

    def attach(self, codebook: Codebook) -> None:
        super().attach(codebook)
        self.register_buffer("waited", torch.zeros(codebook.size))  # vectors / K since the code was last chosen

    @torch.no_grad()
    def revive(self, codebook: Codebook, counts: Tensor, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        waited = torch.where(counts > 0, 0.0, self.waited + counts.sum() / codebook.size)
        self.waited.copy_(torch.where(applied, waited, self.waited))
        if not self.due:
            return {}
        vectors, available = self.random_vectors()
        dead = applied & available & (self.waited > self.patience)
        self.waited.copy_(torch.where(dead, 0.0, self.waited))
        return codebook.replace(dead, vectors)


@checked
class FarthestRevival(Revival):
    """Every `every_steps`, the `replaced` least used codes become the inputs that were farthest from their codes.

    Use and the farthest inputs are gathered since the last time, then forgotten. Ties go to the lowest index. Whether a
    code is dead is not asked: its rank counts, not a threshold, so nothing here depends on batch size or K. `until`: share of
    the run after which it ends.
    """

    usage: Tensor
    farthest: Tensor
    distance: Tensor
    step_farthest: Tensor
    step_distance: Tensor

    def __init__(self, replaced: PositiveInt, every_steps: PositiveInt, until: Until) -> None:
        super().__init__()
        self.replaced = replaced
        self.every_steps, self.until = every_steps, until
        self.due, self.active = False, True

    def attach(self, codebook: Codebook) -> None:
        if self.replaced > codebook.size:
            raise UserError(f"replaced={self.replaced} is more than the {codebook.size} codes; choose fewer")
        self.register_buffer("usage", torch.zeros(codebook.size))
        self.register_buffer("farthest", torch.zeros(self.replaced, codebook.dim))
        self.register_buffer("distance", torch.full((self.replaced,), -1.0))  # -1: no input yet
        self.register_buffer("step_farthest", torch.zeros(self.replaced, codebook.dim), persistent=False)
        self.register_buffer("step_distance", torch.full((self.replaced,), -1.0), persistent=False)

    def plan(self, steps: int) -> str:
        what = f"the {self.replaced} least used codes"
        return plan_of(what, self.every_steps, self.every_steps, self.until, steps)

    def first(self, steps: int) -> int:
        return self.every_steps

    def begin_step(self, step: int, steps: int) -> Hashable:
        self.active = step < self.until * steps
        self.due = (step + 1) % self.every_steps == 0
        self.step_distance.fill_(-1)
        return self.active, self.due

    @torch.no_grad()
    def observe(self, z: Tensor, distance: Tensor, codes: Tensor) -> None:
        if self.active:
            vectors, distances = torch.cat([self.step_farthest, z]), torch.cat([self.step_distance, distance])
            vectors, distances = top(vectors, distances, self.replaced)
            self.step_farthest.copy_(vectors)
            self.step_distance.copy_(distances)

    @torch.no_grad()
    def revive(self, codebook: Codebook, counts: Tensor, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        if not self.active:
            return {}
        vectors, distances = (distributed.gather_rows(rows) for rows in (self.step_farthest, self.step_distance))
        vectors, distances = torch.cat([self.farthest, vectors]), torch.cat([self.distance, distances])
        farthest, distance = top(vectors, distances, self.replaced)
        self.farthest.copy_(torch.where(applied, farthest, self.farthest))
        self.distance.copy_(torch.where(applied, distance, self.distance))
        self.usage.copy_(torch.where(applied, self.usage + counts, self.usage))
        if not self.due:
            return {}
        least = self.usage.sort(stable=True).indices[: self.replaced]  # (M,)
        dead = torch.zeros_like(self.usage, dtype=torch.bool)
        dead[least] = applied & (self.distance >= 0)
        new = torch.zeros(codebook.size, codebook.dim, device=self.usage.device)
        new[least] = self.farthest
        self.usage.mul_(~applied)
        self.distance.masked_fill_(applied, -1.0)
        return codebook.replace(dead, new)


def plan_of(what: str, first: int, every: int, until: float, steps: int) -> str:
    """A sentence on what is replaced after step `first`, counted from 1, and every `every`, up to the share `until`."""
    possible = math.ceil(until * steps)
    last = possible // every * every
    if last < first:
        return f"{what} are never replaced: step {first:,} would be the first time, and {possible:,} is the last step for it"
    return f"{what} are replaced after step {first:,}" + (
        f", and every {every:,} up to step {last:,}" if last > first else ""
    )


def top(vectors: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """vectors (n, d), scores (n,) -> the `count` of largest score, in falling order; ties go to the first."""
    order = scores.sort(descending=True, stable=True).indices[:count]
    return vectors[order], scores[order]


def shuffled(numbers: Tensor) -> Tensor:
    """(n,) int64 -> random-looking numbers from 0 to 2^32 - 1: neighbors share nothing, and different ones stay different.

    A function of the row, where a draw would depend on how the batch is dealt to forwards (T. Mueller's integer hash).
    """
    for _ in range(2):
        numbers = numbers & 0xFFFFFFFF
        numbers = (numbers ^ (numbers >> 16)) * 0x45D9F3B
    numbers = numbers & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)
