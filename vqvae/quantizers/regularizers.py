"""Extra losses of a vector quantizer, each with its own weight and name."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Regularizer(nn.Module):
    """forward: z (N, d), attached q (N, d), codes (K, d) -> scalar before the weight.

    `trains_codes`: the loss is there to move the codes, so it needs a codebook that learns by gradient.
    """

    trains_codes: bool = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight}")
        self.weight = weight


class Commitment(Regularizer):
    """mean |z - sg q|^2 over all elements: keeps the encoder near its codes (arXiv 1711.00937, equation 3).

    Its weight is the paper's beta.
    """

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        return F.mse_loss(z, q.detach())


class CodebookLoss(Regularizer):
    """mean |sg z - q|^2 over all elements: pulls codes to the vectors that chose them (same equation, weight 1)."""

    trains_codes = True

    def forward(self, z: Tensor, q: Tensor, codes: Tensor) -> Tensor:
        return F.mse_loss(q, z.detach())
