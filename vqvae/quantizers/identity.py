"""No quantization: the plain autoencoder, as a baseline."""

from __future__ import annotations

from torch import Tensor

from vqvae.errors import UserError
from vqvae.quantizers.base import Quantized, Quantizer, of_kind
from vqvae.ranges import PositiveInt, checked


@checked
class Identity(Quantizer):
    """z_q = z_e, no codes; a prior on it is refused.

    >>> z_e = torch.randn(2, 8, 4, 4)
    >>> torch.equal(Identity(8)(z_e).z_q, z_e)
    True
    """

    def __init__(self, dim: PositiveInt) -> None:
        super().__init__(dim, dim, [])

    def forward(self, z_e: Tensor) -> Quantized:
        return Quantized(of_kind(z_e.float(), z_e), [])

    def decode(self, codes: list[Tensor]) -> Tensor:
        raise UserError("quantizer=identity has no codes, so there is nothing to decode; choose another quantizer")
