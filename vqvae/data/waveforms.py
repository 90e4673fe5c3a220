"""Base class of sound data sets, mu-law companding, and .wav files."""

from __future__ import annotations

import io
import math
import wave
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.data.base import Data
from vqvae.data.wave_plot import plot_waves
from vqvae.images import normalize, to_uint8, x_of
from vqvae.ranges import In, PositiveInt, checked
from vqvae.storage.files import write_bytes

MU = 255  # of the mu-law


@checked
@dataclass(kw_only=True)
class Sounds(Data):
    """Base of sound data sets. ndim: 1. channels: C, 1 or 2. sample_rate: samples per second."""

    writes_singles: ClassVar[bool] = True

    ndim: Annotated[int, In(1)]
    channels: Annotated[int, In(1, 2)]
    sample_rate: PositiveInt

    @abstractmethod
    def waves(self, x: Tensor) -> Tensor:
        """x (n, C, T) in [-1, 1] as models see it -> waves (n, C, T) in [-1, 1]."""

    @property
    def noun(self) -> str:
        return "sound"

    @property
    def suffix(self) -> str:
        return ".wav"

    @property
    def item_suffixes(self) -> frozenset[str]:
        return frozenset({".wav"})

    def save(self, path: Path, item: Tensor) -> Path:
        """Write a 16-bit .wav file."""
        file = path.with_name(path.name + self.suffix)
        write_wav(file, self.waves(x_of(item)), self.sample_rate)
        return file


@checked
@dataclass(kw_only=True)
class Waveforms(Sounds):
    """Base of sounds of one length: uint8 (C, T) after mu-law companding (arXiv 1609.03499, section 2.2; ITU-T G.711).

    A plain wave would lose quiet passages when rounded to 8 bits; a companded one does not. The model sees the companded
    wave in [-1, 1], so errors in quiet passages weigh more than in loud ones, as they do for the ear. Plots and .wav files
    are expanded again.

    length: T, in samples.
    """

    size_key: ClassVar[str] = "length"

    length: PositiveInt

    @property
    def size(self) -> tuple[int, ...]:
        return (self.length,)

    def waves(self, x: Tensor) -> Tensor:
        return expand_x(x)

    def picture(self, items: Tensor) -> Tensor:
        """Plot the expanded waves of items (n, C, T)."""
        return plot_waves(expand(items))

    def load(self, path: Path) -> Tensor:
        """Read the middle of a 16-bit .wav file; shorter sounds are padded with silence."""
        waves = read_wav(path, self.channels, self.sample_rate)
        start = max(0, waves.shape[1] - self.length) // 2
        waves = waves[:, start : start + self.length]
        return compand(F.pad(waves, (0, self.length - waves.shape[1])))


def compand(waves: Tensor) -> Tensor:
    """Compand waves in [-1, 1] to uint8: sign(x) ln(1 + mu |x|) / ln(1 + mu), in 256 levels. Any shape."""
    return to_uint8(waves.sign() * torch.log1p(MU * waves.abs()) / math.log1p(MU))


def expand(items: Tensor) -> Tensor:
    """Expand uint8 to waves in [-1, 1], float32: the inverse of `compand`."""
    return expand_x(normalize(items))


def expand_x(x: Tensor) -> Tensor:
    """Expand companded waves in [-1, 1] to waves in [-1, 1]. Any shape."""
    return x.sign() * torch.expm1(x.abs() * math.log1p(MU)) / MU


def write_wav(path: Path, waves: Tensor, sample_rate: int) -> None:
    """Write waves (C, T) in [-1, 1] to a 16-bit .wav file."""
    samples = (waves.T.cpu() * 32767).round().clamp(-32768, 32767).to(torch.int16).contiguous()  # (T, C)
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(len(waves))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    write_bytes(path, data.getvalue())


def read_wav(path: Path, channels: int, sample_rate: int) -> Tensor:
    """Read waves (channels, T) in [-1, 1] from a 16-bit .wav file: the inverse of `write_wav`.

    Raises OSError if it cannot be read, or has another sample rate or number of channels.
    """
    try:
        with wave.open(str(path), "rb") as file:
            form = (8 * file.getsampwidth(), file.getnchannels(), file.getframerate())
            samples = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    if form != (16, channels, sample_rate):
        wanted = f"16 bits, {channels} channels, {sample_rate} samples per second"
        raise OSError("it has {} bits, {} channels, {} samples per second; this data set has {}".format(*form, wanted))
    return (samples.view(-1, channels).T / 32767).clamp(-1, 1)  # (C, T)
