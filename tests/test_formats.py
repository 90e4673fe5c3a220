"""Laws of image formats: every raster format is read, none starts a program, and no bit is lost silently."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, call_inside, error_of
from PIL import Image
from test_data import CPU, folder, write_image
from test_strange_images import deep_colors
from test_webdataset import make, shards

from vqvae.data.depth import FULL, choose_ranges, look_at
from vqvae.data.formats import FORMATS, MOST_PIXELS, RASTER, SUFFIXES
from vqvae.data.images import read_image
from vqvae.data.loader import ItemLoader

NO_PIXELS = {"EPS", "WMF", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG", "FPX"}
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(any program) run\n%%EOF\n"


# ---- formats


def test_of_every_format_of_pillow_it_is_known_whether_it_is_read() -> None:
    """A new one must be put on one of the two lists."""
    Image.init()
    assert set(Image.OPEN) <= set(RASTER) | NO_PIXELS
    assert not set(RASTER) & NO_PIXELS
    assert {".jpg", ".png", ".avif", ".jp2", ".tga", ".psd", ".ico", ".mpo", ".jfif", ".pbm"} <= SUFFIXES
    assert not {".eps", ".ps", ".wmf", ".emf", ".pdf", ".h5", ".mpg", ".iim"} & SUFFIXES


@pytest.mark.parametrize("suffix", [".jp2", ".tga", ".avif", ".ico", ".pcx", ".sgi", ".dds", ".pbm", ".qoi", ".jfif"])
def test_raster_formats_are_read_in_training(suffix: str, tmp_path: Path) -> None:
    if Image.registered_extensions()[suffix] not in FORMATS:
        pytest.skip("this Pillow does not open it")
    for seed in range(4):
        write_image(tmp_path / "p" / f"{seed}{suffix}", seed, (16, 16), "1" if suffix == ".pbm" else "RGB")
    data = folder(tmp_path / "p", tmp_path, val_share=0.5)
    assert sum(len(ItemLoader(data, data.split(name), CPU).unreadable) for name in ("train", "val")) == 0
    assert len(data.split("train")) + len(data.split("val")) == 4


def wrapped_in_iptc(content: bytes) -> bytes:
    """A IPTC file that holds another one, which Pillow would open by any plugin."""

    def record(number: int, dataset: int, data: bytes) -> bytes:
        return bytes([0x1C, number, dataset]) + len(data).to_bytes(2, "big") + data

    head = record(3, 60, b"\x01\x01") + record(3, 20, b"\x00\x20") + record(3, 30, b"\x00\x20")
    return head + record(3, 120, b"\x01") + record(8, 10, content)


@pytest.mark.parametrize("content", [POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + POSTSCRIPT, wrapped_in_iptc(POSTSCRIPT)])
def test_no_image_starts_a_program(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    for name in ("Popen", "call", "check_call", "run"):
        monkeypatch.setattr(subprocess, name, lambda *arguments, **_: started.append(arguments))
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(OSError, match="UnidentifiedImageError"):
        read_image(tmp_path / "x.jpg", 16, 3)
    assert started == []


def test_a_limit_of_pixels_is_a_setting(tmp_path: Path) -> None:
    for seed in range(3):
        write_image(tmp_path / "p" / f"{seed}.png", seed, (20, 16))
    for limit, reason in ((319, "DecompressionBombWarning"), (100, "DecompressionBombError")):
        with pytest.raises(OSError, match=rf"{reason}.*data\.most_pixels is the limit"):
            read_image(tmp_path / "p" / "0.png", 8, 3, most_pixels=limit)
        data = folder(tmp_path / "p", tmp_path / "cache", most_pixels=limit)
        with pytest.raises(OSError, match=reason):
            data.split("train").read(0)
        with pytest.raises(OSError, match=reason):
            data.load(tmp_path / "p" / "1.png")
    assert folder(tmp_path / "p", tmp_path / "cache", most_pixels=320).split("train").read(0).shape == (3, 12, 12)
    assert Image.MAX_IMAGE_PIXELS == MOST_PIXELS


def test_what_can_be_read_again_is_read_again(tmp_path: Path) -> None:
    """A cache keeps no item unreadable that a larger limit, a permission or a repair has made readable."""
    for seed in range(6):
        write_image(tmp_path / "p" / f"{seed}.png", seed)
    whole = (tmp_path / "p" / "3.png").read_bytes()
    (tmp_path / "p" / "3.png").write_bytes(bytes(len(whole)))

    def unreadable() -> list[set[int]]:
        data = folder(tmp_path / "p", tmp_path / "cache", val_share=0.3, most_pixels=limit)
        return [ItemLoader(data, data.split(name), CPU).unreadable for name in ("train", "val")]

    limit = MOST_PIXELS
    assert sorted(map(len, unreadable())) == [0, 1]
    assert sorted(map(len, unreadable())) == [0, 1]
    limit = 100
    small = folder(tmp_path / "p", tmp_path / "other", val_share=0.3, most_pixels=limit)
    with pytest.raises(ValueError, match=r"none of the .* data\.most_pixels is the limit"):
        ItemLoader(small, small.split("train"), CPU)
    (tmp_path / "p" / "3.png").write_bytes(whole)
    limit = MOST_PIXELS
    assert sorted(map(len, unreadable())) == [0, 0]


@pytest.mark.parametrize(("suffix", "size", "differs"), [("jpg", 64, True), ("jpg", 30, False), ("png", 64, False)])
def test_scaled_decoding_changes_large_jpeg_files_alone_and_those_a_little(
    suffix: str, size: int, differs: bool, tmp_path: Path
) -> None:
    """An image twice as large as asked for or more; turned ones are turned as ever."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    upright = Image.fromarray(noise).resize((size + 3, size), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    (tmp_path / "p").mkdir()
    for index, options in enumerate([{}, {"exif": exif}, {}, {}]):
        upright.save(tmp_path / "p" / f"{index}.{suffix}", **options)
    whole, scaled = (folder(tmp_path / "p", tmp_path, image_size=16, resize=16, draft=draft) for draft in (False, True))
    for index in range(2):
        file = tmp_path / "p" / f"{index}.{suffix}"
        one, other = whole.load(file), scaled.load(file)
        assert torch.equal(one, other) != differs
        assert (one.double() - other.double()).square().mean() < 255**2 * 10**-3.5  # 35 dB
    assert whole.split("train").fingerprint != scaled.split("train").fingerprint


# ---- values of more than 8 bits


def write_values(root: Path, values: np.ndarray, count: int = 4) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.roll(values, index)).save(root / f"{index}.tif")
    return root


def ramp(high: float, kind: str, low: float = 0) -> np.ndarray:
    """(16, 16), all values between low and high."""
    return np.linspace(low, high, 256).reshape(16, 16).round(6 if kind == "f4" else 0).astype(kind)


@pytest.mark.parametrize(("bits", "kind"), [(8, "u2"), (10, "u2"), (12, "u2"), (14, "u2"), (16, "u2"), (12, "i4")])
def test_integers_of_fewer_bits_than_their_container_fill_the_range(bits: int, kind: str, tmp_path: Path) -> None:
    root = write_values(tmp_path / "p", ramp(2**bits - 1, kind))
    data = folder(root, tmp_path, image_size=16, resize=16, channels=1)
    read = data.split("train").read(0)
    assert len(read.unique()) == 256
    assert (int(read.min()), int(read.max())) == (0, 255)
    assert torch.equal(read, data.load(Path(data.split("train").title(0))))
    assert any(f"[0,{2**bits - 1}]" in note for note in data.notes()) == (bits < 16)


def test_the_range_is_decided_once_and_not_for_each_image(tmp_path: Path) -> None:
    root = write_values(tmp_path / "p", ramp(4095, "u2"), 3)
    Image.fromarray(ramp(100, "u2")).save(root / "dark.tif")
    data = folder(root, tmp_path, image_size=16, resize=16, channels=1, splits={"train": "."}, val_share=0.3)
    splits = [data.split(name) for name in ("train", "val")]
    (dark,) = [s.read(i) for s in splits for i in range(len(s)) if "dark" in s.title(i)]
    assert int(dark.max()) == round(100 / 4095 * 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (ramp(1999, "i4", -999), r"integers from -999 to 1999: .* as data\.value_range=\[-999,1999\]"),
        (ramp(70000, "i4"), r"integers from 0 to 70000"),
        (ramp(300, "f4"), r"numbers from 0 to 300"),
        (ramp(1, "f4", -1), r"numbers from -1 to 1"),
    ],
)
def test_a_range_that_cannot_be_told_is_asked_for(values: np.ndarray, expected: str, tmp_path: Path) -> None:
    root = write_values(tmp_path / "p", values)
    with pytest.raises(ValueError, match=expected):
        folder(root, tmp_path).split("train")
    low, high = float(values.min()), float(values.max())
    data = folder(root, tmp_path, image_size=16, resize=16, channels=1, value_range=[low, high])
    assert len(data.split("train").read(0).unique()) == 256


def test_a_start_without_a_range_leaves_a_summary_and_blocks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        write_values(tmp_path / "p" / split, ramp(300, "f4"), 8)
    data = [
        "data=folder",
        f"data.root={tmp_path / 'p'}",
        "data.image_size=16",
        "data.channels=1",
        "stages=[autoencoder]",
    ]
    model = [one for one in [*TINY, *SMALL_CODEBOOK] if not one.startswith("data.")]
    more = [
        *data,
        *model,
        f"data.cache_dir={tmp_path / 'cache'}",
        "trainer.batch_size=4",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert "data.value_range=[0,300]" in error_of(capsys, *more)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unreadable_items"] == {"train": 8}
    call_inside("train", *more, "data.value_range=[0,300]")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unreadable_items"] == {"train": 0, "val": 0}


def test_a_range_of_the_user_clips_and_says_so(tmp_path: Path) -> None:
    root = write_values(tmp_path / "p", ramp(3000, "i4", -1000))
    data = folder(root, tmp_path, image_size=16, resize=16, channels=1, value_range=[0, 1000])
    read = data.split("train").read(0)
    assert (int(read.min()), int(read.max())) == (0, 255)
    assert any("values outside are clipped" in note for note in data.notes())
    plain = folder(root, tmp_path, value_range=[0, 2000]).split("train").fingerprint
    assert plain != folder(root, tmp_path, value_range=[0, 1000]).split("train").fingerprint


def test_resized_shards_hold_the_values_that_the_folder_reads(tmp_path: Path) -> None:
    root = write_values(tmp_path / "p", ramp(3000, "i4", -1000))
    make(str(root), str(tmp_path / "out"), "--size", "16", "--value_range", "0", "1000")
    packed = shards(f"{tmp_path}/out/train-*.tar", tmp_path, image_size=16, resize=16).train
    data = folder(root, tmp_path, image_size=16, resize=16, value_range=[0, 1000])
    assert all(torch.equal(packed.read(index), data.load(root / f"{index}.tif")) for index in range(4))


@pytest.mark.parametrize("wrong", [[1, 0], [0, 0], [0, float("inf")], "12 bits"])
def test_a_range_is_two_numbers_in_order(wrong: Any, tmp_path: Path) -> None:
    root = write_values(tmp_path / "p", ramp(1, "f4"))
    with pytest.raises(ValueError, match="value_range"):
        folder(root, tmp_path, value_range=wrong)


def test_eight_bits_and_whole_ranges_are_read_as_ever(tmp_path: Path) -> None:
    """Their fingerprints too, so that caches and codes of earlier versions stay valid."""
    for kind, values in {"a": ramp(255, "u1"), "b": ramp(65535, "u2"), "c": ramp(1, "f4")}.items():
        write_values(tmp_path / kind, values)
        data = folder(tmp_path / kind, tmp_path / "cache")
        old = folder(tmp_path / kind, tmp_path / "cache", value_range=None)
        assert data.ranges == old.ranges == FULL
        assert data.split("train").fingerprint == old.split("train").fingerprint


def test_further_pages_and_colors_of_sixteen_bits_are_said(tmp_path: Path) -> None:
    pages = [Image.new("L", (16, 16), shade) for shade in (10, 20, 30)]
    (tmp_path / "p").mkdir()
    for index in range(3):
        pages[0].save(tmp_path / "p" / f"{index}.tif", save_all=True, append_images=pages[1:])
    notes = " ".join(folder(tmp_path / "p", tmp_path).notes())
    assert "3 of 3 images looked at have further pages" in notes
    assert "data.pages=first reads the first page" in notes
    for most, name in ((65535, "bright.png"), (4095, "dark.png")):
        (tmp_path / name).write_bytes(deep_colors(most))
    looked = look_at([tmp_path / "bright.png"], MOST_PIXELS)
    assert any("1 of 1 images looked at have 16-bit colors" in note for note in looked.notes())
    assert choose_ranges(looked, "auto") == FULL
    with pytest.raises(ValueError, match="use only their lower bits"):
        choose_ranges(look_at([tmp_path / "dark.png"], MOST_PIXELS), "auto")


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_each_page_is_an_item_of_the_split_and_class_of_its_file(suffix: str, tmp_path: Path) -> None:
    for index in range(6):
        pages = [Image.new("L", (16, 16), 10 * index + page) for page in range(1 + index % 3)]
        file = tmp_path / "p" / "ab"[index % 2] / f"{index}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pages[0].save(file, save_all=True, append_images=pages[1:])
    first, every = (
        folder(tmp_path / "p", tmp_path, image_size=16, resize=16, channels=1, val_share=0.3, pages=pages)
        for pages in ("first", "all")
    )
    for name in ("train", "val"):
        one, split = first.split(name), every.split(name)
        shades = [int(one.read(index)[0, 0, 0]) for index in range(len(one))]
        expected = [shade + page for shade in shades for page in range(1 + shade // 10 % 3)]
        assert [int(split.read(index)[0, 0, 0]) for index in range(len(split))] == expected
        assert split.labels.tolist() == [shade // 10 % 2 for shade in expected]
        assert one.fingerprint != split.fingerprint
        assert len(set(split.items().names)) == len(split)


# ---- unreadable items


def test_a_run_ends_where_too_many_items_are_unreadable_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 30), ("val", 8)):
        for seed in range(count):
            write_image(tmp_path / "p" / split / f"{seed:02}.png", seed)
    for name in ("01.png", "07.png"):
        (tmp_path / "p" / "train" / name).write_bytes(b"no image")
    data = [
        "data=folder",
        f"data.root={tmp_path / 'p'}",
        "data.image_size=16",
        "data.workers=0",
        "stages=[autoencoder]",
    ]
    model = [one for one in [*TINY, *SMALL_CODEBOOK] if not one.startswith("data.")]
    more = [*data, *model, f"data.cache_dir={tmp_path / 'cache'}", "trainer.batch_size=4"]
    message = error_of(capsys, *more, f"run_dir={tmp_path / 'run'}").splitlines()[-1]
    assert "2 of the 30 items of the split 'train' cannot be decoded so far, such as" in message
    assert "07.png: UnidentifiedImageError" in message
    assert "data.most_unreadable" in message
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unreadable_items"] == {"train": 2}
    call_inside("train", *more, "data.most_unreadable=0.1", f"run_dir={tmp_path / 'run'}")
    assert '"train": 2' in (tmp_path / "run" / "summary.json").read_text()
    assert "2 items of the split 'train' could not be read" in capsys.readouterr().out
    assert "01.png (1 so far): UnidentifiedImageError" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize("resident", ["memory", "stream"])
def test_the_share_of_unreadable_items_is_that_of_the_whole_split(resident: str, tmp_path: Path) -> None:
    for seed in range(20):
        write_image(tmp_path / "p" / "train" / f"{seed:02}.png", seed)
    for seed in range(3):
        (tmp_path / "p" / "train" / f"{seed:02}.png").write_bytes(b"")
    write_image(tmp_path / "p" / "val" / "0.png", 0)

    def read_with(share: float) -> set[int]:
        data = folder(tmp_path / "p", tmp_path / f"{share}", resident=resident, most_unreadable=share)
        loader = ItemLoader(data, data.split("train"), CPU)
        assert sum(len(items) for items, _ in loader.batches(torch.arange(20).split(4))) == 20
        return loader.unreadable

    assert read_with(0.15) == {0, 1, 2}
    with pytest.raises(ValueError, match="3 of the 20 items of the split 'train' cannot be decoded so far"):
        read_with(0.14)
