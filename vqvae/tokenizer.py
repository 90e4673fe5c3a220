"""A finished autoencoder as what it is used for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae.losses.reconstruction import ReconstructionLoss
from vqvae.model import VQVAE


@dataclass
class Tokenizer:
    """A finished autoencoder: data to codes and back, in float32."""

    model: VQVAE
    reconstruction: ReconstructionLoss
    fingerprint: str

    @torch.no_grad()
    def encode(self, x: Tensor) -> list[Tensor]:
        """x (B, C, *S) in [-1, 1] -> M code maps."""
        return self.model.encode(x)

    @torch.no_grad()
    def decode(self, codes: list[Tensor]) -> Tensor:
        """M code maps -> (B, C, *S) in [-1, 1]."""
        return self.reconstruction.to_image(self.model.decode(codes))
