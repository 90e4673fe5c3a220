"""A law of every loader that reads from files: memory does not grow with the batches that it has given."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_arrays import arrays, written
from test_data import CPU, folder

from vqvae.data.base import Data
from vqvae.data.items import ItemTrainingSet
from vqvae.data.loader import ItemLoader

STATM = Path("/proc/self/statm")
STEPS, WARM_UP, BATCH = 2000, 600, 4
MOST_PAGES = 2048  # 8 MiB; the items of these batches are 17 MB and more


def images(path: Path) -> Data:
    for seed in range(8):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        (path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path / "images" / f"{seed}.jpg")
    return folder(path / "images", path / "cache", image_size=32, resize=32, resident="stream")


def files_of_arrays(path: Path) -> Data:
    written(path / "arrays", *[(64, 64)] * 6)
    return arrays(path / "arrays", path / "cache", ndim=2, crop=[32, 32])


def sounds(path: Path) -> Data:
    from test_audio import audio, folder_of

    folder_of(path / "sounds", *[2.0] * 6, suffix=".ogg")
    return audio(path / "sounds", path / "cache", seconds=0.25)


def volumes(path: Path) -> Data:
    from test_volumes import volume, volumes

    for seed in range(6):
        volume(path / "volumes" / f"{seed}.nii.gz", (12, 24, 24), seed)
    return volumes(path / "volumes", path / "cache", crop=[16, 16, 8])


def videos(path: Path) -> Data:
    from test_video import data_of, filmed

    for seed in range(6):
        filmed(path / "videos" / f"{seed}.mp4", 30, seed=seed)
    return data_of(path / "videos", path / "cache", resident="stream")


KINDS: dict[str, tuple[Callable[[Path], Data], str | None]] = {  # and the package that it needs
    "images": (images, None),
    "arrays": (files_of_arrays, None),
    "sounds": (sounds, "soundfile"),
    "volumes": (volumes, "nibabel"),
    "videos": (videos, "av"),
}


@pytest.mark.slow
@pytest.mark.skipif(not STATM.is_file(), reason="needs /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_the_same_over_two_thousand_batches(kind: str, tmp_path: Path) -> None:
    make, package = KINDS[kind]
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    data = make(tmp_path)
    batches = ItemTrainingSet(data, ItemLoader(data, data.split("train"), CPU), BATCH, seed=0).batches_from(0)
    sizes = []
    for _ in range(STEPS):
        next(batches)
        sizes.append(int(STATM.read_text().split()[1]))
    assert np.mean(sizes[-100:]) - np.mean(sizes[WARM_UP : WARM_UP + 100]) < MOST_PAGES
