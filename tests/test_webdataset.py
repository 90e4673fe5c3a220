"""Laws of shards: they give the batches of the folder they were made from, at any step; only plain files in them are read."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import logging
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_CODEBOOK, TINY, assert_same_result, error_of, stop_at, train_inside
from PIL import Image
from test_data import folder, sets_of, write_image

from vqvae.config.compose import compose
from vqvae.config.typed import as_hydra_reads
from vqvae.data.loader import ItemLoader
from vqvae.data.webdataset import WebDataset, find_shards

CPU = torch.device("cpu")


def shards(urls: str | list[str], cache: Path, **settings: Any) -> WebDataset:
    plain = {"ndim": 2, "channels": 3, "image_size": 12, "flip": False, "limit": None, "resident": "stream"}
    more = {"workers": 0, "cache_dir": str(cache), "val_urls": None, "resize": 12, "val_share": 0.25, "split_seed": 0}
    data = WebDataset(**{**plain, **more, "urls": urls, **settings})  # type: ignore[arg-type]
    assert data.class_names is not None, "it has looked at all shards"
    return data


def make(*arguments: str) -> None:
    """scripts/make_shards.py in this process."""
    spec = importlib.util.spec_from_file_location("make_shards", ROOT / "scripts" / "make_shards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(arguments))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            about = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            about.name = name
            if isinstance(content, bytes):
                about.size = len(content)
            tar.addfile(about, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    about = tarfile.TarInfo()
    about.type, about.linkname = kind, target
    return about


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes whose names are numbers, not in the order of numbers; odd sizes, one file broken."""
    root = tmp_path_factory.mktemp("images") / "p"
    for number, (split, name) in enumerate(itertools.product(["train", "val"], ["1", "10", "2"])):
        for index in range(6):
            write_image(
                root / split / name / f"{index}.png", 10 * number + index, (20 + index, 16), "L" if index else "RGB"
            )
    (root / "train" / "10" / "3.png").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def made(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "shards"
    make(str(images), str(out), "--shard_mb", "0.016")
    assert len(list(out.glob("train-*.tar"))) > 2
    return out


@pytest.mark.parametrize("settings", [{}, {"flip": True, "resize": 15}, {"channels": 1}])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_from_any_step_on(
    images: Path, made: Path, tmp_path: Path, settings: dict[str, Any], workers: int
) -> None:
    last = len(list(made.glob("train-*.tar"))) - 1
    urls = {"urls": f"{made}/train-{{000000..{last:06d}}}.tar", "val_urls": f"{made}/val-*.tar"}
    data = shards(cache=tmp_path / "a", workers=workers, **urls, **settings)  # type: ignore[arg-type]
    own, other = sets_of(data), sets_of(folder(images, tmp_path / "b", resident="stream", **settings))
    assert data.class_names == ["1", "10", "2"]
    whole = list(itertools.islice(other.train.batches_from(0), 7))
    for start in (0, 3):  # from the start, and as after a stop at step 3
        for (x, labels), expected in zip(itertools.islice(own.train.batches_from(start), 3), whole[start:]):
            assert torch.equal(x, expected[0])
            assert torch.equal(labels, expected[1])
    for (x, labels), expected in zip(own.val.batches(5), other.val.batches(5), strict=True):
        assert torch.equal(x, expected[0])
        assert torch.equal(labels, expected[1])
    assert own.train.loader.unreadable == other.train.loader.unreadable == {9}


@pytest.mark.parametrize("rule", ["hash", "shuffle"])
def test_a_share_for_validation_is_the_one_that_a_folder_splits_off(rule: str, tmp_path: Path) -> None:
    for index in range(20):
        write_image(tmp_path / "p" / f"{index:02d}.{'x.' * (index % 2)}png", index)
    make(str(tmp_path / "p"), str(tmp_path / "out"))
    data = shards(f"{tmp_path}/out/train-000000.tar", tmp_path, held_out=rule)
    other = folder(tmp_path / "p", tmp_path, held_out=rule)
    assert data.class_names == []
    for name in ("train", "val", "test"):
        split, expected = data.split(name), other.split(name)
        assert len(split) == len(expected)
        assert all(torch.equal(split.read(i), expected.read(i)) for i in range(len(split)))
    assert data.split("train").fingerprint != data.split("val").fingerprint


def test_resized_shards_hold_what_the_folder_reads_and_are_the_same_bytes_again(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        make(str(images), str(tmp_path / name), "--size", "15")
    said = capsys.readouterr()
    assert "10/3.png: " in said.err, "the broken one is named"
    assert "17 images in train-{000000..000000}.tar, 1 skipped" in said.out
    files = [sorted(one.relative_to(tmp_path / name) for one in (tmp_path / name).iterdir()) for name in ("a", "b")]
    assert files[0] == files[1]
    assert all((tmp_path / "a" / one).read_bytes() == (tmp_path / "b" / one).read_bytes() for one in files[0])
    split = shards(f"{tmp_path}/a/train-*.tar", tmp_path, resize=15).train
    expected = folder(images, tmp_path, resize=15).split("train")
    readable = [index for index in range(18) if index != 9]
    assert all(torch.equal(split.read(i), expected.read(j)) for i, j in enumerate(readable))


@pytest.mark.slow
def test_more_processes_write_the_same_shards(images: Path, tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "scripts" / "make_shards.py"), str(images)]
    for workers in ("1", "2"):
        arguments = [str(tmp_path / workers), "--size", "15", "--workers", workers]
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
    for one in (tmp_path / "1").iterdir():
        assert one.read_bytes() == (tmp_path / "2" / one.name).read_bytes()


def test_the_webdataset_package_reads_these_shards(made: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(sorted(map(str, made.glob("val-*.tar"))), shardshuffle=False))
    assert [sample["cls"] for sample in found] == [b"0"] * 6 + [b"1"] * 6 + [b"2"] * 6
    assert all(sample["png"].startswith(b"\x89PNG") for sample in found)


def test_shards_of_the_webdataset_package_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/x-%02d.tar", maxcount=3, verbose=0) as writer:
        for index in range(7):
            sample = {"__key__": f"sub.d/{index}", "png": png(index)}
            writer.write({**sample, **({"json": {"label": index % 2}} if index % 3 else {"cls": index % 2})})
    data = shards(f"{tmp_path}/x-{{00..02}}.tar", tmp_path)
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert data.class_names == ["0", "1"]
    assert torch.equal(data.train.read(5), torch.from_numpy(np.array(Image.open(io.BytesIO(png(5))))).permute(2, 0, 1))


def test_only_plain_files_inside_the_archive_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "secret.png").write_bytes(png(99))
    members: dict[str, bytes | tarfile.TarInfo] = {
        "../up.png": png(1),
        "/absolute.png": png(2),
        "a/../../b.png": png(3),
        "symbolic.png": special(tarfile.SYMTYPE, str(tmp_path / "secret.png")),
        "hard.png": special(tarfile.LNKTYPE, "good.png"),
        "device.png": special(tarfile.CHRTYPE),
        "pipe.png": special(tarfile.FIFOTYPE),
        "good.png": png(4),
        "good.txt": b"ignored",
        "also.PNG": png(5),
        "._also.png": b"of a Mac",
    }
    tar_of(tmp_path / "odd.tar", members)
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.WARNING):
        data = shards(str(tmp_path / "odd.tar"), tmp_path / "cache")
    assert "odd.tar: skipped 7 members that are links, devices or lead out of it, such as ../up.png" in caplog.text
    assert [data.train.title(i).split(": ")[1] for i in range(len(data.train))] == ["good.png", "also.PNG"]
    assert [data.train.content(i) for i in range(2)] == [png(4), png(5)]
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in str(p)) == before


def test_samples_without_an_image_are_counted_and_hidden_folders_are_no_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {"0.png": png(0), "1.heic": b"", "1.cls": b"0", "2.txt": b"", ".ipynb_checkpoints/0.png": png(1)}
    tar_of(tmp_path / "t.tar", dict(members))
    with caplog.at_level(logging.WARNING):
        data = shards(str(tmp_path / "t.tar"), tmp_path / "cache")
    assert len(data.train) == 1
    assert "t.tar: skipped 2 samples without an image that is read, such as 1.heic" in caplog.text


def test_an_image_that_cannot_be_read_is_named_counted_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar_of(tmp_path / "t.tar", {"0.png": png(0), "1.png": b"broken", "2.png": png(2), "3.png": b"", "4.png": png(4)})
    data = shards(str(tmp_path / "t.tar"), tmp_path / "cache")
    loader = ItemLoader(data, data.train, CPU)
    with caplog.at_level(logging.WARNING):
        ((images, _),) = loader.batches([torch.arange(5)])
    assert "t.tar: 1.png (1 so far)" in caplog.text
    assert "t.tar: 3.png (2 so far)" in caplog.text
    assert torch.equal(images[1], images[2])
    assert torch.equal(images[3], images[4])


def test_a_shard_that_shrinks_during_a_run_loses_its_images_and_not_the_run(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "t.tar", {f"{i}.png": png(i) for i in range(4)})
    data = shards(str(whole), tmp_path / "cache")
    whole.write_bytes(whole.read_bytes()[:2000])
    loader = ItemLoader(data, data.train, CPU)
    ((images, _),) = loader.batches([torch.arange(4)])
    assert loader.unreadable == {2, 3} or loader.unreadable == {1, 2, 3}
    assert torch.equal(images[3], images[0])


def test_a_shard_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "whole.tar", {f"{i}.png": png(i) for i in range(4)}).read_bytes()
    end = whole.rstrip(b"\0")
    cut, refused = tmp_path / "cut.tar", 0
    for length in [0, 1, 511, 512, 513, 1000, 1024, 1536, 2048, *range(2100, len(end), 97)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.tar is (not a complete|cut off)") as error:
            shards(str(cut), tmp_path / "cache")
        assert "\n" not in str(error.value)
        refused += 1
    assert refused > 20
    damaged = bytearray(whole)
    damaged[512 + -(-len(png(0)) // 512) * 512 + 148] ^= 255  # in the second header's checksum
    cut.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"is not a whole|is cut off or damaged at byte"):
        shards(str(cut), tmp_path / "cache")


def test_an_index_is_made_anew_when_the_shard_is_another(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "t.tar", {"0.png": png(0), "1.png": png(1)})
    first = shards(str(path), tmp_path / "cache", val_share=0.5)
    before = first.split("val").fingerprint
    assert shards(str(path), tmp_path / "cache", val_share=0.5).split("val").fingerprint == before
    assert len(list((tmp_path / "cache").glob("*-shard.npy"))) == 1
    tar_of(path, {"0.png": png(5), "1.png": png(6), "2.png": png(7)})
    second = shards(str(path), tmp_path / "cache", val_share=0.5)
    assert second.train.content(2) == png(7)
    assert second.split("val").fingerprint != before


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (
            "http://host/x-{0..3}.tar",
            "shards need random access, which http: does not offer: copy the shards here, or mount",
        ),
        ("s3://bucket/x.tar", "which s3: does not offer"),
        ("pipe:cat x.tar", "which pipe: does not offer"),
        ("{0..1}.tar", "there is no shard 1.tar; python scripts/make_shards.py makes some"),
        ("nothing-*.tar", "there is no shard nothing-*.tar"),
        ("x-{0..3.tar", "Unbalanced braces"),
        (["0.tar", "0.tar"], "names a shard twice"),
        ([], "names no shards"),
    ],
)
def test_malformed_shards_are_one_sentence(
    urls: str | list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tar_of(tmp_path / "0.tar", {"0.png": png(0)})
    with pytest.raises(ValueError, match=r"^urls") as error:
        find_shards("urls", urls)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"0.txt": b"no image"}, "no image in"),
        ({"0.png": b"0", "0.cls": b"1", "1.png": b"1"}, "1 of the 2 images in .* have no class"),
        ({"0.png": b"0", "0.cls": b"cat"}, "the class cat is not a class number, and there is no classes.txt"),
        ({"0.png": b"0"}, "1 items are too few to hold some out"),
    ],
)
def test_impossible_labels_and_counts_are_one_sentence(
    members: dict[str, bytes], expected: str, tmp_path: Path
) -> None:
    tar_of(tmp_path / "t.tar", dict(members))
    with pytest.raises(ValueError, match=expected):
        shards(str(tmp_path / "t.tar"), tmp_path / "cache").split("train")


def test_classes_may_be_written_by_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    tar_of(
        tmp_path / "t.tar",
        {"0.png": b"", "0.cls": b"dog\n", "1.png": b"", "1.json": json.dumps({"cls": "cat"}).encode()},
    )
    data = shards(str(tmp_path / "t.tar"), tmp_path / "cache")
    assert (data.class_names, data.train.labels.tolist()) == (["cat", "dog"], [1, 0])


def test_the_converter_says_in_one_sentence_what_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, expected in {
        (str(tmp_path / "nowhere"), str(tmp_path / "out")): "is not a folder",
        (str(tmp_path / "empty"), str(tmp_path / "out")): "no image in",
        (str(tmp_path / "empty"), str(tmp_path / "empty")): "exists already",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            make(*arguments)
        message = capsys.readouterr().err
        assert (stopped.value.code, message.count("\n")) == (2, 1)
        assert expected in message
        assert [one.name for one in tmp_path.iterdir()] == ["empty"]


MEASURE = """
import resource, sys, torch
from vqvae.config.compose import compose
from vqvae.config.typed import as_hydra_reads
from vqvae.data.loader import ItemLoader
from vqvae.data.webdataset import WebDataset
data = WebDataset(ndim=2, channels=3, image_size=64, flip=False, limit=None, resident="stream", workers=0,
    cache_dir=sys.argv[2], urls=sys.argv[1], val_urls=None, resize=64, val_share=0.05, split_seed=0)
loader = ItemLoader(data, data.split("train"), torch.device("cpu"))
peaks = []
for start, end in ((0, 2000), (2000, len(loader))):
    for images, labels in loader.batches(torch.arange(start, end).split(100)):
        pass
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(len(loader), peaks[0], peaks[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images_that_were_read(tmp_path: Path) -> None:
    small = [png(seed) for seed in range(50)]
    for number in range(4):
        tar_of(tmp_path / f"{number}.tar", {f"{i:05d}.png": small[i % 50] for i in range(5000)})
    arguments = [sys.executable, "-c", MEASURE, f"{tmp_path}/*.tar", str(tmp_path / "cache")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    count, early, late = map(int, done.stdout.split())
    assert 18_900 < count < 19_100
    assert late - early < 10 * 1024, f"{late - early} kB more after 17,000 further images, which decoded are 204 MB"


@pytest.mark.parametrize(
    ("size", "said"), [([], []), (["8"], ["data.image_size=8"]), (["8", "12"], ["data.image_size=[8,12]"])]
)
def test_the_next_command_of_make_shards_takes_the_size_that_they_have(
    size: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        for seed in range(3):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / split / f"{seed}.png").write_bytes(png(seed))
    make(str(tmp_path / "images"), str(tmp_path / "shards"), *(["--size", *size] if size else []))
    python, program, *arguments = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (python, program, arguments[0]) == ("python", "train.py", "data=webdataset")
    assert [one for one in arguments if one.startswith("data.image_size=")] == said
    cfg = compose("train", as_hydra_reads(arguments))
    wanted = [int(side) for side in size] or [64]
    assert cfg.data.image_size == (wanted[0] if len(wanted) == 1 else wanted)


@pytest.mark.slow
def test_a_run_on_shards_that_is_stopped_and_resumed_ends_as_one_that_was_not(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [one for one in TINY if not one.startswith("data.")]
    data = ["data=webdataset", f"data.urls={made}/train-*.tar", f"data.val_urls={made}/val-*.tar", "data.image_size=12"]
    lost = "data.most_unreadable=0.5"  # one of the few images is damaged
    arguments = [*own, *SMALL_CODEBOOK, *data, lost, "data.resident=stream", f"data.cache_dir={tmp_path}"]
    train_inside(*arguments, f"run_dir={tmp_path / 'whole'}")
    with monkeypatch.context() as patch:
        stop_at(patch, "autoencoder", 3)
        with pytest.raises(SystemExit):
            train_inside(*arguments, f"run_dir={tmp_path / 'stopped'}")
    train_inside(*arguments, f"run_dir={tmp_path / 'stopped'}")
    assert_same_result(tmp_path / "whole", tmp_path / "stopped")


def test_the_command_line_says_in_one_sentence_that_shards_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, "data=webdataset", "data.urls='nowhere-{00..09}.tar'", f"run_dir={tmp_path / 'run'}")
    assert "data.urls=nowhere-{00..09}.tar: there is no shard nowhere-00.tar" in message
