"""Video files: exactly the frames that are asked for, by PyAV."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqvae.data.formats import MOST_PIXELS
from vqvae.errors import UserError
from vqvae.storage.files import write_bytes
from vqvae.surroundings.own_folder import own_folder

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif"})
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
HIDDEN = ("vp8",)  # codecs of which some packets are never shown: their frames are counted by decoding


class Index(NamedTuple):
    """Frames of a video in the order in which they are shown: times (n,), and from where they can be decoded.

    times: in the units of the file; empty where they do not tell frames apart. keys: (k, 2), time and place for the seek of
    those frames from which on decoding can start. milliseconds: of a frame.
    """

    length: int
    times: list[int]
    keys: list[list[int]]
    milliseconds: float


def library() -> Any:
    """The package av. Raises UserError if it is missing."""
    try:
        with own_folder():
            import av
    except ImportError as error:
        raise UserError(f"videos need the package av ({error}): pip install '.[video]'") from error
    return av


@contextmanager
def opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """Context of a container of PyAV and its first video stream. Raises OSError for whatever PyAV raises in it."""
    av = library()
    try:
        with av.open(str(file), metadata_errors="replace") as container:
            if not container.streams.video:
                raise OSError("it holds no video")
            stream = container.streams.video[0]
            if not 0 < stream.width * stream.height <= MOST_PIXELS:
                raise OSError(f"its frames are {stream.width} x {stream.height}")
            stream.thread_type = "NONE"
            yield container, stream
    except (OSError, UserError):
        raise
    except Exception as error:  # FFmpeg's errors, some of which are no OSError
        raise OSError(f"{type(error).__name__}: {error}") from error


def index_of(file: Path) -> Index:
    """Look through the packets of a file, or decode it where they do not tell its frames. Raises OSError."""
    with opened(file) as (container, stream):
        packets = [one for one in container.demux(stream) if one.size and not one.is_discard]
        times = [one.pts for one in packets]
        keys = [[one.pts, one.dts] for one in packets if one.is_keyframe]
        rate = stream.average_rate or stream.guessed_rate
        codec = stream.codec_context.name
    milliseconds = float(1000 / rate) if rate else 0.0
    if not times:
        raise OSError("it holds no frames")
    if codec in HIDDEN or None in times or len(set(times)) < len(times) or any(None in key for key in keys):
        with opened(file) as (container, stream):
            return Index(sum(1 for _ in container.decode(stream)), [], [], milliseconds)
    return Index(len(times), sorted(times), sorted(keys), milliseconds)


def read_frames(
    file: Path, index: Index, start: int, count: int, stride: int, to_item: Callable[[Image.Image], Tensor]
) -> Tensor:
    """`count` frames from number `start` on, every `stride`-th -> what `to_item` makes of each (C, H, W), (C, count, H, W).

    Raises OSError where one of them cannot be decoded.
    """
    wanted = range(start, start + count * stride, stride)[:count]
    if wanted[-1] >= index.length:
        raise OSError(f"it has {index.length} frames, and number {wanted[-1]} is needed")
    if not index.times:
        found = by_number(file, wanted, to_item)
    else:
        times = [index.times[number] for number in wanted]
        key = max((key for key in index.keys if key[0] <= times[0]), default=None)
        found = by_time(file, times, key, to_item) if key and key[0] > index.times[0] else {}
        if len(found) < count:  # nothing to seek, or the seek has missed
            found = by_time(file, times, None, to_item)
        found = {number: found[time] for number, time in zip(wanted, times) if time in found}
    missing = [number for number in wanted if number not in found]
    if missing:
        raise OSError(f"{len(missing)} of its frames cannot be decoded, such as number {missing[0]} of {index.length}")
    return torch.stack([found[number] for number in wanted], 1)  # (C, count, H, W)


def by_number(file: Path, wanted: range, to_item: Callable[[Image.Image], Tensor]) -> dict[int, Tensor]:
    """Frames by their numbers, decoded from the beginning on."""
    with opened(file) as (container, stream):
        frames = enumerate(itertools.islice(container.decode(stream), wanted[-1] + 1))
        return {number: to_item(upright(frame)) for number, frame in frames if number in wanted}


def by_time(
    file: Path, times: list[int], key: list[int] | None, to_item: Callable[[Image.Image], Tensor]
) -> dict[int, Tensor]:
    """Frames by their times, decoded from a key frame on (None: from the beginning). Those that are not there are left out."""
    found: dict[int, Tensor] = {}
    kept = set(times)
    with opened(file) as (container, stream):
        if key is not None:
            container.seek(key[1], stream=stream, backward=True, any_frame=False)
        for frame in container.decode(stream):
            # what is shown before the key frame may need frames that were not decoded
            if frame.pts in kept and (key is None or frame.pts >= key[0]):
                found[frame.pts] = to_item(upright(frame))
            if len(found) == len(kept) or (frame.pts is not None and frame.pts > times[-1]):
                break
    return found


def upright(frame: Any) -> Image.Image:
    """A frame of PyAV as an image, turned as the file says, which phones do not turn themselves."""
    image, turn = frame.to_image(), TURNS.get(getattr(frame, "rotation", 0) % 360)
    return image if turn is None else image.transpose(turn)


def write_mp4(path: Path, frames: list[Tensor], frame_ms: float) -> None:
    """Frames uint8 (1 or 3, H, W) -> an H.264 file that appears under its name when it is whole."""
    av = library()
    height, width = frames[0].shape[1:]
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        rate = Fraction(1000 / frame_ms).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"  # the first halves both sides
        for image in frames:
            pixels = np.ascontiguousarray(image.expand(3, -1, -1).movedim(0, -1).numpy())  # (H, W, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    write_bytes(path, data.getvalue())
