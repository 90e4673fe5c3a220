"""A run folder knows its data: it works where that is not, and notices what has changed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, call_inside, error_of, run, stop_at, train_inside, weights

from vqvae.config.messages import user_message
from vqvae.errors import UserError
from vqvae.images import write_png
from vqvae.run.data_record import DataRecord
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run

OWN = [a for a in [*TINY, *SMALL_CODEBOOK] if not a.startswith("data.")]


def image(path: Path, seed: int) -> None:
    pixels = torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    write_png(path, pixels)


def classes(root: Path, names: str = "ab") -> Path:
    for number, name in enumerate(names):
        for index in range(12):
            image(root / "train" / name / f"{index}.png", 100 * number + index)
            image(root / "val" / name / f"{index}.png", 50 + 100 * number + index)
    return root


def data_of(root: Path, cache: Path, *more: str) -> list[str]:
    own = ["data=folder", f"data.root={root}", "data.image_size=16", "data.workers=0", f"data.cache_dir={cache}"]
    return [*OWN, *own, "trainer.batch_size=4", "prior.trainer.batch_size=4", *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two classes, in `run`, and its images, in `images`."""
    base = tmp_path_factory.mktemp("made")
    train_inside(*data_of(classes(base / "images"), base / "cache"), f"run_dir={base / 'run'}")
    return base


@pytest.fixture
def moved(made: Path, tmp_path: Path) -> Path:
    """The same, copied; the run does not find its images, which lie in `images`."""
    shutil.copytree(made / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made / "images"), str(tmp_path / "gone")))
    shutil.copytree(made / "images", tmp_path / "images")  # copies have the same times
    return tmp_path


def test_a_finished_run_needs_no_data_for_what_is_made_of_its_weights_and_codes(moved: Path) -> None:
    folder, file = moved / "run", moved / "images" / "val" / "a" / "0.png"
    call_inside("sample", f"run_dir={folder}", "n=2", "class=b", f"out={moved / 'out'}")
    assert np.load(moved / "out" / "samples.npz")["labels"].tolist() == [1, 1]
    call_inside("sample", f"run_dir={folder}", "mode=complete", f"image={file}", "n=1")
    call_inside("sample", f"run_dir={folder}", "mode=interpolate", f"image=[{file},{file}]", "n=1")
    call_inside("sample", f"run_dir={folder}", "mode=reconstruct", f"folder={file.parent}")
    call_inside("scripts.export", f"run_dir={folder}", f"out={moved / 'export'}")
    assert json.loads((moved / "export" / "config.json").read_text())["tokenizer"]["class_names"] == ["a", "b"]
    train_inside(f"run_dir={folder}")
    assert "goes on without its data" in (folder / "train.log").read_text()
    prior = [a for a in OWN if a.startswith(("logger", "debug", "prior"))]
    train_inside(*prior, "prior.trainer.batch_size=4", f"tokenizer={folder}", f"run_dir={moved / 'second'}")
    assert DataRecord.read(moved / "second") is not None


def test_what_needs_the_data_asks_for_it_and_takes_its_place_on_any_program(
    moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, there = moved / "run", f"data.root={moved / 'images'}"
    for program, more in {"scripts/evaluate.py": [], "scripts/encode.py": ["splits=[test]"]}.items():
        refused = run(program, f"run_dir={folder}", *more, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert f"data.root={moved / 'gone'} is not a folder" in refused.stderr
        run(program, f"run_dir={folder}", there, *more)
    assert "is not a config key" in error_of(capsys, f"run_dir={folder}", "data.urls=x")
    run("sample.py", f"run_dir={folder}", "mode=nearest", "n=1", there)
    for file in (folder / "prior").glob("weights-*.pt"):
        file.unlink()
    shutil.rmtree(folder / "codes")
    assert "data.root" in error_of(capsys, f"run_dir={folder}")
    train_inside(f"run_dir={folder}", there)
    assert str(moved / "images") in (folder / "config.yaml").read_text()


def changed(root: Path, change: str) -> None:
    first = root / "train" / "a" / "0.png"
    if change == "missing":
        first.unlink()
    elif change == "edited":
        image(first, 999)
    elif change == "edited, of the same size":
        data = bytearray(first.read_bytes())
        data[-1] ^= 1
        first.write_bytes(data)
    elif change == "renamed":
        for split in ("train", "val"):
            (root / split / "a").rename(root / split / "z")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "of 24 train items, 1 are missing (such as a/0.png)"),
        ("edited", "of 24 train items, 1 are edited (such as a/0.png)"),
        ("edited, of the same size", "of 24 train items, 1 are edited (such as a/0.png)"),
        ("renamed", "of 24 train items, 12 are missing (such as a/0.png), 12 are new (such as z/0.png)"),
    ],
)
def test_items_that_are_not_as_they_were_are_told_with_their_number_and_not_read(
    change: str, said: str, moved: Path
) -> None:
    changed(moved / "images", change)
    found = Run(RunFolder.load(moved / "run", [], places={"root": str(moved / "images")}))
    with pytest.raises(UserError) as refused:
        found.split("train")
    assert said in str(refused.value)
    assert found.data.class_names == ["a", "b"]


def test_added_items_and_classes_are_left_out_with_a_warning_and_labels_stay(
    moved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = moved / "images"
    image(root / "train" / "a" / "00.png", 1)  # before the others
    image(root / "train" / "0" / "0.png", 2)
    image(root / "val" / "0" / "0.png", 3)
    found = Run(RunFolder.load(moved / "run", [], places={"root": str(root)}))
    before = DataRecord.read(moved / "run")
    assert before is not None
    split, recorded = found.split("train"), before.splits["train"]
    assert split.labels.tolist() == recorded.labels.tolist() == [0] * 12 + [1] * 12
    assert (split.fingerprint, len(split)) == (recorded.fingerprint, 24)
    assert "2 are new (such as 0/0.png)" in caplog.text


def test_items_that_were_copied_are_the_same_and_their_times_are_taken_over(
    moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (moved / "images").rglob("*.png"):
        os.utime(file, (1, 1))
    train_inside(f"run_dir={moved / 'run'}", f"data.root={moved / 'images'}")
    monkeypatch.setattr("vqvae.run.changed_data.content_of", lambda *_: pytest.fail("read again"))
    assert len(Run(RunFolder.load(moved / "run", [])).split("train")) == 24


def test_a_held_out_share_stays_the_one_that_the_run_was_started_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    for index in range(30):
        image(root / f"{index}.png", index)
    own = [*data_of(root, tmp_path / "cache", "data.val_share=0.3"), "stages=[autoencoder]"]
    train_inside(*own, f"run_dir={tmp_path / 'whole'}")
    with monkeypatch.context() as patched:
        stop_at(patched, "autoencoder", 2)
        with pytest.raises(SystemExit):
            train_inside(*own, f"run_dir={tmp_path / 'run'}")
    for index in range(30):
        image(root / "more" / f"{index}.png", 100 + index)  # a folder, which would be a class
    train_inside(*own, f"run_dir={tmp_path / 'run'}")
    assert "30 are new (such as more/0.png), and left out" in (tmp_path / "run" / "train.log").read_text()
    first, second = (weights(tmp_path / name, "autoencoder") for name in ("whole", "run"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_data_that_is_corrected_before_the_first_checkpoint_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [*data_of(classes(tmp_path / "images"), tmp_path / "cache"), "stages=[autoencoder]"]
    with monkeypatch.context() as patched:
        patched.setattr("vqvae.run.train.make_trainer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_inside(*own, f"run_dir={tmp_path / 'run'}")
    changed(tmp_path / "images", "renamed")
    train_inside(*own, f"run_dir={tmp_path / 'run'}")
    record = DataRecord.read(tmp_path / "run")
    assert record is not None
    assert record.class_names == ["b", "z"]


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no JSON": lambda about: about.clear(),
    "another format": lambda about: about.update(format=2),
    "class names that are none": lambda about: about["facts"].update(class_names=[1]),
    "one class twice": lambda about: about["facts"].update(class_names=["a", "a"]),
    "no ranges": lambda about: about["facts"].update(ranges=[0, 1, "x", 2, True]),
    "splits in a list": lambda about: about.update(splits=[1]),
    "a negative number": lambda about: about["splits"]["train"].update(items=-1),
    "a huge number": lambda about: about["splits"]["train"].update(items=2**30),
    "labels beyond the classes": lambda about: about["splits"]["train"].update(
        labels=packed(np.full(24, 2, np.int32).tobytes())
    ),
    "a column that is no base64": lambda about: about["splits"]["train"].update(sizes="%"),
    "a column that is longer": lambda about: about["splits"]["train"].update(sizes=packed(bytes(10**8))),
    "names that unpack to gigabytes": lambda about: about["splits"]["train"].update(names=packed(bytes(10**8))),
    "columns that are missing": lambda about: about["splits"]["train"].pop("times"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_stranger_s_record_is_one_sentence(damage: str, moved: Path) -> None:
    file = moved / "run" / "data.json"
    about = json.loads(file.read_text())
    DAMAGES[damage](about)
    file.write_text(json.dumps(about))
    with pytest.raises(UserError) as refused:
        Run(RunFolder.load(moved / "run", []))
    assert str(file) in (user_message(refused.value) or "")
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match="is damaged"):
        Run(RunFolder.load(moved / "run", []))
