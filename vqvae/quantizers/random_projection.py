"""Codes from a projection that is never trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.quantizers.base import FlatQuantized, NumCodes, Quantizer
from vqvae.quantizers.nearest import nearest_code
from vqvae.ranges import PositiveInt, checked


@checked
class RandomProjection(Quantizer):
    """BEST-RQ's targets (Chiu et al. 2022, arXiv 2202.01855, section 3.1): all frozen, no gradient for the encoder.

    Each vector is normalized over its coordinates, multiplied by a frozen Xavier-uniform matrix (D, d), and takes the code at
    the smallest angle among K frozen random ones. The decoder receives the code through a linear layer, which does learn.

    >>> quantizer = RandomProjection(8, size=64, code_dim=4)
    >>> quantizer(torch.randn(2, 8, 10)).codes[0].shape
    torch.Size([2, 10])
    """

    trains_encoder = False
    projection: Tensor
    codebook: Tensor

    def __init__(self, dim: PositiveInt, size: NumCodes, code_dim: PositiveInt) -> None:
        super().__init__(dim, code_dim, [size])
        self.project_in = nn.Identity()
        self.project_out = nn.Linear(code_dim, dim)
        self.register_buffer("projection", torch.empty(dim, code_dim))
        self.register_buffer("codebook", torch.empty(size, code_dim))
        self.redraw()

    def redraw(self) -> None:
        nn.init.xavier_uniform_(self.projection)
        self.codebook.copy_(F.normalize(torch.randn_like(self.codebook), dim=1))

    def quantize(self, z: Tensor) -> FlatQuantized:
        z = F.layer_norm(z.detach(), (self.dim,)) @ self.projection  # (N, d)
        indices = nearest_code(F.normalize(z, dim=1), self.codebook)[:, None]  # (N, 1)
        return FlatQuantized(self.lookup(indices), indices)

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return q

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[:, 0], self.codebook)

    def codebooks(self) -> list[Tensor | None]:
        return [self.codebook]
