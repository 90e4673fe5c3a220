"""Gradient estimators: they pass the gradient by the lookup."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import distributed
from vqvae.quantizers.base import with_value
from vqvae.ranges import NonNegativeFloat, PositiveFloat, checked


class Estimator(nn.Module):
    """forward: z (N, d), q (N, d), attached to the codes -> the quantizer's output in training (N, d).

    `trains_codes`: the output passes a gradient to the codes, so they need no loss of their own. `needs_nearest`: it
    is only sound where q is the code nearest to z.
    """

    trains_codes: bool = False
    needs_nearest: bool = False


class StraightThrough(Estimator):
    """Value q, gradient of z copied (Bengio et al. 2013, arXiv 1308.3432)."""

    def forward(self, z: Tensor, q: Tensor) -> Tensor:
        return with_value(q, z)


@checked
class Synchronised(Estimator):
    """Straight through, and nu times the output's gradient goes to the codes as well (arXiv 2305.08842, section 4.3).

    The codes then move in the step in which the encoder does, not one later.
    """

    trains_codes = True

    def __init__(self, nu: PositiveFloat) -> None:
        super().__init__()
        self.nu = nu

    def forward(self, z: Tensor, q: Tensor) -> Tensor:
        return with_value(q, z + self.nu * q)


class Rotation(Estimator):
    """Value q, gradient turned and scaled as z is onto q (Fifty et al. 2024, arXiv 2410.06424).

        q = lambda R z,  R = I - 2 w w^T + 2 v u^T,  u = z / |z|, v = q / |q|, w = (u + v) / |u + v|, lambda = |q| / |z|

    R and lambda are constants in the backward pass. Where u, v or w do not exist (a vector of zeros, opposite directions),
    the gradient is copied as by straight-through.

    A code is the mean of its vectors, hence shorter than most of them: lambda is below 1 on average, and the gradient that
    comes through holds z small. `RotationUnscaled` and `RotationLifted` are without most of that.
    """

    needs_nearest = True
    smallest_norm = 1e-6  # below it a direction is rounding error

    def forward(self, z: Tensor, q: Tensor) -> Tensor:
        with torch.no_grad():
            z_norm, q_norm = z.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True)  # (N, 1)
            u, v = F.normalize(z, dim=1), F.normalize(q, dim=1)
            axis = self.axis(u, v)  # (N, d)
            axis_norm = axis.norm(dim=1, keepdim=True)
            sound = torch.minimum(torch.minimum(z_norm, q_norm), axis_norm) > self.smallest_norm
            w = axis / axis_norm.clamp_min(self.smallest_norm)  # clamp: such rows are not used
            scale = self.scale(z_norm, q_norm)
        moved = scale * self.turn(z, u, v, w)  # (N, d)
        return with_value(q, torch.where(sound, moved, z))

    def scale(self, z_norm: Tensor, q_norm: Tensor) -> Tensor:
        """Norms of z and q (N, 1) -> lambda (N, 1)."""
        return q_norm / z_norm.clamp_min(self.smallest_norm)  # clamp: such rows are not used

    def axis(self, u: Tensor, v: Tensor) -> Tensor:
        return u + v

    def turn(self, z: Tensor, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        along_w, along_u = (w * z).sum(1, keepdim=True), (u * z).sum(1, keepdim=True)  # (N, 1)
        return z - 2 * along_w * w + 2 * along_u * v


class RotationUnscaled(Rotation):
    """As Rotation with lambda = 1: the gradient is turned, and keeps its length."""

    def scale(self, z_norm: Tensor, q_norm: Tensor) -> Tensor:
        return torch.ones_like(z_norm)


class RotationLifted(Rotation):
    """As Rotation on (z, |z|) and (q, |z|), one coordinate more, which is left out of the result.

    The coordinate is the same in both, so their angle and the ratio of their norms are nearer to 0 and 1: the gradient is
    turned and scaled less.
    """

    def forward(self, z: Tensor, q: Tensor) -> Tensor:
        height = z.detach().norm(dim=1, keepdim=True)  # (N, 1)
        return super().forward(torch.cat([z, height], 1), torch.cat([q, height], 1))[:, :-1]


class Reflection(Rotation):
    """As Rotation, but z is mirrored onto q: R = I - 2 w w^T with w = (u - v) / |u - v| (same paper, its ablation).

    Where z and q point the same way, the gradient is copied.
    """

    def axis(self, u: Tensor, v: Tensor) -> Tensor:
        return u - v

    def turn(self, z: Tensor, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return z - 2 * (w * z).sum(1, keepdim=True) * w


@checked
class DiVeQ(Estimator):
    """z moved by its distance to q in a direction near that of q (Vali et al. 2025, arXiv 2509.26469).

        out = z + |q - z| sg[(v + q - z) / |v + q - z|],  v ~ N(0, noise_std^2 I)

    Encoder and codes both learn from the output, without any loss of their own. The paper's code passes its 1e-3 as the
    standard deviation; another implementation has 0.07.
    """

    trains_codes = True

    def __init__(self, noise_std: NonNegativeFloat) -> None:
        super().__init__()
        self.noise_std = noise_std

    def forward(self, z: Tensor, q: Tensor) -> Tensor:
        return move_towards(z, q, (q - z).detach() + self.noise_std * normal_like(z))


class NSVQ(Estimator):
    """z moved by its distance to q in a random direction (Vali & Baeckstroem 2022, IEEE Access 10)."""

    trains_codes = True

    def forward(self, z: Tensor, q: Tensor) -> Tensor:
        return move_towards(z, q, normal_like(z))


def normal_like(z: Tensor) -> Tensor:
    """N(0, 1) noise (N, d)."""
    return distributed.draw_of_rank(lambda rows: torch.randn(rows, z.shape[1], device=z.device), len(z))


def move_towards(z: Tensor, q: Tensor, direction: Tensor) -> Tensor:
    """z + |q - z| direction / |direction|; z, q, direction (N, d) -> (N, d)."""
    squared = (q - z).square().sum(1, keepdim=True)  # (N, 1)
    distance = (squared + 1e-12).sqrt()  # 1e-12: the root's slope is infinite where z lies on its code
    return z + distance * F.normalize(direction.detach(), dim=1)
