"""Images/s of one core by every way to read JPEG files, and what scaled decoding costs in PSNR."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from vqvae.data.framing import crop
from vqvae.run.tables import table

FILES, ROUNDS = 200, 3
SIDES = (32, 64, 96)


def decoders(root: Path) -> None:
    """Print a table of up to FILES of the JPEG files below `root`: decoded, and decoded into an item."""
    contents = [path.read_bytes() for path in sorted(root.rglob("*.[jJ][pP]*[gG]"))[:FILES]]
    if not contents:
        return
    differ = sum(not np.array_equal(np.asarray(by_pillow(one)), np.asarray(by_torchvision(one))) for one in contents)
    print(f"\nimages/s of one core, {len(contents)} JPEG files; {differ} of them differ between Pillow and torchvision")
    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow": by_pillow,
        "torchvision, tensor": tensor_of,
        "torchvision, Pillow's image": by_torchvision,
    }
    rows = [[name, "", speed, ""] for name, speed in rates(ways, contents).items()]
    for side in SIDES:
        whole = {"Pillow": by_pillow, "torchvision": by_torchvision, "Pillow, scaled": draft(side)}
        squares = {name: square_by(way, side) for name, way in whole.items()}
        speeds = rates(squares, contents)
        for name, way in squares.items():
            psnr = np.mean([likeness(way(one), squares["Pillow"](one)) for one in contents])
            rows.append([name, f"resized to {side}", speeds[name], float(psnr)])
    print(table(["decoder", "work", "images/s", "PSNR to Pillow's, dB"], rows))


def square_by(way: Callable[[bytes], Image.Image], side: int) -> Callable[[bytes], Image.Image]:
    """`way`, resized and cropped to a square."""
    return lambda content: crop(way(content), (side, side), 0)


def by_pillow(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def tensor_of(content: bytes) -> torch.Tensor:
    """(C, H, W) uint8."""
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))


def by_torchvision(content: bytes) -> Image.Image:
    """As an image that Pillow can resize; the header is read by Pillow, for the size and the rotation."""
    with Image.open(io.BytesIO(content)) as image:
        if image.mode not in ("RGB", "L"):
            return image.convert("RGB")
    pixels = tensor_of(content).permute(1, 2, 0).numpy()  # (H, W, C)
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")


def draft(side: int) -> Callable[[bytes], Image.Image]:
    """Decode at the smallest of 1, 1/2, 1/4 and 1/8 of the size that is not below `side`."""

    def decode(content: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(content))
        image.draft("RGB", (side, side))
        return image.convert("RGB")

    return decode


def rates(ways: dict[str, Callable[[bytes], object]], contents: list[bytes]) -> dict[str, float]:
    """The best of ROUNDS in turns, CPU time of one thread."""
    threads, least = torch.get_num_threads(), dict.fromkeys(ways, math.inf)
    torch.set_num_threads(1)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            for one in contents:
                way(one)
            least[name] = min(least[name], time.process_time() - start)
    torch.set_num_threads(threads)
    return {name: len(contents) / seconds for name, seconds in least.items()}


def likeness(one: Image.Image, other: Image.Image) -> float:
    """PSNR, dB; at most 99."""
    error = np.square(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()
    return 10 * math.log10(255**2 / max(error, 255**2 * 10**-9.9))
