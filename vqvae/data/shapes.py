"""The built-in data set: shapes of ten classes on textured backgrounds, drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.data.base import Split, TensorSplit, fingerprint
from vqvae.data.framing import Size, as_setting, sides
from vqvae.data.images import Images
from vqvae.ranges import In, PositiveInt, checked

VERSION = 1  # part of the fingerprint; raise it when the drawing changes
DRAW_CHUNK = 250  # images drawn at a time, so that their coordinate planes stay in cache


@checked
@dataclass(kw_only=True)
class Shapes(Images):
    """`train_count` training images, `val_count` validation and as many test images, determined by `draw_seed`.

    Class, position, size, angle, colors and the textures of shape and background vary; edges are anti-aliased.
    """

    channels: Annotated[int, In(3)]
    train_count: PositiveInt
    val_count: PositiveInt
    draw_seed: int

    @property
    def class_names(self) -> list[str]:
        return list(SIGNED_DISTANCES)

    def split(self, name: str) -> Split:
        count = self.train_count if name == "train" else self.val_count
        part = ["train", "val", "test"].index(name)
        identity = fingerprint(["shapes", VERSION, self.draw_seed, part, count, as_setting(self.size)])
        images, labels = draw_shapes(count, self.size, self.draw_seed * 3 + part)
        return TensorSplit(name, labels, identity, images)


def draw_shapes(count: int, size: int | Size, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images uint8 (count, 3, height, width) and their classes int64 (count,). Deterministic."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(SIGNED_DISTANCES), (count,), generator=generator)
    images = [draw_chunk(part, sides(size), generator) for part in labels.split(DRAW_CHUNK)]
    return torch.cat(images), labels


def draw_chunk(labels: Tensor, size: Size, generator: torch.Generator) -> Tensor:
    """Draw images uint8 (n, 3, height, width) of the classes `labels` (n,).

    The shorter side goes from -1 to 1, the longer one further.
    """
    n, shorter = len(labels), min(size)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, 1, 1, generator=generator) * (high - low) + low

    ends = [side / shorter for side in size]
    y, x = ((torch.arange(side) + 0.5) / shorter * 2 - end for side, end in zip(size, ends))  # centers of pixels
    y, x = y[:, None], x[None, :]
    radius = uniform(0.5, 0.85)
    slack_y, slack_x = (end - radius for end in ends)  # keeps the whole shape inside the image
    dx, dy, angle = x - uniform(-1, 1) * slack_x, y - uniform(-1, 1) * slack_y, uniform(-0.5, 0.5)
    u = (dx * angle.cos() + dy * angle.sin()) / radius  # (n, height, width): the shape's own coordinates
    v = (dy * angle.cos() - dx * angle.sin()) / radius
    distance = torch.empty(n, *size)
    for index, signed_distance in enumerate(SIGNED_DISTANCES.values()):
        chosen = labels == index
        distance[chosen] = signed_distance(u[chosen], v[chosen])
    cover = (0.5 - distance * radius * shorter / 2).clamp(0, 1)[:, None]  # (n, 1, height, width), edges one pixel wide

    ground, fill = uniform(0.0, 0.45, 3), uniform(0.55, 1.0, 3)  # bright on dark, so that every shape is visible
    back = texture(x, y, ground, 1.0, uniform, generator)
    front = texture(u[:, None], v[:, None], fill, 0.5, uniform, generator)
    image = back * (1 - cover) + front * cover
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def texture(
    x: Tensor, y: Tensor, color: Tensor, strength: float, uniform: Callable[..., Tensor], generator: torch.Generator
) -> Tensor:
    """Color (n, 3, 1, 1) plus a gradient, stripes and soft noise on coordinates x, y -> (n, 3, height, width)."""
    n, size = len(color), (y.shape[-2], x.shape[-1])
    angle, frequency = uniform(0, 2 * math.pi, 1), uniform(2, 7, 1)
    along = x * angle.cos() + y * angle.sin()  # (n, 1, height, width)
    stripes = torch.sin(along * frequency + uniform(0, 2 * math.pi, 1))
    gradient = (x * uniform(-1, 1, 1) + y * uniform(-1, 1, 1)) * uniform(-0.15, 0.15, 3)
    coarse = torch.rand(n, 1, 7, 7, generator=generator) - 0.5
    noise = F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    return color + strength * (stripes * uniform(-0.08, 0.08, 1) + gradient + noise * uniform(-0.12, 0.12, 1))


def box(u: Tensor, v: Tensor, half_u: float, half_v: float) -> Tensor:
    """Signed distance of a box around 0, exact up to corners."""
    return torch.maximum(u.abs() - half_u, v.abs() - half_v)


def polygon_sector(u: Tensor, v: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Folds the plane into the first of 2 x `points` mirrored sectors -> coordinates along and across its axis."""
    sector = 2 * math.pi / points
    angle = torch.atan2(v, u)
    folded = (angle - sector * torch.round(angle / sector)).abs()
    r = torch.hypot(u, v)
    return r * torch.cos(folded), r * torch.sin(folded)


def disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.85


def ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.72).abs() - 0.22


def square(u: Tensor, v: Tensor) -> Tensor:
    return box(u, v, 0.75, 0.75)


def triangle(u: Tensor, v: Tensor) -> Tensor:
    along, _ = polygon_sector(-u, v, 3)
    return along - 0.5


def star(u: Tensor, v: Tensor) -> Tensor:
    along, across = polygon_sector(u, v, 5)
    inner = 0.42  # radius of the inner corners; the outer ones lie at 1
    x, y = inner * math.cos(math.pi / 5), inner * math.sin(math.pi / 5)
    length = math.hypot(1 - x, y)
    return ((along - 1) * y + across * (1 - x)) / length  # distance from the line between two corners


def cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(box(u, v, 0.95, 0.28), box(u, v, 0.28, 0.95))


def crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.95, 0.78 - torch.hypot(u - 0.5, v))


def heart(u: Tensor, v: Tensor) -> Tensor:
    x, y = u.abs() / 1.7, (0.95 - v) / 1.7  # the tip at y = 0, the lobes around (1/4, 3/4)
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    diagonal = 0.5 * (x + y).clamp_min(0)
    side = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - diagonal, y - diagonal)) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, side) * 1.7


def arrow(u: Tensor, v: Tensor) -> Tensor:
    head = torch.maximum(-u, (u * 0.8 + v.abs() * 0.95 - 0.76) / math.hypot(0.8, 0.95))
    return torch.minimum(head, box(u + 0.45, v, 0.5, 0.24))


def bars(u: Tensor, v: Tensor) -> Tensor:
    return box(u, v.abs() - 0.52, 0.8, 0.24)


SIGNED_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    shape.__name__: shape for shape in (disc, ring, square, triangle, star, cross, crescent, heart, arrow, bars)
}
