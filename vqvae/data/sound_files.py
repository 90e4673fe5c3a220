"""Sound files of any rate, read in parts and brought to one rate."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vqvae.errors import UserError
from vqvae.surroundings.own_folder import own_folder

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})
MARGIN_SECONDS = 0.05  # read on both sides of a part that is resampled: longer than the resampler's filter
MOST_SAMPLES_PER_BYTE = 5000  # of any format, silence among it: a header that tells of more is wrong
LONGEST_BLOCK = 8192  # samples of Vorbis
RESERVOIR = 16 * 1152  # samples of frames that hold 511 bytes at 32 kbit/s, from which an MPEG-1 frame may take a part
LOW_RESERVOIR = 96 * 576  # of MPEG-2 and 2.5: 255 bytes at 8 kbit/s
PAGE_HEADER, TAIL_BYTES = 27, 3 * 65_307  # bytes: of an Ogg page without its lengths, and of three of the longest pages
MOST_PEAK = 2.0  # files of floats go somewhat beyond full scale, which is clipped; more than this is another unit


def library(name: str) -> Any:
    """The package soundfile or soxr. Raises UserError if it is missing."""
    try:
        with own_folder():
            return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without libsndfile
        raise UserError(f"data=audio needs the package {name} ({error}): pip install '.[audio]'") from error


def name_for_soundfile(file: Path) -> str | bytes:
    """A file's name as text, which Windows needs; as bytes where it is none."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return os.fsencode(file)
    return str(file)


@contextlib.contextmanager
def open_sound(file: Path, channels: int, rate: int) -> Iterator[Any]:
    """Context of an opened soundfile.SoundFile whose sound can become `channels` at `rate`. Raises OSError else."""
    soundfile = library("soundfile")
    try:
        sound = soundfile.SoundFile(name_for_soundfile(file))
    except (RuntimeError, TypeError) as error:  # LibsndfileError; a file without a format
        raise OSError(str(error)) from error
    with sound:
        if sound.frames > MOST_SAMPLES_PER_BYTE * file.stat().st_size:
            raise OSError(f"it tells of {sound.frames} samples, more than a file of its size can hold")
        if channels == 2 and sound.channels > 2:
            raise OSError(f"it has {sound.channels} channels, which are not made two: set data.channels=1")
        if sound.samplerate != rate:
            library("soxr")  # missing, that is one sentence before any work
        yield sound


def length_of(file: Path, channels: int, rate: int) -> int:
    """Samples of a file's sound at `rate`. Raises OSError if it cannot be read."""
    with open_sound(file, channels, rate) as sound:
        return sound.frames * rate // sound.samplerate


def read_sound(file: Path, start: int, length: int | None, channels: int, rate: int) -> np.ndarray:
    """A part of a file's sound as (channels, length) in [-1, 1] at `rate`, float32, whatever the file's own rate is.

    start: in samples at `rate`; there is silence before and beyond the file's ends. length None: to the end. One channel is the
    mean of all; of one channel two are made by repetition. Raises OSError if it cannot be read, and for values that are none of
    a sound.
    """
    with open_sound(file, channels, rate) as sound:
        own, divisor = sound.samplerate, math.gcd(sound.samplerate, rate)
        up, down = rate // divisor, own // divisor  # `down` samples of the file last as long as `up` of the result
        whole = sound.frames * rate // own
        length = whole - start if length is None else length
        first, beyond = max(start, 0), min(start + length, whole)
        if first >= beyond:
            return np.zeros((channels, length), np.float32)
        margin = 0 if own == rate else math.ceil(MARGIN_SECONDS * own / down)  # in blocks of `down`
        begin = max(first // up - margin, 0)
        end = min((-(-beyond // up) + margin) * down, sound.frames)
        try:
            sought = begin_at(sound, begin * down, file)
            sound.seek(sought)
            values = sound.read(end - sought, dtype="float32", always_2d=True)  # (frames, channels of the file)
            values = values[begin * down - sought :]
        except RuntimeError as error:
            raise OSError(str(error)) from error
    if len(values) < end - begin * down:
        raise OSError(f"it ends {end - begin * down - len(values)} samples before the end that it tells")
    check_values(values)
    if channels == 1 or values.shape[1] == 1:
        values = values.mean(1, keepdims=True).repeat(channels, 1)
    if own != rate:
        values = library("soxr").resample(values, own, rate)
    part = np.zeros((channels, length), np.float32)
    heard = values[first - begin * up : beyond - begin * up].clip(-1, 1).T  # (channels, samples)
    part[:, first - start : first - start + heard.shape[1]] = heard
    return part


def begin_at(sound: Any, place: int, file: Path) -> int:
    """The sample to seek to, so that what is read in one go from there on is what a decode of the whole file gives at `place`.

    In the last page of an Ogg Vorbis file libsndfile misses the place, and the frames of an .mp3 file need those before them.
    One go, because soundfile seeks after each read.
    """
    if sound.format == "OGG" and sound.subtype == "VORBIS":
        return max(0, min(place, sound.frames - samples_at_end(file, sound.frames) - LONGEST_BLOCK))
    if sound.subtype == "MPEG_LAYER_III":
        return max(0, place - (RESERVOIR if sound.samplerate >= 32_000 else LOW_RESERVOIR))
    return place


def samples_at_end(file: Path, frames: int) -> int:
    """Samples in the last page of an Ogg file (RFC 3533); all `frames` where that is not clear."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
        tail = opened.read()
    found: list[tuple[int, bytes]] = []  # of pages in which a packet ends: samples up to there, and the stream
    place = tail.find(b"OggS")
    while 0 <= place <= len(tail) - PAGE_HEADER:
        samples, segments = int.from_bytes(tail[place + 6 : place + 14], "little", signed=True), tail[place + 26]
        lengths = tail[place + PAGE_HEADER : place + PAGE_HEADER + segments]
        end = place + PAGE_HEADER + segments + sum(lengths)
        if (
            end != len(tail) and tail[end : end + 4] != b"OggS"
        ):  # the letters stood in a sound, or there is more behind the last page
            found, place = [], tail.find(b"OggS", place + 1)
            continue
        if samples >= 0:
            found.append((samples, tail[place + 14 : place + 18]))
        place = end
    if len(found) < 2 or found[-1][1] != found[-2][1] or not 0 <= found[-1][0] - found[-2][0] <= frames:
        return frames
    return found[-1][0] - found[-2][0]


def check_values(values: np.ndarray) -> None:
    """Raise OSError for values that are not finite, and for those far beyond full scale."""
    if not np.isfinite(values).all():
        raise OSError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite")
    if (peak := float(np.abs(values).max(initial=0))) > MOST_PEAK:
        raise OSError(f"its values go to {peak:g}, and those of sounds lie in -1 .. 1")


def decibels(wave: np.ndarray) -> float:
    """Root mean square of a wave in dB of full scale, -inf for silence."""
    power = float(np.square(wave, dtype=np.float64).mean())
    return 10 * math.log10(power) if power > 0 else -math.inf
