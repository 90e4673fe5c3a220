"""Laws of images of any type and number of channels: nothing is lost, and results come back in the data's own units."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, assert_same_result, error_of, run, stop_at, train_inside
from PIL import Image
from test_data import CPU, folder
from test_webdataset import shards, tar_of

import vqvae
from vqvae.data import planes
from vqvae.data.folder import Folder
from vqvae.data.levels import Levels, choose_levels, look_at_values
from vqvae.data.loader import ItemLoader
from vqvae.data.planes import read_planes, write_planes
from vqvae.errors import TooManyUnreadable, UserError
from vqvae.images import x_of

TYPES: dict[str, np.dtype] = {name: np.dtype(name) for name in ("uint8", "uint16", "float16", "float32")}
TINY_FOLDER = [one for one in TINY if not one.startswith("data.")]


def values_of(dtype: str, channels: int = 1, seed: int = 0, size: tuple[int, int] = (12, 12)) -> np.ndarray:
    random = np.random.default_rng(seed)
    if dtype.startswith("u"):
        return random.integers(0, np.iinfo(dtype).max + 1, (channels, *size)).astype(dtype)
    return random.random((channels, *size)).astype(dtype)


def written(root: Path, arrays: list[np.ndarray], suffix: str = ".npy") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(arrays):
        write_planes(root / f"{index:02d}{suffix}", array)
    return root


def items(data: Folder, name: str = "train") -> list[torch.Tensor]:
    split = data.split(name)
    return [split.read(index) for index in range(len(split))]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", TYPES)
def test_values_come_back_as_they_were_read(dtype: str, channels: int, tmp_path: Path) -> None:
    """Through the loader, the model's [-1, 1], a file of results, and the loader again."""
    arrays = [values_of(dtype, channels, seed) for seed in range(4)]
    root = written(tmp_path / "in", arrays)
    data = folder(root, tmp_path, dtype=dtype, channels=channels, value_range=None, suffixes=[".npy"])
    loader = ItemLoader(data, data.split("train"), CPU)
    assert loader.images is not None
    for index, item in enumerate(loader.images):
        x = x_of(item[None])
        assert float(x.abs().max()) <= 1
        values = data.values(data.to_items(x))[0]
        original = arrays[int(Path(data.split("train").title(index)).stem)]
        assert values.dtype == original.dtype
        near = 0 if dtype.startswith("u") else np.finfo(dtype).eps
        assert np.abs(values.astype(float) - original.astype(float)).max() <= near
        again = read_planes(data.save(tmp_path / "out", item), channels, 10_000)
        assert np.array_equal(again, values)


def layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    return {"first": array, "last": np.moveaxis(array, 0, -1), "one_more": array[None]}


@pytest.mark.parametrize("kind", [".npy", ".npz", ".tif", "pages"])
def test_channels_may_be_first_or_last_or_pages(kind: str, tmp_path: Path) -> None:
    array = values_of("uint16", 5, 1, (10, 14))
    for name, one in layouts(array).items():
        file = tmp_path / f"{name}{kind if kind != 'pages' else '.tif'}"
        if kind == ".npy":
            np.save(file, one)
        elif kind == ".npz":
            np.savez_compressed(file, one)
        else:
            tifffile = pytest.importorskip("tifffile")
            if kind == "pages":
                with tifffile.TiffWriter(file) as pages:
                    for page in array:
                        pages.write(page, photometric="minisblack")
            else:
                tifffile.imwrite(file, one, photometric="minisblack")
        assert np.array_equal(read_planes(file, 5, 10_000), array)
        assert np.array_equal(read_planes(io.BytesIO(file.read_bytes()), 5, 10_000), array)  # type: ignore[arg-type]


def test_a_tiff_file_opens_no_other_file(tmp_path: Path) -> None:
    """OME metadata may name files that hold further planes."""
    tifffile = pytest.importorskip("tifffile")
    for name in ("a.ome.tif", "b.ome.tif"):
        tifffile.imwrite(tmp_path / name, np.full((2, 8, 8), 7, np.uint16), metadata={"axes": "CYX"})
    found = read_planes(tmp_path / "a.ome.tif", 2, 10_000)
    (tmp_path / "b.ome.tif").unlink()
    assert np.array_equal(read_planes(tmp_path / "a.ome.tif", 2, 10_000), found)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_files_keep_every_bit(suffix: str, channels: int, tmp_path: Path) -> None:
    array = values_of("uint16", channels, 2)
    if suffix == ".tif":
        pytest.importorskip("tifffile").imwrite(tmp_path / "x.tif", np.moveaxis(array, 0, -1).squeeze())
    elif channels == 1:
        Image.fromarray(array[0]).save(tmp_path / "x.png")
    else:
        (tmp_path / "x.png").write_bytes(sixteen_bit_png(array))
    assert np.array_equal(read_planes(tmp_path / f"x{suffix}", channels, 10_000), array)


def sixteen_bit_png(array: np.ndarray) -> bytes:
    """A PNG file of colors (3, H, W) of 16 bits, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in np.moveaxis(array, 0, -1).astype(">u2"))
    head = struct.pack(">IIBBBBB", array.shape[2], array.shape[1], 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---- ranges


def test_the_range_is_that_of_the_type_the_users_or_percentiles(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(1000, 50, (1, 100, 100)).round().astype(np.uint16)
    array[0, 0, :3] = 60000  # outliers
    root = written(tmp_path / "p", [array] * 4)
    settings: dict[str, Any] = {"dtype": "uint16", "channels": 1, "image_size": 100, "resize": 100}
    levels = {name: folder(root, tmp_path, **settings, value_range=name).levels for name in (None, "auto")}
    assert levels[None] == Levels("uint16", 0, 65535, False)
    low, high = np.percentile(array, (0.1, 99.9))
    assert levels["auto"] == Levels("uint16", np.floor(low), np.ceil(high), True)
    user = folder(root, tmp_path, **settings, value_range=[900, 1100])
    assert user.levels == Levels("uint16", 900, 1100, True)
    item = user.split("train").read(0)
    wanted = (array[0].clip(900, 1100).astype(float) - 900) / 200 * 2 - 1
    assert np.allclose(item[0].numpy(), wanted, atol=1e-6)
    assert any("are clipped" in note for note in user.notes())
    assert len({data.split("train").fingerprint for data in (user, folder(root, tmp_path, **settings))}) == 2


def test_a_range_that_was_found_is_recalled_and_not_found_again(tmp_path: Path) -> None:
    root = written(tmp_path / "p", [values_of("float32", 2, seed) * 7 - 3 for seed in range(4)])
    data = folder(root, tmp_path, dtype="float32", channels=2)
    facts = json.loads(json.dumps(data.facts()))
    written(root, [values_of("float32", 2, seed) * 1000 for seed in range(4)])
    later = folder(root, tmp_path, dtype="float32", channels=2)
    later.recall(facts)
    assert later.levels == data.levels != folder(root, tmp_path, dtype="float32", channels=2).levels
    for wrong in ([2.0, 1.0, True], [0.0, float("inf"), True], ["0", 1.0, True], [0.0, 1.0]):
        with pytest.raises(UserError, match="no values of black and white"):
            folder(root, tmp_path, dtype="float32", channels=2).recall({**facts, "value_range": wrong})


@pytest.mark.parametrize(
    ("dtype", "value_range", "message"),
    [
        ("uint16", [-5, 100], "values that uint16 does not hold"),
        ("float16", [0, 1e6], "values that float16 does not hold"),
        ("uint16", "auto", "nearly all values of the images are 7"),
    ],
)
def test_ranges_that_cannot_be_are_one_sentence(dtype: str, value_range: Any, message: str, tmp_path: Path) -> None:
    root = written(tmp_path / "p", [np.full((1, 12, 12), 7, np.uint16)] * 4)
    with pytest.raises(UserError, match=message):
        choose_levels(dtype, value_range, look_at_values(root.glob("*.npy"), 1, 1000))


# ---- what is not as the rest


def nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[0, 3, 4] = np.nan
    return array


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (nan(values_of("float32", 2)), "1 of its 288 values are NaN or infinite"),
        (values_of("float32", 2) + 2, "must lie in 0 .. 1"),
        (values_of("float32", 3), "which is not that of 2 channels"),
        (values_of("float32", 2).astype(complex), "no real numbers"),
        (np.zeros((2, 0, 5), np.float32), "0 pixels"),
        (np.zeros((2, 3, 4, 5), np.float32), "and none of 2 dims and channels"),
    ],
)
def test_an_odd_image_is_named_counted_and_replaced(
    odd: np.ndarray, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = written(tmp_path / "train" / "a", [values_of("float32", 2, seed) for seed in range(4)])
    np.save(root / "01.npy", odd)
    written(tmp_path / "val" / "a", [values_of("float32", 2)])
    data = folder(tmp_path, tmp_path / "cache", dtype="float32", channels=2, value_range=None)
    with caplog.at_level(logging.WARNING):
        loader = ItemLoader(data, data.split("train"), CPU)
    assert loader.unreadable == {1}
    assert reason in caplog.text
    assert "01.npy" in caplog.text
    assert loader.images is not None
    assert torch.equal(loader.images[1], loader.images[2])


def test_nothing_but_other_channels_is_one_sentence(tmp_path: Path) -> None:
    root = written(tmp_path / "p", [values_of("uint16", 4, seed) for seed in range(4)])
    data = folder(root, tmp_path, dtype="uint16", channels=5)
    with pytest.raises((UserError, TooManyUnreadable), match="which is not that of 5 channels"):
        ItemLoader(data, data.split("train"), CPU)


def test_archives_of_more_than_one_array_and_pickles_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros((4, 4)), b=np.ones((4, 4)))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((3000, 3000)))
    for name, reason in (("two.npz", "2 arrays"), ("pickle.npy", "objects"), ("bomb.npz", "data.most_pixels")):
        with pytest.raises(OSError, match=reason):
            read_planes(tmp_path / name, 1, 10_000)


def test_without_tifffile_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tifffile").imwrite(tmp_path / "x.tif", values_of("uint16", 5), photometric="minisblack")
    monkeypatch.setattr(planes, "has_tifffile", lambda: False)
    with pytest.raises(OSError, match="pip install tifffile"):
        read_planes(tmp_path / "x.tif", 5, 10_000)
    assert planes.suffix_for("uint16", 5) == ".npy"


def test_arrays_beside_images_are_items_only_where_they_are_asked_for(tmp_path: Path) -> None:
    root = written(tmp_path / "p", [values_of("uint8", 3, seed) for seed in range(4)])
    for index in range(3):
        Image.fromarray(np.moveaxis(values_of("uint8", 3, index), 0, -1)).save(root / f"{index}.png")
    found = {
        name: folder(root, tmp_path, suffixes=chosen).layout.tree("train").files
        for name, chosen in (("images", None), ("arrays", [".NPY"]))
    }
    assert [name.endswith(".png") for name in found["images"]] == [True] * 3
    assert [name.endswith(".npy") for name in found["arrays"]] == [True] * 4
    with pytest.raises(UserError, match="suffixes must begin with a dot"):
        folder(root, tmp_path, suffixes=["npy"])


def test_pictures_show_the_chosen_channels(tmp_path: Path) -> None:
    root = written(tmp_path / "p", [values_of("uint16", 5, seed) for seed in range(4)])
    settings: dict[str, Any] = {"dtype": "uint16", "channels": 5, "value_range": None}
    item = folder(root, tmp_path, **settings).split("train").read(0)[None]
    levels = ((item.double() + 1) * 127.5).round().to(torch.uint8)
    for show, wanted in ((None, [0, 1, 2]), ([0, 3, 2], [0, 3, 2]), ([4], [4])):
        assert torch.equal(folder(root, tmp_path, **settings, show=show).picture(item), levels[:, wanted])
    for wrong in ([0, 1], [5], [-1], []):
        with pytest.raises(UserError, match="show must be 1 or 3 of the channels"):
            folder(root, tmp_path, **settings, show=wrong)


def test_shards_hold_images_of_more_than_eight_bits(tmp_path: Path) -> None:
    members: dict[str, Any] = {}
    for seed in range(4):
        data = io.BytesIO()
        Image.fromarray(values_of("uint16", 1, seed)[0]).save(data, "PNG")
        members[f"{seed}.png"] = data.getvalue()
    found = shards(str(tar_of(tmp_path / "a.tar", members)), tmp_path, dtype="uint16", channels=1, value_range=None)
    assert found.split("train").read(0).dtype == torch.float32
    every = [found.values(found.read_file(io.BytesIO(found.train.content(index)))) for index in range(4)]
    assert all(np.array_equal(one, values_of("uint16", 1, seed)) for seed, one in enumerate(every))


# ---- the whole program


@pytest.mark.parametrize(("dtype", "channels"), [pytest.param("uint16", 1, marks=pytest.mark.slow), ("float32", 5)])
def test_both_stages_and_all_that_follows_keep_the_units(
    dtype: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x = np.mgrid[0:16, 0:24]
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        offset = 10 * np.arange(channels)[:, None, None] + 50 * (name == "b")
        arrays = [(1000 + 20 * y + 10 * x + offset + 3 * seed).astype(dtype) for seed in range(5)]
        written(tmp_path / "p" / split / name, arrays)
    data = ["data=folder", f"data.root={tmp_path / 'p'}", "data.image_size=[16,24]", f"data.channels={channels}"]
    data += [f"data.dtype={dtype}", f"data.cache_dir={tmp_path / 'cache'}", f"data.show=[{channels - 1}]"]
    overrides, path, again = [*TINY_FOLDER, *SMALL_CODEBOOK, *data], tmp_path / "run", tmp_path / "again"
    train_inside(*overrides, f"run_dir={path}")
    stop_at(monkeypatch, "autoencoder", 3)
    with pytest.raises(SystemExit):
        train_inside(*overrides, f"run_dir={again}")
    monkeypatch.undo()
    train_inside(*overrides, f"run_dir={again}")
    assert_same_result(path, again)
    low, high = json.loads((path / "data.json").read_text())["facts"]["value_range"][:2]
    assert 1000 <= low < high <= 2000

    run("sample.py", f"run_dir={path}", "n=3", "singles=true", "gif=true", f"out={tmp_path / 'drawn'}")
    drawn = np.load(tmp_path / "drawn" / "samples.npz")["items"]
    assert (drawn.shape, drawn.dtype) == ((3, channels, 16, 24), np.dtype(dtype))
    assert low <= drawn.min() <= drawn.max() <= high
    (single,) = [file for file in (tmp_path / "drawn").iterdir() if file.name.startswith("000001")]
    assert np.array_equal(read_planes(single, channels, 1000), drawn[1])
    for mode in (["complete", "image=0"], ["interpolate", "image=[0,1]"], ["nearest", "n=2"]):
        run("sample.py", f"run_dir={path}", f"mode={mode[0]}", *mode[1:], f"out={tmp_path / mode[0]}")
        assert np.load(next((tmp_path / mode[0]).glob("*.npz")))["items"].dtype == np.dtype(dtype)
    given = tmp_path / "p" / "val"
    run("sample.py", f"run_dir={path}", "mode=reconstruct", f"folder={given}", f"out={tmp_path / 'again2'}")

    run("scripts/evaluate.py", f"run_dir={path}")
    about = json.loads((path / "evaluation_val.json").read_text())
    run("scripts/export.py", f"run_dir={path}", f"out={tmp_path / 'export'}")
    model = vqvae.load(tmp_path / "export")
    files = sorted(given.glob("*/*.npy"))
    truth = np.stack([np.load(file) for file in files]).astype(float)
    for pictures in (files, [np.load(file) for file in files]):
        made = model.values(model.reconstruct(pictures))
        assert made.dtype == np.dtype(dtype)
        error = np.mean((made - truth.clip(low, high)) ** 2)
        psnr = 10 * np.log10((high - low) ** 2 / error)
        measured = about["figures"]["autoencoder/psnr_db"]["value"]
        assert psnr == pytest.approx(measured, abs=0.05)  # peak: the data's range; written values are rounded


def test_a_likelihood_of_bytes_refuses_more_bits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = written(tmp_path / "p", [values_of("uint16", 1, seed, (16, 16)) for seed in range(20)])
    data = ["data=folder", f"data.root={root}", "data.image_size=16", "data.dtype=uint16", "data.channels=1"]
    said = error_of(capsys, *TINY_FOLDER, *data, "loss=logistic", f"run_dir={tmp_path / 'run'}")
    assert "loss=logistic is a likelihood of 8-bit values, and those of this data are uint16: choose loss=mse" in said
    assert said.count("\n") == 1
