"""Pictures inside of the page, as data URIs."""

from __future__ import annotations

import base64
import io
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

LOSSLESS_PIXELS = 200 * 200  # pictures up to this size are PNG, larger ones WebP
QUALITY = 95  # of WebP
MOST_PIXELS = 2**25  # of a file that is read
WIDEST = 2048  # pixels; wider pictures are made smaller


class Picture:
    """An image uint8 (1 or 3, H, W), encoded when it is first asked for."""

    def __init__(self, image: Tensor) -> None:
        self.image = image.cpu()

    @property
    def height(self) -> int:
        return self.image.shape[1]

    @property
    def width(self) -> int:
        return self.image.shape[2]

    @cached_property
    def uri(self) -> str:
        array = self.image.permute(1, 2, 0).numpy()  # (H, W, 1 or 3)
        image = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))
        if image.width > WIDEST:
            image = image.resize((WIDEST, max(1, image.height * WIDEST // image.width)), Image.Resampling.LANCZOS)
        small, data = image.width * image.height <= LOSSLESS_PIXELS, io.BytesIO()
        image.save(data, "PNG") if small else image.save(data, "WEBP", quality=QUALITY)
        return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(data.getvalue()).decode()}"


def read_png(file: Path) -> Tensor | None:
    """A PNG file of a run folder -> uint8 (3, H, W); None where there is none, and for one that is damaged or huge."""
    if not file.is_file():
        return None
    data = file.read_bytes()
    if len(data) < 24 or int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big") > MOST_PIXELS:
        return None
    try:
        return decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        return None
