"""What happens to codes that nothing chooses any more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.quantizers.codebook import Codebook


class Revival(nn.Module):
    """Hooks of one step: begin_step, observe (in every training forward), revive (after the codebook has moved)."""

    def begin_step(self, step: int, steps: int) -> None:
        """step: 0-based, of `steps`."""

    def observe(self, z: Tensor) -> None:
        """z (N, d): the vectors of one training forward."""

    def revive(self, codebook: Codebook, counts: Tensor, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        """counts (K,) of this step over all ranks -> {parameter: (K,) bool mask of replaced rows}."""
        return {}


class NoRevival(Revival):
    """Dead codes stay dead."""


class RandomRevival(Revival):
    """Every `every_steps`, codes with a share of use below `threshold` / K become random vectors of the step's batch.

    The share is an exponential moving average over steps (decay `decay`), so the threshold means the same for every batch
    size and K: 0.1 is a tenth of what uniform use would give. It ends at the share `until` of the run, for a code that is
    replaced while the learning rate runs out never finds its place. After Jukebox (arXiv 2005.00341, section 3.1), which
    restarts codes below an absolute count, at every step.
    """

    usage: Tensor

    def __init__(self, size: int, threshold: float, decay: float, every_steps: int, until: float) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        if not 0 < until <= 1:
            raise ValueError(f"until must lie in (0, 1], got {until}")
        self.size, self.threshold, self.decay = size, threshold, decay
        self.every_steps, self.until = every_steps, until
        self.register_buffer("usage", torch.full((size,), 1 / size))
        self.step, self.due = 0, False
        self.pool: list[Tensor] = []

    def begin_step(self, step: int, steps: int) -> None:
        self.step = step
        self.due = (step + 1) % self.every_steps == 0 and step < self.until * steps
        self.pool.clear()

    def observe(self, z: Tensor) -> None:
        if self.due:
            self.pool.append(z.detach())

    @torch.no_grad()
    def revive(self, codebook: Codebook, counts: Tensor, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        usage = torch.lerp(counts / counts.sum().clamp_min(1), self.usage, self.decay)  # clamp: a step without vectors
        self.usage.copy_(torch.where(applied, usage, self.usage))
        if not self.due:
            return {}
        vectors = distributed.gather_rows(torch.cat(self.pool))  # (n, d), equal on all ranks
        self.pool.clear()
        generator = torch.Generator().manual_seed(self.step)  # the same choice on every rank
        order = torch.randperm(vectors.shape[0], generator=generator)
        rows = order[torch.arange(self.size) % vectors.shape[0]].to(vectors.device)  # (K,)
        dead = applied & (self.usage * self.size < self.threshold)
        self.usage.copy_(torch.where(dead, 1 / self.size, self.usage))
        return codebook.replace(dead, vectors[rows])
