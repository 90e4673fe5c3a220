"""Discriminators: networks that tell data from reconstructions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

from vqvae.errors import UserError
from vqvae.networks.blocks import Widths, conv, group_norm
from vqvae.ranges import PositiveInt, checked

FIRST_ITERATIONS = 15  # of the power iteration, before the first step


class SpectralNorm(nn.Module):
    """Parametrization: a weight over its largest singular value, as a matrix of a row per output channel (arXiv 1802.05957).

    The vector that the power iteration goes on from moves in `after_step` alone. (PyTorch's moves in every forward, also in
    those of steps that are skipped, and does not work under autocast.)
    """

    left: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("left", F.normalize(torch.randn(len(weight)), dim=0))
        for _ in range(FIRST_ITERATIONS):
            self.after_step(weight, torch.tensor(True))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            right = F.normalize(matrix.detach().T @ self.left, dim=0)
            return weight / (self.left @ (matrix @ right))

    @torch.no_grad()
    def after_step(self, weight: Tensor, applied: Tensor) -> None:
        """One step of the power iteration with the weight as it is now; nothing unless `applied` (0-d bool)."""
        matrix = weight.flatten(1)
        left = F.normalize(matrix @ F.normalize(matrix.T @ self.left, dim=0), dim=0)
        self.left.copy_(torch.where(applied, left, self.left))


class Discriminator(nn.Module, ABC):
    """x (B, C, *S), data or reconstructions -> logits (B, 1, *s), one per region that is judged: above 0 for data."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    def check(self, size: tuple[int, ...]) -> None:
        """Raises UserError if the network cannot judge items of dims *S."""

    def after_step(self, applied: Tensor) -> None:
        """Update what the optimizer does not. `applied` (0-d bool) is False if the step was skipped."""
        for module in self.modules():
            if isinstance(module, ParametrizationList):
                for norm in module:
                    if isinstance(norm, SpectralNorm):
                        norm.after_step(module.original, applied)


@checked
class Patch(Discriminator):
    """PatchGAN (arXiv 1611.07004): 4x4 convolutions and LeakyReLU, a layer per entry of `widths`, then a convolution to logits.

    All but the last one of `widths` and that to the logits halve the grid. The regions of the logits overlap.
    norm: spectral (`SpectralNorm` of all weights), or group (GroupNorm after all layers of `widths` but the first). Neither
    depends on other items of the batch.
    """

    def __init__(
        self, ndim: int, channels: PositiveInt, widths: Widths, norm: Literal["spectral", "group"] = "spectral"
    ) -> None:
        super().__init__()
        self.widths, self.halvings = widths, len(widths) - 1
        layers: list[nn.Module] = []
        for index, (width_in, width) in enumerate(zip([channels, *widths], [*widths, 1])):
            stride = 2 if index < self.halvings else 1
            layers.append(conv(ndim, width_in, width, 4, stride=stride, padding=1))
            if norm == "spectral":
                register_parametrization(layers[-1], "weight", SpectralNorm(layers[-1].weight))  # type: ignore[arg-type]
            if index < len(widths):
                layers += [group_norm(width)] if norm == "group" and index > 0 else []
                layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def check(self, size: tuple[int, ...]) -> None:
        least = 3 * 2**self.halvings  # two layers without stride take one position each
        if min(size) < least:
            most = max((min(size) // 3).bit_length(), 1)
            fits = f"at most {most} widths fit" if min(size) >= 3 else "it needs 3 at least"
            raise UserError(
                f"widths={[*self.widths]} halves the grid {self.halvings} times, which needs sides of {least} or more, and "
                f"these items have a side of {min(size)}: {fits}"
            )
