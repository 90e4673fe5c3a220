"""Laws of video files: frames are exactly those of the whole decode, clips of every place, both stages and what follows."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_same_result, run, stop_at, train_inside
from PIL import Image
from test_data import CPU
from test_volumes import FP32
from torch import Tensor

import vqvae
from vqvae.data import video, video_files
from vqvae.data.items import ItemEvaluationSet, ItemTrainingSet
from vqvae.data.loader import ItemLoader
from vqvae.data.tree import list_tree
from vqvae.data.video import Video
from vqvae.data.video_files import index_of, read_frames, write_mp4
from vqvae.errors import UserError

av = pytest.importorskip("av")
KINDS: dict[str, dict[str, Any]] = {
    "x.mp4": {"codec": "libx264", "options": {"g": "12", "bf": "3"}},
    "open.mp4": {"codec": "libx264", "options": {"g": "12", "bf": "3", "x264-params": "open-gop=1"}},
    "x.mkv": {"codec": "libx264", "options": {"g": "12", "bf": "3"}},
    "x.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "b.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "nine.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8", "deadline": "realtime"}},
    "eight.webm": {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "10", "b": "200k"}},
    "x.gif": {"codec": "gif", "options": {}, "pix_fmt": "rgb8"},
}


def filmed(file: Path, count: int, size: tuple[int, int] = (24, 32), seed: int = 0) -> Path:
    """A file of a bright square on a drifting pattern, coded as KINDS says of files of its suffix."""
    about = KINDS.get(file.name) or KINDS[f"x{file.suffix}"]
    file.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    pattern = np.random.default_rng(seed).integers(0, 120, (height, width, 3))
    with av.open(str(file), "w") as container:
        stream = container.add_stream(about["codec"], rate=25, options=about["options"])
        stream.width, stream.height, stream.pix_fmt = width, height, about.get("pix_fmt", "yuv420p")
        for number in range(count):
            image = np.roll(pattern, number, 1)
            image[number % (height - 4) :][:4, number * 2 % (width - 4) :][:, :4] = 255
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return file


def decoded(file: Path) -> list[np.ndarray]:
    with av.open(str(file)) as container:
        return [np.asarray(frame.to_image()) for frame in container.decode(video=0)]


def plain(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0)


def data_of(root: Path, cache: Path, **settings: Any) -> Video:
    own: dict[str, Any] = {"ndim": 3, "channels": 3, "frames": 4, "image_size": 16, "resize": 16, "flip": False}
    more = {"limit": None, "resident": "stream", "workers": 0, "cache_dir": str(cache), "root": str(root)}
    return Video(**{**own, **more, "val_share": 0.25, "split_seed": 0, **settings})


@pytest.mark.parametrize("name", KINDS)
def test_a_clip_is_exactly_those_frames_of_the_whole_decode(name: str, tmp_path: Path) -> None:
    file = filmed(tmp_path / name, 60)
    whole, index = decoded(file), index_of(file)
    assert index.length == len(whole)
    for start, count, stride in [(0, 3, 1), (40, 16, 1), (11, 4, 1), (12, 4, 1), (13, 2, 1), (35, 5, 5), (59, 1, 1)]:
        read = read_frames(file, index, start, count, stride, plain).movedim(0, -1).numpy()
        assert np.array_equal(read, np.stack(whole[start : start + count * stride : stride])), start
    with pytest.raises(OSError, match="it has 60 frames, and number 60 is needed"):
        read_frames(file, index, 58, 3, 1, plain)


def test_a_clip_in_the_middle_is_not_decoded_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = filmed(tmp_path / "x.mp4", 60)
    index, begun = index_of(file), []
    by_time = video_files.by_time
    monkeypatch.setattr(video_files, "by_time", lambda *given: begun.append(given[2]) or by_time(*given))
    read_frames(file, index, 40, 4, 1, plain)
    assert len(begun) == 1
    assert 12 < index.times.index(begun[0][0]) <= 40


def test_crops_reach_every_place_and_batches_are_the_same_wherever_items_lie(tmp_path: Path) -> None:
    for number, (count, suffix) in enumerate([(23, ".mp4"), (31, ".avi"), (12, ".gif"), (16, ".webm")]):
        KINDS.setdefault("x.webm", KINDS["nine.webm"])
        filmed(tmp_path / "p" / f"{number}{suffix}", count, seed=number)
    sets = []
    for kind, workers, first in (("stream", 0, 0), ("memory", 0, 3), ("stream", 2, 3)):
        data = data_of(tmp_path / "p", tmp_path / "c", resident=kind, workers=workers, flip=True, resize=20, stride=2)
        train, val = (ItemLoader(data, data.split(name), CPU) for name in ("train", "val"))
        batches = list(itertools.islice(ItemTrainingSet(data, train, 3, seed=1).batches_from(first), 6 - first))
        sets.append([*batches[3 - first :], *ItemEvaluationSet(data, val).batches(5)])
    for first_set, *others in zip(*sets):
        assert first_set.x.shape[1:] == (3, 4, 16, 16)
        assert all(torch.equal(first_set.x, other.x) for other in others)
    split = data.patches("train")
    assert data.read_size == (6, 20, 20)
    for number, file in enumerate(split.files):
        begun = {start + offset for n, start in split.places.tolist() if n == number for offset in range(3)}
        (length,) = data.shapes["train"][file]
        assert not begun or begun == set(range(length - 4 + 1))


def test_frames_are_turned_as_phones_say(tmp_path: Path) -> None:
    """The matrix of an .mp4 file's track, here for a quarter turn to the right."""
    file = filmed(tmp_path / "x.mp4", 3)
    content, whole = bytearray(file.read_bytes()), decoded(file)
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    file.write_bytes(content)
    read = read_frames(file, index_of(file), 0, 3, 1, plain).movedim(0, -1).numpy()
    assert read.shape == (3, 32, 24, 3)
    assert np.array_equal(read, np.rot90(np.stack(whole), -1, (1, 2)))


def test_files_are_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [filmed(tmp_path / "p" / f"{n}.mp4", 9 + n) for n in range(3)]
    first = data_of(tmp_path / "p", tmp_path / "c").split("train")
    assert list_tree(tmp_path / "c", None).files == []
    looked: list[Path] = []
    monkeypatch.setattr(video, "index_of", lambda file: looked.append(file) or index_of(file))
    assert data_of(tmp_path / "p", tmp_path / "c").split("train").fingerprint == first.fingerprint
    assert looked == []
    filmed(files[1], 15)
    assert data_of(tmp_path / "p", tmp_path / "c").shapes["train"]["1.mp4"] == (15,)
    assert looked == [files[1]]
    for file in (tmp_path / "c").glob("*-facts.json"):
        file.write_text("[1")
    data_of(tmp_path / "p", tmp_path / "c").split("train")
    assert len(looked) == 4


def test_files_that_cannot_be_used_are_counted_and_left_out(tmp_path: Path) -> None:
    root = tmp_path / "p"
    files = [filmed(root / f"{n}.mp4", 9, seed=n) for n in range(4)]
    (root / "noise.avi").write_bytes(b"no video" * 100)
    (root / "empty.webm").write_bytes(b"")
    (root / "cut.mp4").write_bytes(files[0].read_bytes()[:300])
    filmed(root / "short.mp4", 3)
    data = data_of(root, tmp_path / "c", most_unreadable=0.6)
    assert len(data.shapes["train"]) == 4
    assert any("left out: 4 videos, such as" in note for note in data.notes())
    assert any("short.mp4: it has 3 frames, and a clip needs 4" in lost for lost in data.left_out)
    with pytest.raises(UserError, match="4 of 8 videos cannot be used"):
        _ = data_of(root, tmp_path / "c", most_unreadable=0.1).shapes


def test_a_clip_that_is_damaged_is_named_and_its_neighbor_takes_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "p"
    for n, split in enumerate(["train", "val"]):
        filmed(root / split / "good.mp4", 16, seed=n)
    damaged = filmed(root / "train" / "bad.mp4", 16)
    with av.open(str(damaged)) as container:
        place, size = next((one.pos, one.size) for one in container.demux(video=0) if one.size)
    content = bytearray(damaged.read_bytes())
    content[place : place + size] = bytes(size)
    damaged.write_bytes(content)
    data = data_of(root, tmp_path / "c", resident="memory", most_unreadable=0.9)
    loader = ItemLoader(data, data.split("train"), CPU)
    assert 0 < len(loader.unreadable) < len(loader)
    assert "bad.mp4" in caplog.text


def test_clips_are_written_as_gif_and_mp4_and_read_again(tmp_path: Path) -> None:
    filmed(tmp_path / "p" / "0.mp4", 9)
    filmed(tmp_path / "p" / "1.mp4", 9)
    data = data_of(tmp_path / "p", tmp_path / "c", stride=2)
    assert data.frame_ms == 80
    again = data_of(tmp_path / "gone", tmp_path)
    again.recall(json.loads(json.dumps(data.facts())))
    item = data.split("val").read(0)[:, :4]
    assert again.save(tmp_path / "a.b", item).name == "a.b.gif"
    assert float((again.load(tmp_path / "a.b.gif").float() - item.float()).abs().mean()) < 5
    again.write_as("mp4")
    file = again.save(tmp_path / "a.b", item)
    assert file.name == "a.b.mp4"
    assert float((again.load(file).float() - item.float()).abs().mean()) < 12  # colors at half of the size
    with av.open(str(file)) as container:
        assert float(container.streams.video[0].average_rate) == 12.5
    write_mp4(tmp_path / "odd.mp4", [torch.full((1, 15, 17), 128, dtype=torch.uint8)] * 3, 80)
    assert [frame.shape for frame in decoded(tmp_path / "odd.mp4")] == [(15, 17, 3)] * 3
    for wrong in ({"frame_ms": "80"}, {"frame_ms": 0}, {"read_size": [4, 99, 99]}, {"read_size": [8, 16, 16]}):
        with pytest.raises(UserError, match=r"are no dims of patches|is no time of a frame"):
            data_of(tmp_path / "gone", tmp_path).recall({**data.facts(), **wrong})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 8}, "resize=8 must not be smaller than image_size=16"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"channels": 2}, "channels must be one of 1, 3"),
        ({"root": "gone"}, "name the folder that holds the videos"),
        ({"root": Path(__file__).parent / "older_runs"}, "no videos in"),
    ],
)
def test_mistakes_are_one_sentence(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        data_of(**{"root": tmp_path, "cache": tmp_path, **settings}).split("train")


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filmed(tmp_path / "p" / "0.mp4", 9)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"videos need the package av .*: pip install '\.\[video\]'"):
        data_of(tmp_path / "p", tmp_path).split("train")


def test_the_experiment_takes_video_files_and_does_all_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, (split, name) in enumerate(itertools.product(("train", "val"), ("a", "b"))):
        filmed(tmp_path / "p" / split / name / "0.mp4", 40, seed=n)
    small = ["debug=fast", "logger=off", "quantizer.levels=[4,4]", "data=video", f"data.root={tmp_path / 'p'}", *FP32]
    small += ["data.frames=4", "data.image_size=16", "model.encoders.0.widths=[4,4]", "data.workers=0"]
    small += ["model.encoders.0.residual_width=4", "quantizer.dim=8", "prior.network.width=16"]
    small += ["prior.network.layers=1", f"data.cache_dir={tmp_path / 'c'}"]
    path, again = tmp_path / "run", tmp_path / "again"
    train_inside("experiment=video", *small, f"run_dir={path}")
    stop_at(monkeypatch, "autoencoder", 3)
    with pytest.raises(SystemExit):
        train_inside("experiment=video", *small, f"run_dir={again}")
    monkeypatch.undo()
    train_inside("experiment=video", *small, f"run_dir={again}")
    assert_same_result(path, again)
    run("sample.py", f"run_dir={path}", "n=2", "format=mp4", f"out={tmp_path / 'drawn'}")
    files = sorted((tmp_path / "drawn").glob("0*.mp4"))
    assert [len(decoded(file)) for file in files] == [4, 4]
    whole = ["mask=0,0,2,16,16,4", f"out={tmp_path / 'o'}"]
    run("sample.py", f"run_dir={path}", "mode=complete", f"image={files[0]}", *whole)
    folder = f"folder={tmp_path / 'p' / 'val'}"
    run("sample.py", f"run_dir={path}", "mode=reconstruct", folder, f"out={tmp_path / 'r'}")
    assert len(list((tmp_path / "r").glob("*.gif"))) == 4
    run("scripts/evaluate.py", f"run_dir={path}")
    run("scripts/export.py", f"run_dir={path}", f"out={tmp_path / 'export'}")
    assert vqvae.load(tmp_path / "export").sample([0]).shape == (1, 3, 4, 16, 16)
