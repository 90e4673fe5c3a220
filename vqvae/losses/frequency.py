"""Distance of magnitude spectra."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae.losses.terms import Term


class Frequency(Term):
    """Mean absolute difference of the magnitudes of the Fourier transforms over all data dims, orthonormal.

    Where details cannot be placed exactly, it rewards their strength, which the squared error averages away.
    """

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        dims = tuple(range(2, x.ndim))
        ours, true = (torch.fft.rfftn(values, dim=dims, norm="ortho").abs() for values in (x_hat, x))
        return (ours - true).abs().mean()
