"""Laws of unusual image files: each is read as it looks, or named, counted and replaced by the next."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, call_inside, error_of, run
from PIL import Image
from test_data import CPU, folder, write_image

from vqvae.data.formats import SUFFIXES
from vqvae.data.images import read_image
from vqvae.data.loader import ItemLoader
from vqvae.data.tree import list_tree
from vqvae.sampling.sources import names_in
from vqvae.surroundings.terminal import printable

SIDE = 16
GRAYS = np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE)
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
PLAIN = (200, 30, 90)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"]
UNDECODABLE = os.fsdecode(b"caf\xe9.png")  # Latin-1, where names are UTF-8
NAMES = ["two words.png", "line\nend.png", "Grüße 图.PNG", UNDECODABLE, "a,b=[c]'d.png", "UPPER.JPG"]


def read(path: Path, channels: int = 3) -> np.ndarray:
    """(SIDE, SIDE, channels)"""
    return read_image(path, SIDE, channels).permute(1, 2, 0).numpy()


def gray(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


# ---- what is read


@pytest.mark.parametrize("name", ["g.png", "g.tif", "big_endian.tif", "g.pgm", "integers.tif"])
def test_sixteen_bits_are_scaled_and_rounded_not_clipped(name: str, tmp_path: Path) -> None:
    deep = (GRAYS.astype(np.int64) * 257 + np.random.default_rng(1).integers(-120, 121, GRAYS.shape)).clip(0, 65535)
    if name == "g.pgm":
        (tmp_path / name).write_bytes(b"P5 16 16 65535\n" + deep.astype(">u2").tobytes())
    else:
        kind = {"big_endian.tif": ">u2", "integers.tif": "i4"}.get(name, "u2")
        Image.fromarray(deep.astype(kind)).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name), gray(GRAYS))
    assert np.array_equal(read(tmp_path / name, 1)[..., 0], GRAYS)
    clipped = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert np.mean(clipped != gray(GRAYS)) > 0.9  # Pillow alone


def deep_colors(most: int) -> bytes:
    """A PNG of NOISE in 16 bits a color, up to `most`: Pillow writes none."""
    rows = b"".join(b"\0" + row.tobytes() for row in (NOISE.astype(np.int64) * most // 255).astype(">u2"))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bit_colors_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(deep_colors(65535))
    assert np.array_equal(read(tmp_path / "x.png"), NOISE)


def test_floats_hold_0_to_1(tmp_path: Path) -> None:
    Image.fromarray((GRAYS / 255).astype(np.float32)).save(tmp_path / "f.tif")
    assert np.array_equal(read(tmp_path / "f.tif"), gray(GRAYS))


@pytest.mark.parametrize("strange", [-0.5, 200.0, np.nan, np.inf])
def test_values_of_unknown_range_are_named_not_guessed(strange: float, tmp_path: Path) -> None:
    values = (GRAYS / 255).astype(np.float32)
    values[3, 3] = strange
    Image.fromarray(values).save(tmp_path / "f.tif")
    with pytest.raises(OSError, match="its values go from"):
        read(tmp_path / "f.tif")
    Image.fromarray(GRAYS.astype(np.int32) * 1000).save(tmp_path / "i.tif")
    with pytest.raises(OSError, match=r"its values go from 0 to 255000, and must lie in 0 \.\. 65535"):
        read(tmp_path / "i.tif")


@pytest.mark.parametrize("name", ["rgba.png", "rgba.webp", "rgba.tif", "la.png", "palette.png", "palette.gif", "l.png"])
def test_what_is_transparent_is_white(name: str, tmp_path: Path) -> None:
    """Left half opaque, right half transparent over black."""
    color = (90, 90, 90) if name in ("la.png", "l.png") else PLAIN
    whole = np.zeros((SIDE, SIDE, 4), np.uint8)
    whole[:, : SIDE // 2] = [*color, 255]
    made = Image.fromarray(whole)
    expected = np.full((SIDE, SIDE, 3), 255, np.uint8)
    expected[:, : SIDE // 2] = color
    options: dict[str, object] = {"lossless": True} if name.endswith("webp") else {}
    if name == "la.png":
        made = made.convert("LA")
    elif name == "l.png":
        made, options = made.convert("L"), {"transparency": 0}
    elif name.startswith("palette"):
        made = Image.fromarray(whole[..., :3]).quantize(2)
        options = {"transparency": made.getpixel((SIDE - 1, 0))}
    made.save(tmp_path / name, **options)
    assert np.array_equal(read(tmp_path / name), expected)
    luma = np.asarray(Image.fromarray(expected).convert("L"))
    assert np.array_equal(read(tmp_path / name, 1)[..., 0], luma)


def test_half_transparent_is_half_white_and_opaque_is_untouched(tmp_path: Path) -> None:
    half = np.dstack([NOISE, np.full((SIDE, SIDE), 128, np.uint8)])
    Image.fromarray(half).save(tmp_path / "half.png")
    assert np.abs(read(tmp_path / "half.png") - (NOISE * (128 / 255) + 255 * (127 / 255))).max() <= 1
    half[..., 3] = 255
    Image.fromarray(half).save(tmp_path / "opaque.png")
    assert np.array_equal(read(tmp_path / "opaque.png"), NOISE)


def test_cmyk_keeps_its_colors(tmp_path: Path) -> None:
    Image.fromarray(NOISE).convert("CMYK").save(tmp_path / "c.tif")
    assert np.array_equal(read(tmp_path / "c.tif"), NOISE)
    Image.new("CMYK", (40, 30), (*(255 - c for c in PLAIN), 0)).save(tmp_path / "c.jpg", quality=95)
    assert np.abs(read(tmp_path / "c.jpg").astype(int) - PLAIN).max() <= 3


@pytest.mark.parametrize("name", ["1.png", "1.tif", "p.png", "p.bmp", "progressive.jpg"])
def test_two_tones_palettes_and_progressive_files_are_read_as_they_look(name: str, tmp_path: Path) -> None:
    if name.startswith("1"):
        expected = gray(np.where(GRAYS > 100, 255, 0).astype(np.uint8))
        Image.fromarray(GRAYS > 100).save(tmp_path / name)
    elif name.startswith("p."):
        expected = np.where(GRAYS[..., None] > 100, np.uint8(PLAIN), np.uint8((1, 2, 3)))
        Image.fromarray(expected).quantize(2).save(tmp_path / name)
    else:
        expected = np.full((SIDE, SIDE, 3), PLAIN, np.uint8)
        Image.fromarray(expected).save(tmp_path / name, quality=95, progressive=True, subsampling=0)
    assert np.abs(read(tmp_path / name).astype(int) - expected).max() <= (3 if name.endswith("jpg") else 0)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), color) for color in (PLAIN, "black", "white")]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "x", kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(tmp_path / "x").n_frames == 3
    assert np.array_equal(read(tmp_path / "x"), np.full((SIDE, SIDE, 3), PLAIN))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_turned_by_exif_equals_the_upright_one(kind: str, orientation: int, tmp_path: Path) -> None:
    Way = Image.Transpose
    undo = [None, Way.FLIP_LEFT_RIGHT, Way.ROTATE_180, Way.FLIP_TOP_BOTTOM, Way.TRANSPOSE, Way.ROTATE_90]
    way = [*undo, Way.TRANSVERSE, Way.ROTATE_270][orientation - 1]
    quadrants = np.zeros((SIDE, SIDE, 3), np.uint8)
    quadrants[:8, :8], quadrants[:8, 8:], quadrants[8:, :8] = PLAIN, 255, 80
    upright = Image.fromarray(quadrants)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    stored = upright.transpose(way) if way is not None else upright
    stored.save(tmp_path / "x", kind, exif=exif, **options)
    assert np.abs(read(tmp_path / "x").astype(int) - quadrants).max() <= (12 if kind == "JPEG" else 0)


def test_grays_and_colors_become_what_is_asked_for(tmp_path: Path) -> None:
    Image.fromarray(GRAYS).save(tmp_path / "g.png")
    Image.fromarray(NOISE).save(tmp_path / "c.png")
    assert np.array_equal(read(tmp_path / "g.png"), gray(GRAYS))
    assert np.array_equal(read(tmp_path / "c.png", 1)[..., 0], np.asarray(Image.fromarray(NOISE).convert("L")))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 3)])
def test_tiny_and_thin_images_fill_the_square(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, PLAIN).save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png"), np.full((SIDE, SIDE, 3), PLAIN))


# ---- what is not


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0, 0.02, 0.7])
def test_a_truncated_file_is_an_error_not_half_an_image(kind: str, share: float, tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, kind)
    (tmp_path / "x").write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    with pytest.raises(OSError, match=r"\w"):
        read(tmp_path / "x")


@pytest.mark.parametrize("side", [9500, 14000])
def test_a_decompression_bomb_is_an_error_and_is_not_decoded(side: int, tmp_path: Path) -> None:
    """Beyond Pillow's limit, which would only warn up to twice as many pixels."""
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(OSError, match="DecompressionBomb"):
        read(tmp_path / "bomb.png")


def test_images_are_found_by_suffix_in_any_case_and_nothing_else_is(tmp_path: Path) -> None:
    for name in NAMES:
        write_image(tmp_path / name, seed=0)
    (tmp_path / "folder.jpg").mkdir()
    write_image(tmp_path / "folder.jpg" / "inside.png", seed=1)
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / ".hidden.png").write_bytes((tmp_path / "UPPER.JPG").read_bytes())
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "UPPER.JPG")
    os.mkfifo(tmp_path / "pipe.png")
    assert list_tree(tmp_path, SUFFIXES).files == sorted([*NAMES, "folder.jpg/inside.png", "link.png"])


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_cannot_be_read_are_named_counted_and_replaced_by_the_next(
    workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "p"
    for index, name in enumerate(NAMES):
        write_image(root / "train" / name, seed=index, mode="L")
        write_image(root / "val" / name, seed=index)
    for name in ("0 text.jpg", "0 broken\n.png", "zz.tif"):
        (root / "train" / name).write_text("not an image")
    (root / "train" / UNDECODABLE).write_bytes(b"")
    data = folder(root, tmp_path / "cache", workers=workers)
    loader = ItemLoader(data, data.split("train"), CPU)
    names = sorted([*NAMES, "0 text.jpg", "0 broken\n.png", "zz.tif"])
    broken = [i for i, name in enumerate(names) if name.startswith(("0", "zz")) or name == UNDECODABLE]
    assert loader.unreadable == set(broken)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text.startswith("cannot decode") for text in warnings] == [True] * 4
    assert "0 broken\\n.png" in caplog.text
    assert "caf\\udce9.png" in caplog.text
    assert loader.images is not None
    for index in broken:
        after = next(i % len(names) for i in range(index, 2 * len(names)) if i % len(names) not in broken)
        assert torch.equal(loader.images[index], loader.images[after])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_replaced(tmp_path: Path) -> None:
    for index in range(4):
        write_image(tmp_path / "p" / f"{index}.png", seed=index)
    (tmp_path / "p" / "1.png").chmod(0)
    data = folder(tmp_path / "p", tmp_path / "cache", val_share=0.25)
    loaders = [ItemLoader(data, data.split(name), CPU) for name in ("train", "val")]
    assert sum(len(loader.unreadable) for loader in loaders) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_unreadable_images_is_one_sentence(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(24):
        (tmp_path / f"{index}.jpg").write_text("text")
    own = [a for a in TINY if not a.startswith("data.")]
    data = ["data=folder", f"data.root={tmp_path}", "data.image_size=16", "data.val_share=0.4"]
    more = [f"data.workers={workers}", f"data.cache_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    message = error_of(capsys, *own, *data, *more).splitlines()[-1]
    assert message.startswith("error: none of the ")
    assert "items of the split 'train' can be decoded: UnidentifiedImageError: cannot identify image file" in message


# ---- sample.py


@pytest.fixture
def strange_folder(tmp_path: Path) -> Path:
    root = tmp_path / "strange images"
    for index, name in enumerate(NAMES):
        write_image(root / name, seed=index)
    Image.fromarray(GRAYS.astype(np.uint16) * 257).save(root / "deep.png")
    Image.new("1", (9500, 9500)).save(root / "bomb.png")
    (root / "text\n.jpg").write_text("not an image")
    (root / "loop").symlink_to(root, target_is_directory=True)
    return root


def test_sample_reconstructs_what_it_can_read_and_names_the_rest(
    finished_run: Path, strange_folder: Path, tmp_path: Path
) -> None:
    own = [f"run_dir={finished_run}", "mode=reconstruct", f"folder={strange_folder}", f"out={tmp_path / 'out'}"]
    done = run("sample.py", *own)
    assert "mean PSNR of 7 images" in done.stdout
    assert "2 files skipped" in done.stdout
    assert "skipped bomb.png: DecompressionBombWarning" in done.stdout
    assert "skipped text\\n.jpg: UnidentifiedImageError" in done.stdout
    table = (tmp_path / "out" / "psnr.csv").read_text(encoding="utf-8")
    assert all(printable(name) in table for name in NAMES if "," not in name)
    assert len(table.splitlines()) == 8


@pytest.mark.parametrize("name", ["two words.png", "Grüße 图.PNG", UNDECODABLE, "a,b=[c]'d.png", "line\nend.png"])
def test_sample_completes_an_image_of_any_name(
    name: str, finished_run: Path, strange_folder: Path, tmp_path: Path
) -> None:
    own = [f"run_dir={finished_run}", "mode=complete", "n=1", f"out={tmp_path / 'out'}"]
    call_inside("sample", *own, f"image={strange_folder / name}")
    assert (tmp_path / "out" / "completions.png").is_file()


def test_sample_says_in_one_sentence_what_it_cannot_read(
    finished_run: Path, strange_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "text.jpg").write_text("not an image")
    cases = {
        f"image={strange_folder / 'bomb.png'}": "bomb.png cannot be read: DecompressionBombWarning",
        f"folder={tmp_path / 'only'}": "holds no file that can be read (1 skipped)",
    }
    for given, expected in cases.items():
        mode = "complete" if given.startswith("image") else "reconstruct"
        with pytest.raises(SystemExit) as stopped:
            call_inside("sample", f"run_dir={finished_run}", f"mode={mode}", given)
        message = capsys.readouterr().err
        assert (stopped.value.code, message.count("\n")) == (2, 1)
        assert expected in message


def test_a_long_list_of_numbers_is_no_file_name() -> None:
    numbers = ",".join(map(str, range(2000)))
    assert names_in(numbers) == numbers.split(",")
