"""Codes that are drawn to the latents nearest to them."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.quantizers.codebook import Codebook
from vqvae.quantizers.nearest import nearest_code
from vqvae.quantizers.revival import Revival, Until
from vqvae.ranges import LessThanOne, PositiveFloat, checked


@checked
class AnchorRevival(Revival):
    """Every code moves to the batch's vector nearest to it, the more the less it is used (CVQ-VAE, arXiv 2307.15139).

        e <- (1 - a) e + a anchor,  a = exp(-strength K usage / (1 - decay)),  usage: moving average of the share of use

    strength 10 is the paper's; at uniform use a is exp(-1000), and 0.37 at a thousandth of it. Optimizer state is reset
    where a > 0.5. Deviations: usage starts at uniform, the authors' small constant in the exponent is left out, and it ends
    at the share `until` of the run.
    """

    usage: Tensor
    anchors: Tensor
    squared: Tensor

    def __init__(self, strength: PositiveFloat, decay: LessThanOne, until: Until) -> None:
        super().__init__()
        self.strength, self.decay, self.until = strength, decay, until
        self.active = True

    def attach(self, codebook: Codebook) -> None:
        self.register_buffer("usage", torch.full((codebook.size,), 1 / codebook.size))
        self.register_buffer("anchors", torch.zeros(codebook.size, codebook.dim), persistent=False)  # of this step
        self.register_buffer("squared", torch.full((codebook.size,), torch.inf), persistent=False)  # distances to them

    def plan(self, steps: int) -> str:
        return f"codes move to latents after each of the first {math.ceil(self.until * steps):,} steps"

    def begin_step(self, step: int, steps: int) -> Hashable:
        self.active = step < self.until * steps
        self.squared.fill_(torch.inf)
        return self.active

    @torch.no_grad()
    def observe(self, z: Tensor, distance: Tensor, codes: Tensor) -> None:
        if self.active and len(z):
            nearest = z[nearest_code(codes, z)]  # (K, d)
            squared = (nearest - codes).square().sum(1)  # (K,)
            self.anchors.copy_(torch.where((squared < self.squared)[:, None], nearest, self.anchors))
            self.squared.copy_(torch.minimum(squared, self.squared))

    @torch.no_grad()
    def revive(self, codebook: Codebook, counts: Tensor, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        usage = torch.lerp(counts / counts.sum().clamp_min(1), self.usage, self.decay)
        self.usage.copy_(torch.where(applied, usage, self.usage))
        if not self.active:
            return {}
        codes = codebook.codes()
        anchors = distributed.gather_rows(self.anchors).view(-1, *codes.shape)  # (ranks, K, d)
        squared, rank = distributed.gather_rows(self.squared).view(-1, codebook.size).min(0)  # (K,)
        anchors = anchors[rank, torch.arange(codebook.size, device=codes.device)]  # (K, d)
        share = torch.exp(-self.strength * codebook.size * self.usage / (1 - self.decay))[:, None]  # (K, 1)
        moved = applied & squared.isfinite() & (share[:, 0] > 1e-6)  # at smaller shares, the move is lost in rounding
        replaced = codebook.replace(moved, torch.lerp(codes, anchors, share))
        return {parameter: rows & (share[:, 0] > 0.5) for parameter, rows in replaced.items()}
