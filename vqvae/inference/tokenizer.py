"""A finished autoencoder as what it is used for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.inference.search import check_places, search
from vqvae.losses.likelihood import Likelihood
from vqvae.losses.reconstruction import ReconstructionLoss
from vqvae.model import VQVAE


@dataclass
class Tokenizer:
    """A finished autoencoder: data to codes and back, in float32."""

    model: VQVAE
    reconstruction: ReconstructionLoss
    fingerprint: str

    @torch.no_grad()
    def encode(self, x: Tensor, search_sweeps: int = 0) -> list[Tensor]:
        """x (B, C, *S) in [-1, 1] -> M code maps: the encoder's, which priors learn, or better ones that are searched for.

        Raises ValueError where `check_searchable` does.
        """
        codes = self.model.encode(x)
        if not search_sweeps:
            return codes
        self.check_searchable(tuple(x.shape[2:]))
        return search(self.model, self.reconstruction.to_image, x, codes, search_sweeps)

    def check_searchable(self, size: tuple[int, ...]) -> None:
        """Raises ValueError where codes of data with dims *S cannot be searched for."""
        if isinstance(self.reconstruction, Likelihood):
            raise UserError(f"it searches for less squared error, and loss={self.reconstruction.name} is a likelihood")
        check_places(self.model, size)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> the best that the model makes of it: through codes that it searches for if it is to."""
        if self.model.search_sweeps:
            return self.decode(self.encode(x, self.model.search_sweeps))
        return self.reconstruction.to_image(self.model(x).decoded)

    @torch.no_grad()
    def decode(self, codes: list[Tensor]) -> Tensor:
        """M code maps -> (B, C, *S) in [-1, 1]."""
        return self.reconstruction.to_image(self.model.decode(codes))
