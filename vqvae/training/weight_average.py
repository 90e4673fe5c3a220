"""Exponential moving average of weights: what is evaluated, sampled from and kept."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from vqvae import distributed


class WeightAverage:
    """average <- decay_t average + (1 - decay_t) weights, decay_t = min(decay, (1 + step) / (10 + step)).

    The short memory at the start forgets the random initial weights. Buffers are not averaged.
    """

    def __init__(self, networks: dict[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.live: list[Tensor] = [p for network in networks.values() for p in network.parameters()]
        self.weights = [p.detach().clone() for p in self.live]
        self.share = torch.zeros((), device=self.live[0].device)  # 1 - decay_t of the step at hand

    def begin_step(self, step: int) -> None:
        self.share.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self, applied: Tensor, replaced: dict[nn.Parameter, Tensor]) -> None:
        """Update after the step at hand; a no-op on the device unless `applied` (0-d bool).

        Replaced rows are copied, not averaged.
        """
        weights = [distributed.local(one) for one in self.weights]
        moves = torch._foreach_sub([distributed.local(one) for one in self.live], weights)
        torch._foreach_mul_(moves, applied * self.share)
        torch._foreach_add_(weights, moves)
        for average, live in zip(self.weights, self.live):
            if isinstance(live, nn.Parameter) and live in replaced:
                average.copy_(torch.where(replaced[live].view(-1, *[1] * (live.ndim - 1)), live, average))

    def swap(self) -> None:
        """Exchanges the networks' weights with the average, without copying if they are not sharded."""
        for index, live in enumerate(self.live):
            if distributed.is_sharded(live):  # its place is known to others
                own, average = distributed.local(live), distributed.local(self.weights[index])
                kept = own.clone()
                own.copy_(average)
                average.copy_(kept)
            else:
                live.data, self.weights[index] = self.weights[index], live.data

    @torch.no_grad()
    def load(self, weights: list[Tensor]) -> None:
        """Takes up the average of a checkpoint."""
        for average, saved in zip(self.weights, weights, strict=True):
            average.copy_(distributed.part_of(saved, average))


class Evaluating(AbstractContextManager[None]):
    """For the length of a `with`: networks in eval mode, whole, with their averaged weights where there are any."""

    def __init__(self, networks: dict[str, nn.Module], average: WeightAverage | None) -> None:
        self.networks, self.average = networks, average

    def __enter__(self) -> None:
        for network in self.networks.values():
            network.eval()
        if self.average is not None:
            self.average.swap()
        for network in self.networks.values():
            distributed.gather_weights(network)

    def __exit__(self, *exception: object) -> None:
        for network in self.networks.values():
            distributed.release_weights(network)
        if self.average is not None:
            self.average.swap()
        for network in self.networks.values():
            network.train()
