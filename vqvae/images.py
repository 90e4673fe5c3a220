"""Images as tensors and as files."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vqvae.storage.files import write_bytes

GAP = 2  # pixels between the images of a grid
LINE = 16  # pixels of a line of text
MARGIN = 108  # pixels of the names of rows; no multiple of 8, which tells report/contents.py whether there are names
LONGEST = 200  # letters of a text
Show = Callable[[Tensor], Tensor]  # x (n, C, *S) in [-1, 1] -> images uint8 (n, 1 or 3, H, W)


def normalize(images: Tensor) -> Tensor:
    """Scale uint8 0 .. 255 to float32 -1 .. 1."""
    return images.float().div_(127.5).sub_(1)


def x_of(items: Tensor) -> Tensor:
    """Items of a data set -> float32 in -1 .. 1. Those of more than 8 bits are so already."""
    return normalize(items) if items.dtype == torch.uint8 else items


def to_uint8(x: Tensor) -> Tensor:
    """Scale float -1 .. 1 to uint8 0 .. 255: the inverse of `normalize`."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Captions(NamedTuple):
    """Texts of a grid; none where they are empty.

    Args:
        rows: at the left of each row.
        columns: above each column.
        tiles: above each image, row by row.
        note: below all.
    """

    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    tiles: Sequence[str] = ()
    note: str = ""


def grid(rows: list[Tensor], captions: Captions | None = None) -> Tensor:
    """Rows of images uint8 (n, C, H, W) -> one image (C, ., .); small images are enlarged to at least 64 pixels."""
    from torchvision.utils import make_grid

    captions = captions or Captions()
    images = torch.cat(rows).cpu()
    scale = max(1, 64 // max(images.shape[-2:]))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)  # (n, C, scale H, scale W)
    if captions.tiles:
        images = F.pad(images, (0, 0, LINE, 0), value=255)
    sheet = make_grid(images, nrow=len(rows[0]), padding=GAP, pad_value=255)
    return captioned(sheet, images.shape[-2:], captions) if any(captions) else sheet


def captioned(sheet: Tensor, tile: torch.Size, captions: Captions) -> Tensor:
    """A grid (3, ., .) of images with this height and width -> the same with its captions."""
    left, top, bottom = MARGIN * bool(captions.rows), LINE * bool(captions.columns), LINE * bool(captions.note)
    sheet = F.pad(sheet, (left, 0, top, bottom), value=255)
    height, width = tile[0] + GAP, tile[1] + GAP
    across = max(1, (sheet.shape[2] - left - GAP) // width)
    image = Image.fromarray(sheet.movedim(0, -1).numpy())  # (., ., 3)
    draw = ImageDraw.Draw(image)
    for row, name in enumerate(captions.rows):
        draw.text((GAP, top + GAP + row * height + height / 2), cut(name, left - 2 * GAP), "black", font(), "lm")
    for column, name in enumerate(captions.columns):
        draw.text((left + GAP + column * width, LINE / 2), cut(name, width), "black", font(), "lm")
    for place, name in enumerate(captions.tiles):
        x, y = left + GAP + place % across * width, top + GAP + place // across * height + LINE / 2
        draw.text((x, y), cut(name, width), "black", font(), "lm")
    draw.text((GAP, image.height - LINE / 2), cut(captions.note, image.width - GAP), "black", font(), "lm")
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


def cut(name: str, width: float) -> str:
    """As much of a text, in one line, as so many pixels hold."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name[:LONGEST])
    shown = name
    while shown and font().getlength(shown) > width:
        shown = shown.removesuffix("…")[:-1] + "…" if len(shown) > 1 else ""
    return shown


@functools.cache
def font() -> Any:
    """The font of the plots, which has more letters than Pillow's own."""
    plots = find_spec("matplotlib")
    file = Path(plots.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if plots else None
    return ImageFont.truetype(str(file), 11) if file and file.is_file() else ImageFont.load_default(11)


def rows_of(images: Tensor, columns: int) -> list[Tensor]:
    """Split images (n, C, H, W) into rows of equal length, the last one padded with white."""
    missing = -len(images) % columns
    white = images.new_full((missing, *images.shape[1:]), 255)
    return list(torch.cat([images, white]).split(columns))


def write_gif(path: Path, images: list[Tensor], frame_ms: int = 80, last_ms: int = 2500) -> None:
    """Images uint8 (1 or 3, H, W) -> a GIF that appears under its name when it is whole; the last is shown for `last_ms`."""
    frames = [Image.fromarray(torch.movedim(image, 0, -1).squeeze(-1).numpy()) for image in images]
    palettes = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    times = [frame_ms] * (len(palettes) - 1) + [last_ms]
    gif = io.BytesIO()
    palettes[0].save(gif, "GIF", save_all=True, append_images=palettes[1:], duration=times, loop=0)
    write_bytes(path, gif.getvalue())


def write_png(path: Path, image: Tensor) -> None:
    """Write an image uint8 (1 or 3, H, W) to a PNG file."""
    from torchvision.io import encode_png

    write_bytes(path, encode_png(image.cpu().contiguous()).numpy().tobytes())
