"""What people give to a trained model: tensors, pictures, codes.

Values of x out of range are a plain ValueError, because no program here makes such.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from vqvae.data.framing import Size
from vqvae.data.images import as_item, read_image
from vqvae.data.levels import Levels, item_of, read_values
from vqvae.data.planes import checked_values, first_or_last, from_pillow
from vqvae.errors import UserError, suggest
from vqvae.images import x_of
from vqvae.quantizers.given_codes import check_maps, check_range, kind_of

Picture = Image | str | Path | np.ndarray
PICTURES = (Image, str, Path, np.ndarray)
MOST_SEED = 2**63
SLACK = 0.01  # beyond [-1, 1], for images that were resized


class DataInfo(NamedTuple):
    """Data that a model was trained on: its class, channels C, dims *S, class names, and the sample rate of sounds.

    fit: how images were brought to their size. levels: type and range of values that were read as they are; None: 8 bits.
    """

    name: str
    channels: int
    size: tuple[int, ...]
    class_names: list[str]
    sample_rate: int | None = None
    fit: str = "crop"
    levels: Levels | None = None


def as_input(x: Tensor | Sequence[Picture], data: DataInfo) -> Tensor:
    """x (B, C, *S), or pictures to make it of -> x, checked. data: what the model was trained on.

    Raises UserError for other dims, channels or types, ValueError for values outside of [-1, 1] and NaN.
    """
    if not isinstance(x, Tensor):
        return from_pictures(x, data)
    if x.dtype != torch.float32 or x.ndim != len(data.size) + 2 or x.shape[1] != data.channels:
        wanted = ", ".join(map(str, (data.channels, *data.size)))
        raise UserError(f"x must be float32 in [-1, 1] of shape (B, {wanted}), got {x.dtype} of {tuple(x.shape)}")
    if not bool((x.abs() <= 1 + SLACK).all()):  # not for NaN either
        hint = "it holds NaN" if bool(x.isnan().any()) else "scale bytes by x / 127.5 - 1"
        raise ValueError(f"x must lie in [-1, 1], got {extremes(x)}: {hint}")
    return x


def from_pictures(pictures: Sequence[Picture], data: DataInfo) -> Tensor:
    """Images of Pillow, paths of image files, or arrays in the data's units -> x (n, C, H, W), read as the data was.

    Raises UserError where the data is no images, OSError for a file that cannot be read.
    """
    if isinstance(pictures, (str, Path, Image)):
        raise UserError("give images as a list, such as model.encode([image])")
    if not isinstance(pictures, Sequence) or not pictures or not all(isinstance(one, PICTURES) for one in pictures):
        wanted = ", ".join(map(str, (data.channels, *data.size)))
        raise UserError(
            f"x must be a tensor (B, {wanted}) or a list of images (Pillow's, paths or arrays), got {kind_of(pictures)}"
        )
    if len(data.size) != 2 or (data.levels is None and data.channels not in (1, 3)):
        raise UserError(f"this model's data is no images: give x as a tensor (B, {data.channels}, *{data.size})")
    height, width = data.size
    items = [item_from(one, data, (height, width)) for one in pictures]
    if len({item.shape for item in items}) > 1:
        raise UserError("give images of different sizes one by one, or have them resized: leave tile out")
    return x_of(torch.stack(items))


def item_from(picture: Picture, data: DataInfo, size: Size) -> Tensor:
    """One of them -> an item."""
    if data.levels is not None:
        if isinstance(picture, (str, Path)):
            with naming(picture):
                return read_values(Path(picture), size, data.channels, data.levels, fit=data.fit)
        array = (
            first_or_last(picture, data.channels)
            if isinstance(picture, np.ndarray)
            else from_pillow(picture, data.channels)
        )
        return item_of(checked_values(array), size, data.levels, data.fit)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or (picture.shape[2:] not in ((), (3,), (4,))) or picture.ndim not in (2, 3):
            raise UserError(f"arrays must be uint8 (H, W) or (H, W, 3), got {picture.dtype} of {picture.shape}")
        picture = fromarray(picture)
    if isinstance(picture, Image):
        return as_item(picture, size, data.channels, fit=data.fit)
    with naming(picture):
        return read_image(Path(picture), size, data.channels, fit=data.fit)


@contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Context in which an OSError, which says why a file cannot be read, comes to say which."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{file} cannot be read: {error}") from error


def check_model_codes(codes: Sequence[Tensor], shapes: list[tuple[int, ...]], sizes: list[int]) -> None:
    """Raise UserError for codes that are not of a model: M maps (B, *s_m) with as many dims as `shapes`, of 0 .. K_m - 1."""
    check_maps(codes, len(sizes), "this model")
    if [m.ndim - 1 for m in codes] != list(map(len, shapes)):
        wanted = ", ".join(f"(B, {', '.join(map(str, shape))})" for shape in shapes)
        raise UserError(f"code maps must be {wanted}, got {', '.join(str(tuple(m.shape)) for m in codes)}")
    check_range(codes, sizes)


def as_seeds(seeds: Any) -> list[int]:
    """Seeds as numbers. Raises UserError for what is no list of whole numbers, or empty."""
    try:
        found = [operator.index(seed) for seed in seeds]
    except TypeError:
        found = []
    if not found or not -MOST_SEED <= min(found) <= max(found) < MOST_SEED:
        raise UserError(f"seeds must be one or more whole numbers, such as range(16), got {short(seeds)}")
    return found


def as_labels(labels: Any, class_names: list[str], count: int) -> Tensor:
    """Class numbers or names, or None -> class numbers (count,), -1 for no class. Raises UserError for others."""
    if labels is None:
        return torch.full((count,), -1)
    given = labels if isinstance(labels, (list, tuple, range)) else getattr(labels, "tolist", lambda: labels)()
    given = [-1 if label is None else label for label in given] if isinstance(given, (list, tuple, range)) else []
    for label in given:
        if isinstance(label, str) and label not in class_names:
            raise UserError(f"{label} is no class of this model's data; {suggest(label, class_names)}")
    numbers = [class_names.index(label) if isinstance(label, str) else label for label in given]
    if len(numbers) != count or not all(type(one) is int and -1 <= one < len(class_names) for one in numbers):
        raise UserError(
            f"labels must be a list of {count}, one per seed: class names, or numbers of -1 (none) .. {len(class_names) - 1}; "
            f"got {short(labels)}"
        )
    return torch.tensor(numbers, dtype=torch.int64)


def named_device(device: str | torch.device) -> torch.device:
    """A device by its name. Raises UserError for one that PyTorch does not know, or that is not there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device={short(device)} is none that PyTorch knows: take cpu or cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: PyTorch finds no GPU here; take cpu")
    return found


def check_sweeps(search: Any) -> None:
    """Raise UserError for what is no number of sweeps."""
    if search is not None and (type(search) is not int or search < 0):
        raise UserError(f"search must be a number of sweeps, 0 for none, got {short(search)}")


def as_sides(tile: Any, ndim: int) -> int | tuple[int, ...] | None:
    """Dims of a tile; None: chosen. Raises UserError for others."""
    if isinstance(tile, str) and tile == "auto":
        return None
    if type(tile) is int:
        return tile
    if isinstance(tile, (list, tuple)) and all(type(side) is int for side in tile):
        return tuple(tile)
    raise UserError(f"tile must be the side of a tile, its {ndim} sides, or auto, got {short(tile)}")


def short(value: Any) -> str:
    """A value for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def extremes(values: Tensor) -> str:
    """The smallest and the largest value, for a message."""
    return f"{values.min().item():.4g} .. {values.max().item():.4g}" if values.numel() else "nothing"
