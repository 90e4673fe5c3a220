"""The built-in data set of sounds: tones of ten classes, drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from vqvae.data.base import Split, TensorSplit, fingerprint
from vqvae.data.waveforms import Waveforms, compand
from vqvae.ranges import Ge, In, PositiveInt, checked

VERSION = 1  # part of the fingerprint; raise it when the drawing changes
DRAW_CHUNK = 50  # waves drawn at a time, so that they stay in cache
LOWEST, OCTAVES = 80.0, 2.0  # pitches, in Hz: 80 .. 320
PARTIALS = 10  # of the richest tones: up to 3.2 kHz, below half the sample rate
LOWEST_RATE = 8000
NOISE = 1e-3  # standard deviation, at most; full scale is 1


@checked
@dataclass(kw_only=True)
class Tones(Waveforms):
    """`train_count` training sounds, `val_count` validation and as many test sounds, determined by `draw_seed`.

    Class, pitch, phase, loudness, attack, release and class-specific parameters vary; a little noise is added. Waves
    have few partials, so nothing aliases. Stored as mu-law uint8, see `Waveforms`.
    """

    channels: Annotated[int, In(1)]
    sample_rate: Annotated[int, Ge(LOWEST_RATE)]
    train_count: PositiveInt
    val_count: PositiveInt
    draw_seed: int

    @property
    def class_names(self) -> list[str]:
        return list(TONES)

    def split(self, name: str) -> Split:
        count = self.train_count if name == "train" else self.val_count
        part = ["train", "val", "test"].index(name)
        identity = fingerprint(["tones", VERSION, self.draw_seed, part, count, self.length, self.sample_rate])
        items, labels = draw_tones(count, self.length, self.sample_rate, self.draw_seed * 3 + part)
        return TensorSplit(name, labels, identity, items)


def draw_tones(count: int, length: int, sample_rate: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw companded waves uint8 (count, 1, length) and their classes int64 (count,). Deterministic."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(TONES), (count,), generator=generator)
    chunks = [compand(draw_chunk(part, length, sample_rate, generator)) for part in labels.split(DRAW_CHUNK)]
    return torch.cat(chunks)[:, None], labels


def draw_chunk(labels: Tensor, length: int, sample_rate: int, generator: torch.Generator) -> Tensor:
    """Draw waves (n, length) of the classes `labels` (n,)."""
    n = len(labels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, 1, generator=generator) * (high - low) + low

    t = torch.arange(length) / sample_rate  # (T,) in seconds
    end = length / sample_rate
    pitch = LOWEST * 2 ** uniform(0, OCTAVES)
    start = uniform(0, 1)  # phase in periods
    shape, speed = uniform(0, 1), uniform(0, 1)  # two class parameters
    attack, release = uniform(0.005, 0.05), uniform(0.02, 0.1)
    loudness = 10 ** uniform(-0.6, -0.05)  # -12 .. -1 dB of full scale
    waves = torch.empty(n, length)
    for index, tone in enumerate(TONES.values()):
        own = labels == index
        waves[own] = tone(t / end, pitch[own] * end, start[own], shape[own], speed[own])
    envelope = (t / attack).clamp(0, 1) * ((end - t) / release).clamp(0, 1)
    noise = torch.randn(n, length, generator=generator) * uniform(0, NOISE)
    return (waves * envelope * loudness + noise).clamp(-1, 1)


# Tones: time (T,) from 0 to 1, periods in that time, phase at its start in periods, and two draws from [0, 1], each (n, 1)
# -> (n, T) in [-1, 1].


def partials(phase: Tensor, amplitudes: dict[int, float]) -> Tensor:
    """Sum of amplitudes[h] sin(2 pi h phase), phase (n, T) in periods, scaled to [-1, 1]."""
    period = torch.arange(1024) / 1024
    waves, peak = torch.zeros_like(phase), torch.zeros_like(period)
    for number, amplitude in amplitudes.items():
        waves.add_(torch.sin(phase * (2 * math.pi * number)), alpha=amplitude)
        peak += amplitude * torch.sin(period * (2 * math.pi * number))
    return waves / peak.abs().max()


def sine(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    return partials(t * periods + start, {1: 1.0})


def square(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    return partials(t * periods + start, {h: 1 / h for h in range(1, PARTIALS, 2)})


def sawtooth(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    return partials(t * periods + start, {h: 1 / h for h in range(1, PARTIALS + 1)})


def triangle(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    return partials(t * periods + start, {h: (-1) ** (h // 2) / h**2 for h in range(1, PARTIALS, 2)})


def chirp_up(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    """Linear rise from the pitch to 2 .. 4 times the pitch."""
    return partials(periods * (t + (1 + 2 * shape) * t.square() / 2) + start, {1: 1.0})


def chirp_down(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    """`chirp_up` in reverse."""
    return chirp_up(1 - t, periods, start, shape, speed)


def vibrato(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    """Pitch that swings 2 .. 5 times, by 10 .. 25 %."""
    swings = 2 + 3 * speed
    wobble = (0.1 + 0.15 * shape) * torch.sin(2 * math.pi * (swings * t + start)) / (2 * math.pi * swings)
    return partials(periods * (t + wobble) + start, {1: 1.0})


def tremolo(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    """Loudness that swings 2 .. 5 times, down to 40 .. 0 % of the peak."""
    swing = (1 + torch.sin(2 * math.pi * ((2 + 3 * speed) * t + start))) / 2
    return partials(t * periods + start, {1: 1.0}) * (1 - (0.6 + 0.4 * shape) * swing)


def pluck(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    """Plucked string: all partials at first, the higher ones fade faster."""
    fading, waves = (-t * (1.5 + 1.5 * shape)).exp(), torch.zeros(len(periods), len(t))
    for number in range(1, PARTIALS + 1):
        waves += fading**number * torch.sin(2 * math.pi * number * (t * periods + start)) / number
    return waves / 1.71  # the peak of these partials


def bell(t: Tensor, periods: Tensor, start: Tensor, shape: Tensor, speed: Tensor) -> Tensor:
    """Frequency modulation at 1.4 times the pitch; the index fades with the loudness (Chowning 1973)."""
    fading = (-t * (2 + 2 * speed)).exp()
    index = (1 + 2 * shape) * fading
    return fading * torch.sin(2 * math.pi * (t * periods + start) + index * torch.sin(2.8 * math.pi * t * periods))


TONES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    tone.__name__: tone
    for tone in (sine, square, sawtooth, triangle, chirp_up, chirp_down, vibrato, tremolo, pluck, bell)
}
