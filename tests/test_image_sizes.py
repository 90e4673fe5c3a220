"""Laws of images that are not square: every part of the program takes [height, width] where it takes a side."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, assert_same_result, error_of, run, stop_at, train_inside
from PIL import Image
from test_data import CPU, folder, sets_of, write_image
from test_webdataset import make, shards

import vqvae
from vqvae.data.cache import Cache
from vqvae.data.folder import Folder
from vqvae.data.images import read_image
from vqvae.data.loader import ItemLoader
from vqvae.data.shapes import draw_shapes
from vqvae.errors import UserError
from vqvae.images import grid

OBLONG = "data.image_size=[16,24]"
TINY_FOLDER = [one for one in TINY if not one.startswith("data.")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, tall and wide images."""
    root = tmp_path_factory.mktemp("sizes") / "p"
    for number, (split, name) in enumerate(itertools.product(["train", "val"], ["cat", "dog"])):
        for index in range(5):
            size = (40, 20 + index) if index % 2 else (20 + index, 40)
            write_image(root / split / name / f"{index}.png", 10 * number + index, size)
    return root


def one(tmp_path: Path, size: tuple[int, int]) -> tuple[Path, Image.Image]:
    """A file whose values are smooth, and what it holds."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    image = Image.fromarray(np.stack([5 * x + 2 * y, 255 - 3 * x, 90 + y], 2).clip(1, 255).astype(np.uint8))
    image.save(tmp_path / "x.png")
    return tmp_path / "x.png", image


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (37, 23), (24, 16), (3, 50)])
def test_crop_keeps_proportions_and_cuts_both_ends_alike(size: tuple[int, int], tmp_path: Path) -> None:
    file, image = one(tmp_path, size)
    scale = max(24 / size[0], 16 / size[1])
    width, height = 24 / scale, 16 / scale  # of the part that is kept
    box = ((size[0] - width) / 2, (size[1] - height) / 2, (size[0] + width) / 2, (size[1] + height) / 2)
    wanted = np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC, box=box)).astype(int)
    found = read_image(file, (16, 24), 3).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (7, 40)])
def test_pad_keeps_the_whole_image_beside_black_and_stretch_fills_the_size(
    size: tuple[int, int], tmp_path: Path
) -> None:
    file, image = one(tmp_path, size)
    padded = read_image(file, (16, 24), 3, fit="pad").permute(1, 2, 0).numpy()
    scale = min(24 / size[0], 16 / size[1])
    width, height = round(size[0] * scale), round(size[1] * scale)
    left, top = round((24 - width) / 2), round((16 - height) / 2)
    inner = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    assert np.array_equal(padded[top : top + height, left : left + width], inner)
    assert padded.sum(dtype=int) == inner.sum(dtype=int)  # all else is 0
    stretched = read_image(file, (16, 24), 3, fit="stretch").permute(1, 2, 0).numpy()
    assert np.array_equal(stretched, np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC)))


def test_a_side_and_two_equal_sides_are_the_same_data(images: Path, tmp_path: Path) -> None:
    data = [folder(images, tmp_path, image_size=size, resize=size) for size in (12, [12, 12])]
    assert len({one.split("train").fingerprint for one in data}) == 1
    assert torch.equal(draw_shapes(20, 16, 1)[0], draw_shapes(20, (16, 16), 1)[0])


def test_every_size_and_fit_is_another_data_set(images: Path, tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"fit": "pad"}, {"fit": "stretch"}]
    prints = {folder(images, tmp_path, **one).split("train").fingerprint for one in settings}
    prints |= {folder(images, tmp_path, image_size=s, resize=s).split("train").fingerprint for s in ([8, 12], [12, 8])}
    assert len(prints) == 5


@pytest.mark.parametrize(("resize", "read"), [([16, 24], (16, 24)), (20, (20, 30)), ([16, 40], (16, 40))])
def test_random_crops_are_taken_from_images_of_the_size_that_was_read(
    resize: Any, read: tuple[int, int], images: Path, tmp_path: Path
) -> None:
    kinds = ("memory", "disk", "stream")
    data = [folder(images, tmp_path, image_size=[16, 24], resize=resize, resident=kind) for kind in kinds]
    batches = [list(itertools.islice(sets_of(one).train.batches_from(2), 4)) for one in data]
    for first, *others in zip(*batches):
        assert all(torch.equal(first.x, other.x) for other in others)
        assert first.x.shape[2:] == (16, 24)
    assert data[0].read_size == read
    assert next(sets_of(data[0]).val.batches(3)).x.shape[2:] == (16, 24)


def test_oblong_shapes_lie_whole_in_their_images() -> None:
    square, wide = draw_shapes(40, 16, 3), draw_shapes(40, (16, 32), 3)
    assert torch.equal(square[1], wide[1])
    assert wide[0].shape == (40, 3, 16, 32)
    bright = (wide[0].float().mean(1) > 128).float().flatten(2).sum((1, 2))
    same = (square[0].float().mean(1) > 128).float().flatten(2).sum((1, 2))
    assert float((bright / same.clamp_min(1)).median()) == pytest.approx(1, abs=0.2)  # as large, and not cut off


def test_shards_of_a_size_hold_what_the_folder_reads(images: Path, tmp_path: Path) -> None:
    make(str(images), str(tmp_path / "shards"), "--size", "16", "24", "--fit", "pad")
    sizes: dict[str, Any] = {"image_size": [16, 24], "resize": [16, 24]}
    packed = shards(str(tmp_path / "shards" / "train-*.tar"), tmp_path, **sizes)
    plain = folder(images, tmp_path, fit="pad", **sizes).split("train")
    unpacked = packed.train
    every = [packed.read_file(io.BytesIO(unpacked.content(index))) for index in range(len(unpacked))]
    assert all(torch.equal(image, plain.read(index)) for index, image in enumerate(every))


def test_the_cache_of_a_size_holds_images_of_that_size(images: Path, tmp_path: Path) -> None:
    data = folder(images, tmp_path, image_size=[8, 12], resize=[8, 12])
    split = data.split("train")
    ItemLoader(data, split, CPU)
    assert np.load(Cache(tmp_path, split.fingerprint).images).shape == (len(split), 3, 8, 12)


def test_small_images_of_a_grid_are_enlarged_by_one_factor() -> None:
    assert grid([torch.zeros(2, 3, 8, 16, dtype=torch.uint8)]).shape == (3, 32 + 4, 2 * 64 + 6)


@pytest.mark.parametrize(
    "network", [[], pytest.param(["model=tokens", "model.encoders.0.transformer.width=16"], marks=pytest.mark.slow)]
)
def test_both_stages_and_all_that_follows_take_oblong_images(
    network: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [one for one in TINY_FOLDER if not (network and one.startswith("model"))]
    own = [one for one in own if not (network and one.startswith("prior.network"))]
    prior = ["prior=transformer", "prior.network.width=16", "prior.network.layers=1"] if network else []
    data = ["data=folder", f"data.root={images}", OBLONG, f"data.cache_dir={tmp_path}/cache"]
    path, again = tmp_path / "run", tmp_path / "again"
    overrides = [*own, *SMALL_CODEBOOK, *data, *network, *prior]
    train_inside(*overrides, f"run_dir={path}")
    stop_at(monkeypatch, "autoencoder", 3)
    with pytest.raises(SystemExit):
        train_inside(*overrides, f"run_dir={again}")
    monkeypatch.undo()
    train_inside(*overrides, f"run_dir={again}")
    assert_same_result(path, again)

    modes = [["generate", "n=4"], ["interpolate", "image=[0,1]"], ["reconstruct"], ["nearest", "n=2"]]
    for mode in [*modes, *([] if network else [["complete", "image=0"]])]:  # tokens have no place in the image
        run("sample.py", f"run_dir={path}", f"mode={mode[0]}", *mode[1:], f"out={tmp_path / mode[0]}")
    assert np.load(tmp_path / "generate" / "samples.npz")["items"].shape == (4, 3, 16, 24)
    run("scripts/evaluate.py", f"run_dir={path}")
    figures = json.loads((path / "evaluation_val.json").read_text())["figures"]
    assert "autoencoder/psnr_db" in figures
    run("scripts/export.py", f"run_dir={path}", f"out={tmp_path / 'export'}")
    model = vqvae.load(tmp_path / "export")
    file = next(images.glob("val/*/*.png"))
    assert model.reconstruct([file]).shape == (1, 3, 16, 24)
    assert model.sample([0]).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.image_size=[16,18]",
            "a size of 18 does not divide by the encoder's stride 4; the nearest that does is 16",
        ),
        ("data.image_size=[16]", "data.image_size=[16] is not an integer or a list of 2 items, each an integer"),
        ("data.image_size=[16,0]", "must be at least 1"),
        ("data.image_size=0", "data.image_size=0 must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(
    setting: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = error_of(capsys, *TINY, setting, f"run_dir={tmp_path / 'run'}")
    assert message in said
    assert said.count("\n") == 1


def test_a_smaller_resize_is_refused(images: Path, tmp_path: Path) -> None:
    for resize in (15, [16, 20], [12, 40]):
        with pytest.raises(UserError, match="resize must be at least image_size"):
            folder(images, tmp_path, image_size=[16, 24], resize=resize)
    assert isinstance(folder(images, tmp_path, image_size=[16, 24], resize=16), Folder)
