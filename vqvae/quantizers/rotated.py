"""Quantizers in a rotated frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vqvae.quantizers.base import FlatQuantized, Quantizer
from vqvae.quantizers.compose import Composition
from vqvae.ranges import PositiveInt, checked


@checked
class Rotated(Composition):
    """A fixed random orthogonal matrix before `inner` and its transpose after it, so that no coordinate is special.

    From QuIP (arXiv 2307.13304). Worth it for quantizers by coordinate, such as FSQ.

    >>> from vqvae import FSQ
    >>> quantizer = Rotated(8, FSQ(8, [8, 5, 5]))
    >>> quantizer(torch.randn(2, 8, 4, 4)).z_q.shape
    torch.Size([2, 8, 4, 4])
    """

    rotation: Tensor

    def __init__(self, dim: PositiveInt, inner: Quantizer) -> None:
        super().__init__(dim, [inner])
        self.code_dim = inner.dim
        if dim != inner.dim:
            self.project_in, self.project_out = nn.Linear(dim, inner.dim), nn.Linear(inner.dim, dim)
        self.register_buffer("rotation", torch.linalg.qr(torch.randn(inner.dim, inner.dim)).Q)
        self.init_vectors = inner.init_vectors

    def turn(self, z: Tensor) -> Tensor:
        """z (N, D) -> (N, D of inner)."""
        return self.project_in(z) @ self.rotation

    def project(self, z: Tensor) -> Any:
        return self.parts[0].project(self.turn(z))

    def quantize(self, inside: Any) -> FlatQuantized:
        return self.parts[0].quantize(inside)

    def output(self, inside: Any, flat: FlatQuantized) -> Tensor:
        return self.project_out(self.parts[0].output(inside, flat) @ self.rotation.t())

    def decode_flat(self, codes: Tensor) -> Tensor:
        return self.project_out(self.parts[0].decode_flat(codes) @ self.rotation.t())

    def begin_run(self, z_e: Tensor) -> None:
        self.parts[0].begin_run(self.turn(self.flatten(z_e)))
