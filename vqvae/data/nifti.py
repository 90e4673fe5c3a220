"""NIfTI files: volumes of medical imaging, mapped into memory, unpacked where they cannot be, and written."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from vqvae.data import arrays
from vqvae.data.base import fingerprint
from vqvae.data.cache import claim
from vqvae.errors import UserError
from vqvae.storage.files import remove_leftovers, temporary_name, write_bytes
from vqvae.surroundings.own_folder import own_folder

SUFFIXES = frozenset({".nii", ".nii.gz"})
MOST_RATIO = 1100  # of bytes unpacked to bytes packed: gzip reaches 1032
VERSION = 1  # of unpacked files; raise it when the same file unpacks to other values


def is_nifti(file: Path) -> bool:
    return file.name.lower().endswith(tuple(SUFFIXES))


def library() -> Any:
    """The package nibabel. Raises UserError if it is missing."""
    try:
        with own_folder():
            import nibabel
    except ImportError as error:
        raise UserError(f".nii files need the package nibabel ({error}): pip install '.[volumes]'") from error
    return nibabel


def opened(file: Path) -> Any:
    """A NIfTI image of nibabel, of which the header is read. Raises OSError for another file, and for no real numbers."""
    nibabel = library()
    try:
        image = nibabel.load(file)
    except Exception as error:  # nibabel raises many kinds for a damaged header
        raise OSError(f"{type(error).__name__}: {error}") from error
    if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is one
        raise OSError(f"it is a {type(image).__name__}, and no volume")
    dtype = image.get_data_dtype()
    if dtype.kind not in "buif":
        raise OSError(f"its values are {dtype}, and no real numbers")
    size, ratio = file.stat().st_size, MOST_RATIO if file.suffix.lower() == ".gz" else 1
    if not 0 < math.prod(image.shape) * dtype.itemsize <= size * ratio:
        raise OSError(f"it tells of the dims {image.shape}, which a file of {size} bytes does not hold")
    return image


def read_volume(file: Path) -> np.ndarray:
    """The array of a NIfTI file in its units, with the order of its dims reversed: (z, y, x), or (channels, z, y, x).

    It is mapped into memory where it lies there as it is; of packed files, and of those with a scale, it is read, and of the
    latter float32. Raises OSError.
    """
    image = opened(file)
    try:
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # zlib, gzip and nibabel raise many kinds
        raise OSError(f"{type(error).__name__}: {error}") from error
    values = values.astype(np.float32) if is_scaled(image) else values
    values = values.T
    return values[:, 0] if values.ndim == 5 and values.shape[1] == 1 else values  # (channels, time, z, y, x)


def is_scaled(image: Any) -> bool:
    return (image.dataobj.slope, image.dataobj.inter) != (1, 0)


def map_volume(file: Path, cache: Path) -> np.ndarray:
    """The same, always mapped into memory: what cannot be is unpacked into a file of the folder `cache`, once.

    Raises OSError for a file that cannot be read, UserError where the cache cannot be written.
    """
    if file.suffix.lower() != ".gz" and not is_scaled(opened(file)):
        return read_volume(file)
    found = file.stat()
    name = fingerprint(["volume", VERSION, os.path.realpath(file), found.st_size, found.st_mtime_ns])
    unpacked = cache / f"{name}-volume.npy"
    try:
        return np.load(unpacked, mmap_mode="r", allow_pickle=False)
    except Exception:  # not there, or damaged, of which numpy raises many kinds
        unpack(read_volume(file), unpacked)
        return np.load(unpacked, mmap_mode="r", allow_pickle=False)


def unpack(values: np.ndarray, file: Path) -> None:
    """Write an array to a .npy file of a cache, which appears when it is complete. Safe if two processes do so at once."""
    temporary = temporary_name(file)
    try:
        claim(file.parent)
        remove_leftovers(file.parent, "*-volume.npy")
        written: Any = arrays.create(temporary, values.dtype, values.shape)
        written[:] = values
        written.flush()
        temporary.replace(file)
    except OSError as error:
        raise UserError(f"a volume cannot be unpacked into data.cache_dir={file.parent}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def voxels_of(file: Path) -> list[list[float]] | None:
    """The first three columns of a file's affine, as rows: millimeters along x, y and z from one voxel to the next in each dim.

    None where they are no numbers.
    """
    affine = opened(file).affine
    voxels = None if affine is None else np.asarray(affine, float)[:3, :3].T
    return voxels.tolist() if voxels is not None and np.isfinite(voxels).all() else None


def are_voxels(value: Any) -> bool:
    """True for what `voxels_of` returns."""
    rows = isinstance(value, list) and len(value) == 3 and all(isinstance(row, list) and len(row) == 3 for row in value)
    return rows and all(type(one) in (int, float) and math.isfinite(one) for row in value for one in row)


def write_volume(path: Path, values: np.ndarray, voxels: list[list[float]]) -> None:
    """Write values (C, z, y, x) to a .nii.gz file whose first voxel lies at 0, 0, 0 mm. voxels: see `voxels_of`."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(voxels).T
    if values.dtype == np.float16:  # NIfTI has none
        values = values.astype(np.float32)
    image = library().Nifti1Image((values[0] if len(values) == 1 else values).T, affine)  # (x, y, z) or (x, y, z, C)
    image.header.set_xyzt_units("mm")
    write_bytes(path, gzip.compress(image.to_bytes(), 6, mtime=0))
