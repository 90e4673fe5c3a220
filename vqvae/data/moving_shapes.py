"""The built-in data set of clips: shapes of ten classes that move, turn and bounce, drawn from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from vqvae.data.base import Split, TensorSplit, fingerprint
from vqvae.data.clips import Clips
from vqvae.data.framing import Size, sides
from vqvae.data.shapes import SIGNED_DISTANCES
from vqvae.ranges import In, PositiveInt, checked

VERSION = 1  # part of the fingerprint; raise it when the drawing changes
DRAW_CHUNK = 50  # clips drawn at a time


@checked
@dataclass(kw_only=True)
class MovingShapes(Clips):
    """`train_count` training clips, `val_count` validation and as many test clips, determined by `draw_seed`.

    Items are uint8 (3, T, H, W). Class, size, colors, place, velocity and turning vary; shapes bounce off the edges.
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
        identity = fingerprint(["moving_shapes", VERSION, self.draw_seed, part, count, self.size])
        clips, labels = draw_clips(count, self.frames, sides(self.image_size), self.draw_seed * 3 + part)
        return TensorSplit(name, labels, identity, clips)


def draw_clips(count: int, frames: int, size: Size, seed: int) -> tuple[Tensor, Tensor]:
    """Draw clips uint8 (count, 3, frames, height, width) and their classes int64 (count,). Deterministic."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(SIGNED_DISTANCES), (count,), generator=generator)
    return torch.cat([draw_chunk(part, frames, size, generator) for part in labels.split(DRAW_CHUNK)]), labels


def draw_chunk(labels: Tensor, frames: int, size: Size, generator: torch.Generator) -> Tensor:
    """Draw clips uint8 (n, 3, frames, height, width) of the classes `labels` (n,). The shorter side goes from -1 to 1."""
    n, shorter = len(labels), min(size)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, 1, 1, 1, generator=generator) * (high - low) + low  # (n, *shape, 1, 1, 1)

    ends = [side / shorter for side in size]
    y, x = ((torch.arange(side) + 0.5) / shorter * 2 - end for side, end in zip(size, ends))  # centers of pixels
    y, x, t = y[:, None], x[None, :], torch.arange(frames)[:, None, None]
    radius = uniform(0.3, 0.5)
    speed, heading = uniform(0.06, 0.16), uniform(-math.pi, math.pi)  # of the shorter side's half, in a frame
    steps = speed * heading.sin(), speed * heading.cos()
    centers = [bounced(uniform(-1, 1) * (end - radius) + step * t, end - radius) for end, step in zip(ends, steps)]
    angle = uniform(-math.pi, math.pi) + uniform(-0.2, 0.2) * t
    dy, dx = y - centers[0], x - centers[1]  # (n, frames, height, width)
    u = (dx * angle.cos() + dy * angle.sin()) / radius
    v = (dy * angle.cos() - dx * angle.sin()) / radius
    distance = torch.empty(n, frames, *size)
    for index, signed_distance in enumerate(SIGNED_DISTANCES.values()):
        distance[labels == index] = signed_distance(u[labels == index], v[labels == index])
    cover = (0.5 - distance * radius * shorter / 2).clamp(0, 1)[:, None]  # (n, 1, frames, ...), edges one pixel wide
    ground, fill = uniform(0.0, 0.45, 3), uniform(0.55, 1.0, 3)  # bright on dark, so that every shape is visible
    back = ground + uniform(-0.15, 0.15, 3) * x + uniform(-0.15, 0.15, 3) * y
    return ((back * (1 - cover) + fill * cover).clamp(0, 1) * 255).round().to(torch.uint8)


def bounced(place: Tensor, most: Tensor) -> Tensor:
    """Places on an endless line -> those within -most .. most of what is thrown back at both ends."""
    phase = torch.remainder(place + most, 4 * most)  # one way and back
    return torch.where(phase < 2 * most, phase, 4 * most - phase) - most
