"""The reconstruction objective: an output head and named terms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.losses.heads import Head
from vqvae.losses.terms import Term


class Objective(nn.Module):
    """forward: decoder output, x (B, C, *S) in [-1, 1] -> losses by name, float32 scalars before their weights.

    Args:
        head: turns decoder output into data; a likelihood has a loss of its own, which comes first.
        terms: compare that with x; the names are those in the log.

    Raises UserError for a term that has the name of the head's loss.
    """

    terms: list[Term]

    def __init__(self, head: Head, terms: dict[str, Term]) -> None:
        super().__init__()
        self.head, self.names = head, list(terms)
        self.terms = nn.ModuleList(terms.values())  # type: ignore[assignment]
        self.weights = {**head.weights(), **{name: term.weight for name, term in terms.items()}}
        if twice := [name for name in terms if name in head.weights()]:
            raise UserError(f"loss.terms.{twice[0]} has the name of the head's own loss; choose another")

    def forward(self, output: Tensor, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            losses = self.head.losses(output.float(), x)
            x_hat = self.head.reconstruct(output) if self.names else output
        for name, term in zip(self.names, self.terms):
            losses[name] = term.value(x_hat, x)
        return losses
