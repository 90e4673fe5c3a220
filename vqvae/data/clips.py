"""Base class of data sets of clips: contact sheets, and files that move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from PIL import Image
from torch import Tensor

from vqvae.data.base import Data
from vqvae.data.formats import MOST_PIXELS, open_image
from vqvae.data.framing import ImageSize, Size, sides
from vqvae.data.images import as_item
from vqvae.data.video_files import library, write_mp4
from vqvae.errors import UserError
from vqvae.images import write_gif
from vqvae.ranges import Count, In, checked

FRAME_MS = 80.0


@checked
@dataclass(kw_only=True)
class Clips(Data):
    """Base of clips uint8 (C, T, H, W). frames: T. image_size: [height, width] of a frame, or the side of squares.

    Pictures are contact sheets. Files are GIFs, or MP4 after `write_as`.
    """

    size_key: ClassVar[str] = "image_size"
    writes_singles: ClassVar[bool] = True

    ndim: Annotated[int, In(3)]
    channels: Annotated[int, In(1, 3)]
    frames: Count
    image_size: ImageSize

    def __post_init__(self) -> None:
        super().__post_init__()
        self.file_format = "gif"

    @property
    def size(self) -> tuple[int, ...]:
        return (self.frames, *sides(self.image_size))

    @property
    def frame_ms(self) -> float:
        """How long a frame is shown."""
        return FRAME_MS

    def picture(self, items: Tensor) -> Tensor:
        """Contact sheets of clips (n, C, T, H, W): their frames in rows, about as many as columns."""
        columns = math.ceil(math.sqrt(items.shape[2]))
        frames = list(items.unbind(2))
        frames += [torch.full_like(frames[0], 255)] * (-len(frames) % columns)
        rows = [torch.cat(frames[start : start + columns], -1) for start in range(0, len(frames), columns)]
        return torch.cat(rows, -2)  # (n, C, rows H, columns W)

    def write_as(self, file_format: str) -> None:
        if file_format not in ("gif", "mp4"):
            raise UserError(f"format={file_format} is none that clips are written in: gif, mp4")
        if file_format == "mp4":
            library()  # missing, that is one sentence before any work
        self.file_format = file_format

    @property
    def noun(self) -> str:
        return "clip"

    @property
    def suffix(self) -> str:
        return f".{self.file_format}"

    @property
    def item_suffixes(self) -> frozenset[str]:
        return frozenset({".gif"})

    def save(self, path: Path, item: Tensor) -> Path:
        """Write one clip (C, T, H, W)."""
        file = path.with_name(path.name + self.suffix)
        frames = list(item.cpu().unbind(1))
        if self.file_format == "mp4":
            write_mp4(file, frames, self.frame_ms)
        else:
            write_gif(file, frames, round(self.frame_ms), round(self.frame_ms))
        return file

    def load(self, path: Path) -> Tensor:
        """Read the first frames of a GIF, where a longer one stands for several equal ones. Raises OSError if it has fewer."""
        return load_gif(path, self.frames, sides(self.image_size), self.channels, self.frame_ms)


def load_gif(path: Path, count: int, size: Size, channels: int, frame_ms: float) -> Tensor:
    """The first frames of a GIF -> (channels, count, *size). Raises OSError if it has fewer."""
    try:
        with open_image(path, MOST_PIXELS) as image:
            frames: list[Tensor] = []
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                times = max(1, round(image.info.get("duration", frame_ms) / frame_ms))
                frames += [as_item(image, size, channels)] * min(times, count)
                if len(frames) >= count:
                    break
            else:
                raise OSError(f"it has {len(frames)} frames, and a clip has {count}")
    except OSError:
        raise
    except (Image.DecompressionBombWarning, Exception) as error:  # Pillow's parsers raise many kinds
        raise OSError(f"{type(error).__name__}: {error}") from error
    return torch.stack(frames[:count], 1)  # (channels, count, *size)
