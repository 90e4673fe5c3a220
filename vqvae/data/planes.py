"""Files of images with any number of channels and any type of values, opened as arrays: Pillow's formats, TIFF, .npy, .npz."""

from __future__ import annotations

import importlib.util
import io
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from vqvae.data.formats import MOST_PIXELS, open_image
from vqvae.storage.files import write_bytes
from vqvae.surroundings.own_folder import own_folder

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
NUMPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"  # what such files begin with
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_VALUE_BYTES = 16
AS_THEY_ARE = ("L", "LA", "RGB", "RGBA", "I", "F")  # Pillow's modes whose channels are the file's; also I;16


def has_tifffile() -> bool:
    return importlib.util.find_spec("tifffile") is not None


def read_planes(file: Path | BinaryIO, channels: int, most_pixels: int, page: int = 0) -> np.ndarray:
    """The values of an image file as they are, (channels, height, width).

    The pages of a TIFF file are its channels if there are `channels` of them; else `page` alone is read. Of an array, the first
    dim holds the channels if it has `channels` places, else the last. Raises OSError for whatever cannot be read so.
    """
    try:
        return checked_values(planes(file, channels, most_pixels, page), most_pixels)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise OSError(f"{type(error).__name__}: {error}; data.most_pixels is the limit") from error
    except OSError:
        raise
    except Exception as error:  # the parsers of Pillow, numpy and tifffile raise many kinds
        raise OSError(f"{type(error).__name__}: {error}") from error


def planes(file: Path | BinaryIO, channels: int, most_pixels: int, page: int) -> np.ndarray:
    """By the kind of file that its first bytes tell."""
    start = beginning(file)
    most_values = most_pixels * channels
    if start.startswith(NUMPY):
        whole = np.load(file, mmap_mode="r" if isinstance(file, Path) else None, allow_pickle=False)
        return first_or_last(whole, channels)
    if start.startswith(ZIP):
        return first_or_last(only_array(file, most_values), channels)
    if start.startswith(TIFF) and has_tifffile():
        return from_tiff(file, channels, most_values, page)
    with open_image(file, most_pixels) as opened:
        opened.seek(page)
        if any(";16" in str(tile) for tile in getattr(opened, "tile", [])) and opened.mode in ("RGB", "RGBA", "LA"):
            return deep_colors(file, opened, channels)
        return from_pillow(opened, channels)


def beginning(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(8)
    start = file.read(8)
    file.seek(0)
    return start


def only_array(file: Path | BinaryIO, most_values: int) -> np.ndarray:
    """The array of an .npz file that holds one, which is no larger when it is unpacked."""
    with zipfile.ZipFile(file) as archive:
        found = archive.infolist()
        if len(found) != 1:
            raise OSError(f"it holds {len(found)} arrays, and an image is one")
        if found[0].file_size > most_values * MOST_VALUE_BYTES:
            raise OSError(f"its array has {found[0].file_size} bytes; data.most_pixels is the limit")
        with archive.open(found[0]) as member:
            return np.lib.format.read_array(io.BytesIO(member.read()), allow_pickle=False)


def from_tiff(file: Path | BinaryIO, channels: int, most_values: int, page: int) -> np.ndarray:
    """All pages as channels, or one page. No other file is opened, whatever the metadata say."""
    with own_folder():
        import tifffile

    with tifffile.TiffFile(file, _multifile=False) as tiff:
        whole = tiff.series[0]
        parts = [whole] if holds(whole.shape, channels) else list(tiff.pages) if len(tiff.pages) == channels else []
        if not parts or sum(math.prod(part.shape) for part in parts) > most_values:
            parts = [tiff.pages[page]]
        if math.prod(parts[0].shape) > most_values:
            raise OSError(f"it has {math.prod(parts[0].shape)} values; data.most_pixels is the limit")
        arrays = [part.asarray() for part in parts]
        return first_or_last(arrays[0] if len(arrays) == 1 else np.stack(arrays), channels)


def holds(shape: tuple[int, ...], channels: int) -> bool:
    """True if `first_or_last` finds so many channels in an array of that shape."""
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    return channels == 1 if len(shape) == 2 else len(shape) == 3 and channels in (shape[0], shape[-1])


def from_pillow(image: Image.Image, channels: int) -> np.ndarray:
    """An opened image, turned upright; palettes and other color spaces become RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in AS_THEY_ARE and not image.mode.startswith("I;16"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return checked_channels(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), channels)


def deep_colors(file: Path | BinaryIO, opened: Image.Image, channels: int) -> np.ndarray:
    """Colors of 16 bits, of which Pillow would keep 8. Only PNG files."""
    if opened.format != "PNG":
        raise OSError(f"its colors have 16 bits, which are not read from {opened.format}: write TIFF, PNG or .npy")
    from torchvision.io import ImageReadMode, decode_image

    content = file.read_bytes() if isinstance(file, Path) else whole_of(file)
    values = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return checked_channels(values.numpy(), channels)


def whole_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def map_array(file: Path, channels: int, ndim: int) -> np.ndarray:
    """The array of a .npy file, memory-mapped, or of an .npz file -> (channels, *S) of `ndim` dims. Raises OSError."""
    try:
        if file.suffix.lower() == ".npz":
            return first_or_last(only_array(file, MOST_PIXELS * channels), channels, ndim)
        return first_or_last(np.load(file, mmap_mode="r", allow_pickle=False), channels, ndim)
    except OSError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds
        raise OSError(f"{type(error).__name__}: {error}") from error


def first_or_last(array: np.ndarray, channels: int, ndim: int = 2) -> np.ndarray:
    """An array with its channels in the first or the last dim, or without channels -> (channels, *S) of `ndim` dims."""
    while array.ndim > ndim + 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == ndim:
        array = array[None]
    if array.ndim != ndim + 1:
        raise OSError(f"it is an array of the shape {tuple(array.shape)}, and none of {ndim} dims and channels")
    if array.shape[0] != channels and array.shape[-1] == channels:
        array = np.moveaxis(array, -1, 0)
    return checked_channels(array, channels)


def checked_channels(array: np.ndarray, channels: int) -> np.ndarray:
    if array.shape[0] != channels:
        more = "" if has_tifffile() else "; pip install tifffile reads TIFF files of more channels"
        raise OSError(f"its shape is {tuple(array.shape)}, which is not that of {channels} channels{more}")
    return array  # (channels, height, width)


def checked_values(array: np.ndarray, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Raise OSError for what are no real, finite numbers, for no pixels, and for too many."""
    if array.dtype.kind not in "buif":
        raise OSError(f"its values are {array.dtype}, and no real numbers")
    if not 0 < array[0].size <= most_pixels:
        raise OSError(f"it has {array[0].size} pixels; data.most_pixels is the limit")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        wrong = int((~np.isfinite(array)).sum())
        raise OSError(f"{wrong} of its {array.size} values are NaN or infinite")
    return array


def suffix_for(dtype: str, channels: int) -> str:
    """Suffix of the files that `write_planes` writes such values to, without a loss."""
    if channels == 1 and dtype in ("uint8", "uint16"):
        return ".png"
    return ".tif" if has_tifffile() else ".npy"


def write_planes(path: Path, values: np.ndarray) -> None:
    """Write values (C, H, W) of any type to a file of the kind that its suffix tells: .png, .tif or .npy."""
    data = io.BytesIO()
    if path.suffix == ".png":
        Image.fromarray(values[0]).save(data, "PNG")
    elif path.suffix == ".tif":
        with own_folder():
            import tifffile

        axes: dict[str, Any] = {"metadata": {"axes": "CYX"}} if len(values) > 1 else {}
        tifffile.imwrite(data, values if len(values) > 1 else values[0], photometric="minisblack", **axes)
    else:
        np.save(data, values, allow_pickle=False)
    write_bytes(path, data.getvalue())
