"""Compares a finished run with JPEG and WebP: quality at the same bytes, and bytes at the same quality.

    python scripts/compare_codecs.py run_dir=runs/mine                      1,000 validation images
    python scripts/compare_codecs.py --images 200 --judge none run_dir=runs/mine

The run needs a prior, by whose probabilities its codes are entropy-coded (scripts/compress.py); weights of the networks are not
counted. A picture file has some hundred bytes of headers and tables, which is most of a small image: so JPEG and WebP are
measured twice, an image a file, and as one sheet of all images, where that share goes to zero. "At these bytes" is the best
quality setting that needs no more bytes than the run, or the smallest file there is; "at this PSNR" the first that is as good.
--judge is the pretrained network of the perceptual distance (docs/losses.md), none: no such column.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.surroundings.own_folder import own_folder

with own_folder():  # torch finds no code in the current one
    import numpy as np
    import torch
    from PIL import Image
    from torch import Tensor

    from vqvae.compression.images import compressed, decompressed
    from vqvae.data.items import ItemEvaluationSet
    from vqvae.errors import UserError
    from vqvae.images import normalize, to_uint8
    from vqvae.judging.judge import Judge
    from vqvae.losses.perceptual import perceptual_distance
    from vqvae.metrics.reconstruction import item_psnr, reconstruction_sums
    from vqvae.run.folder import RunFolder
    from vqvae.run.process import set_up_process
    from vqvae.run.run import Run
    from vqvae.run.tables import table
    from vqvae.shipped.runs import with_shipped

SETTINGS = {"JPEG": {"optimize": True}, "WebP": {"method": 6}}
COLUMNS = 32  # images in a row of the sheet
QUALITIES = range(101)
CHUNK = 100  # images that are judged at once


def as_sheet(images: Tensor) -> Tensor:
    """Images uint8 (N, 3, H, W) -> all of them in one (1, 3, rows H, columns W), the last row filled up with black."""
    count, channels, height, width = images.shape
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    full = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    full[:count] = images
    full = full.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)  # (C, rows, H, columns, W)
    return full.reshape(1, channels, rows * height, columns * width)


def from_sheet(sheet: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_sheet`; shape: (N, 3, H, W)."""
    count, channels, height, width = shape
    columns = min(count, COLUMNS)
    parts = sheet.view(channels, -1, height, columns, width).permute(1, 3, 0, 2, 4)  # (rows, columns, C, H, W)
    return parts.reshape(-1, channels, height, width)[:count]


def through(form: str, images: Tensor, quality: int) -> tuple[int, Tensor]:
    """Write each image (3, H, W) as a file and read it again -> bytes of all files, and the images."""
    size, decoded = 0, []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, form, quality=quality, **SETTINGS[form])
        size += file.tell()
        decoded.append(torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1))
    return size, torch.stack(decoded)


def first(good: Callable[[int], bool]) -> int | None:
    """The lowest quality that is good, by bisection; None if the best is not."""
    low, high = QUALITIES[0], QUALITIES[-1]
    if not good(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle + 1, high)
    return low


def rows_of(form: str, images: Tensor, sheet: bool, ours: tuple[float, float]) -> list[tuple[str, float, Tensor]]:
    """Name, bytes an image and decoded images: at our bytes an image, and at our PSNR. ours: those two."""

    @cache
    def at(quality: int) -> tuple[float, Tensor]:
        size, decoded = through(form, as_sheet(images) if sheet else images, quality)
        return size / len(images), from_sheet(decoded[0], images.shape) if sheet else decoded

    size, psnr = ours
    name = f"{form}, {'one sheet' if sheet else 'a file each'}"
    above = first(lambda quality: at(quality)[0] > size)
    best = QUALITIES[-1] if above is None else max(above - 1, QUALITIES[0])
    title = "at these bytes" if at(best)[0] <= size else "the smallest there is"
    found = [(f"{name}, {title} (quality {best})", *at(best))]
    same = first(lambda quality: psnr_of(at(quality)[1], images) >= psnr)
    if same is not None:
        found.append((f"{name}, at this PSNR (quality {same})", *at(same)))
    return found


def psnr_of(decoded: Tensor, images: Tensor) -> float:
    """Mean PSNR of images uint8 in dB."""
    return float(item_psnr(normalize(decoded), normalize(images)).mean())


def figures(decoded: Tensor, images: Tensor, judge: Judge | None) -> list[float]:
    """Images uint8 (N, 3, H, W) twice -> mean PSNR, mean SSIM, mean perceptual distance."""
    ssim = distance = 0.0
    for part, right in zip(decoded.split(CHUNK), images.split(CHUNK)):
        x_hat, x = normalize(part), normalize(right)
        ssim += float(reconstruction_sums(x_hat, x).get("ssim", math.nan))
        if judge is not None:
            distance += float(perceptual_distance(judge.backbone, x_hat, x).sum())
    found = [psnr_of(decoded, images), ssim / len(images)]
    return found if judge is None else [*found, distance / len(images)]


def validation_images(run: Run, count: int) -> Tensor:
    """Images spread over the validation split, uint8 (N, 3, H, W). Raises UserError for other data than color images."""
    if (run.data.channels, run.data.ndim) != (3, 2):
        raise UserError("JPEG and WebP keep images of three channels, and this run is of other data")
    return to_uint8(ItemEvaluationSet(run.data, run.loader("val")).preview(count).x.cpu())


@torch.no_grad()
def compare(run: Run, count: int, network: str) -> str:
    """The table. Raises UserError where the run cannot compress, or the network is not there."""
    images = validation_images(run, count)
    judge = None if network == "none" else Judge.load(network, None, 3, tuple(images.shape[2:]), run.device)
    trained = run.trained_model()
    archive, _ = compressed(trained, ((str(i), image) for i, image in enumerate(images)))
    decoded = torch.cat([to_uint8(trained.decode(part)) for part in chunked(decompressed(trained, archive))])
    ours = len(archive.data) / len(images), psnr_of(decoded, images)
    rows = [("this run", ours[0], decoded)]
    for form in SETTINGS:
        for sheet in (True, False):
            rows += rows_of(form, images, sheet, ours)
    columns = ["PSNR dB", "SSIM", *([] if judge is None else [f"perceptual ({network})"])]
    cells = [[name, size, *figures(result, images, judge)] for name, size, result in rows]
    return table([f"{len(images):,} images", "bytes an image", *columns], cells)


def chunked(codes: list[Tensor]) -> list[list[Tensor]]:
    """Code maps M x (n, *s) -> the same in parts of CHUNK items."""
    return [list(part) for part in zip(*(m.split(CHUNK) for m in codes))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument(
        "--judge", default="efficientnet_lite0", help="pretrained network (default: efficientnet_lite0)"
    )
    parser.add_argument("run_dir", help="run_dir=<finished run with a prior>")
    arguments = parser.parse_intermixed_args()
    if arguments.images < 1:
        parser.error(f"--images must be at least 1, got {arguments.images}")
    try:
        set_up_process("auto")
        path = with_shipped([arguments.run_dir], "evaluate")[0].removeprefix("run_dir=")
        print(compare(Run(RunFolder.load(path, [])), arguments.images, arguments.judge))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
