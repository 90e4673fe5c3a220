"""Laws of listing a folder: one rule for every program, nothing lost silently, and a split that stays where it was."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_CODEBOOK, TINY, call_inside, error_of, train_inside
from test_data import folder, write_image
from test_webdataset import make, shards

from vqvae.config.renames import keep_earlier, rename_keys
from vqvae.data import held_out
from vqvae.data.formats import SUFFIXES
from vqvae.data.tree import list_tree

MODEL = [one for one in [*TINY, *SMALL_CODEBOOK] if not one.startswith("data.")]


def fill(root: Path, *files: str) -> Path:
    for seed, file in enumerate(files):
        write_image(root / file, seed)
    return root


def left_out(root: Path) -> dict[str, int]:
    return {reason: count for reason, (count, _) in list_tree(root, SUFFIXES).left_out.items()}


# ---- links


def test_links_to_folders_are_followed_by_every_program(
    tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "store", "a.png", "below/b.png")
    root = fill(tmp_path / "set", "train/cat/0.png", "val/cat/1.png")
    for split in ("train", "val"):
        (root / split / "dog").symlink_to(tmp_path / "store", target_is_directory=True)
    data = folder(root, tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert data.split("train").files == ["cat/0.png", "dog/a.png", "dog/below/b.png"]  # type: ignore[attr-defined]
    assert data.split("val").labels.tolist() == [0, 1, 1]
    make(str(root), str(tmp_path / "out"))
    packed = shards(f"{tmp_path}/out/train-*.tar", tmp_path, val_urls=f"{tmp_path}/out/val-*.tar")
    assert packed.split("train").labels.tolist() == [0, 1, 1]
    own = [f"run_dir={finished_run}", "mode=reconstruct", f"folder={root / 'train'}", f"out={tmp_path / 'drawn'}"]
    call_inside("sample", *own)
    assert "mean PSNR of 3 images" in capsys.readouterr().out


def test_loops_end_and_no_folder_is_listed_twice(tmp_path: Path) -> None:
    root = fill(tmp_path / "all" / "set", "z/0.png")
    fill(tmp_path / "all", "outside.png")
    for name, target in {"a": root / "z", "self": root, "up": tmp_path, "z/back": root / "z"}.items():
        (root / name).symlink_to(target, target_is_directory=True)
    for name, target in {"gone": root / "nothing", "circle": root / "circle"}.items():
        (root / name).symlink_to(target)
    tree = list_tree(root, SUFFIXES)
    assert (tree.files, tree.groups) == (["z/0.png"], ["z"])
    assert left_out(root) == {"links to folders that are listed already": 4, "links that lead nowhere": 2}


def test_links_that_branch_at_every_level_are_listed_in_no_time(tmp_path: Path) -> None:
    for level in range(40):
        (tmp_path / "store" / f"{level}").mkdir(parents=True)
        for side in ("left", "right"):
            (tmp_path / "store" / f"{level}" / side).symlink_to(tmp_path / "store" / f"{level + 1}")
    fill(tmp_path / "store" / "40", "0.png")
    assert len(list_tree(tmp_path / "store" / "0", SUFFIXES).files) == 1


# ---- what is left out


def test_hidden_and_system_folders_are_left_out_and_counted_at_any_depth(tmp_path: Path) -> None:
    hidden = [
        "cat/.ipynb_checkpoints/0.png",
        "cat/@eaDir/0.png/thumb.jpg",
        ".trash/1.png",
        "__MACOSX/cat/2.png",
        "x/@eadir/0.png",
    ]
    root = fill(tmp_path / "set", "cat/0.png", "dog/0.png", "dog/._0.png", *hidden)
    tree = list_tree(root, SUFFIXES)
    assert (tree.files, tree.groups) == (["cat/0.png", "dog/0.png"], ["cat", "dog"])
    assert left_out(root) == {"hidden and system folders": 5, "hidden files": 1, "folders without items": 1}


def test_what_is_no_image_is_counted_by_suffix(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "0.png")
    for name in ("a.txt", "b.TXT", "c.eps", "README"):
        (root / name).write_text("text")
    assert left_out(root) == {".txt files": 2, ".eps files": 1, "files without a suffix": 1}
    assert any("2 .txt files (such as a.txt)" in note for note in list_tree(root, SUFFIXES).notes())


@pytest.mark.parametrize("where", ["class", "root"])
def test_a_folder_without_permission_is_said(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "set", "cat/0.png", "cat/1.png", "dog/0.png")
    closed, scandir = root if where == "root" else root / "dog", os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    if where == "root":
        with pytest.raises(ValueError, match="set cannot be opened: Permission denied"):
            folder(root, tmp_path).split("train")
    else:
        assert any(
            "folder that cannot be opened (dog: Permission denied)" in note for note in folder(root, tmp_path).notes()
        )


def test_a_class_without_images_is_no_class_and_is_said(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "cat/0.png", "cat/1.png")
    (root / "dog").mkdir()
    data = folder(root, tmp_path)
    assert data.class_names == ["cat"]
    assert any("folder without items (dog)" in note for note in data.notes())


def test_loose_images_beside_an_empty_folder_have_no_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "0.png", "1.png", "2.png")
    (root / "new folder").mkdir()
    assert folder(root, tmp_path).class_names == []


def test_runs_and_caches_in_the_folder_of_images_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they are called; and a class may be called runs."""
    root = fill(tmp_path / "set", *(f"runs/{i}.png" for i in range(8)), *(f"cat/{i}.png" for i in range(8)))
    monkeypatch.chdir(root)
    command = [*MODEL, "data=folder", "data.root=.", "data.image_size=16", "data.val_share=0.3", "stages=[autoencoder]"]
    before = folder(Path("."), tmp_path).split("train").fingerprint
    train_inside(*command, "run_dir=mine/a", "trainer.batch_size=4")
    assert (root / "mine" / "a" / "codebook.png").is_file()
    assert (root / "data_cache").is_dir()
    data = folder(Path("."), tmp_path)
    assert data.class_names == ["cat", "runs"]
    assert data.split("train").fingerprint == before
    assert set(left_out(Path("."))) == {"runs and caches of this program"}
    log = (root / "mine" / "a" / "train.log").read_text()
    assert "runs and caches of this program" in log
    assert "without" not in log
    train_inside(*command, "run_dir=mine/a", "trainer.batch_size=4")
    call_inside("sample", "run_dir=mine/a", "mode=reconstruct", "n=1", f"out={tmp_path / 'out'}")


# ---- splits and classes


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("other", ["val", "Valid", "validation", "Testing", "test"])
def test_splits_have_the_usual_names_in_any_case(train: str, other: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "set", f"{train}/cat/0.png", f"{train}/dog/0.png", f"{other}/dog/1.png")
    data = folder(root, tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert (len(data.split("train")), data.split("val").labels.tolist()) == (2, [1])
    assert any(train in note and other in note for note in data.notes())


def test_splits_of_other_names_are_named_by_the_user(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "seg_train/cat/0.png", "seg_test/cat/1.png", "seg_test/cat/2.png")
    data = folder(root, tmp_path, splits={"train": "seg_train", "test": "seg_test"})
    assert (len(data.split("train")), len(data.split("test")), len(data.split("val"))) == (1, 2, 2)
    for splits, expected in (
        ({"train": "nowhere"}, "data.splits.train=nowhere is not a folder below"),
        ({"train": "../set"}, "is not a folder below"),
        ({"val": "seg_test"}, "must name the folder of train"),
        ({"train": ".", "val": "seg_test"}, "splits must be apart"),
    ):
        with pytest.raises(ValueError, match=expected):
            folder(root, tmp_path, splits=splits).split("train")


def test_classes_that_look_like_splits_are_said(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "train_set/0.png", "test_set/1.png")
    assert any("data.splits={test: test_set, train: train_set}" in note for note in folder(root, tmp_path).notes())
    plain = fill(tmp_path / "plain", "valley/0.png", "contest/1.png")
    assert not any("look like" in note for note in folder(plain, tmp_path).notes())


def test_the_folder_train_alone_holds_a_share_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(10)))
    data = folder(root, tmp_path)
    train, val = data.split("train"), data.split("val")
    assert len(train) + len(val) == 20
    assert not set(train.files) & set(val.files)  # type: ignore[attr-defined]
    assert data.class_names == ["cat", "dog"]


def test_what_is_not_clear_is_asked_for(tmp_path: Path) -> None:
    both = fill(tmp_path / "both", "train/0.png", "Training/1.png")
    with pytest.raises(ValueError, match=r"Training and train: say which is meant, as data.splits=\{train: Training\}"):
        folder(both, tmp_path).split("train")
    only = fill(tmp_path / "only", "test/0.png", "test/1.png", "bus/1.png")
    with pytest.raises(ValueError, match=r"has test/ but no train/: name the folders"):
        folder(only, tmp_path).split("train")
    assert folder(only, tmp_path, splits={"train": "."}).class_names == ["bus", "test"]


def test_what_lies_beside_the_splits_is_said(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "train/0.png", "val/1.png", "extra/2.png", "3.png")
    assert any("left out beside the splits: extra, 3.png" in note for note in folder(root, tmp_path).notes())


def test_without_classes_all_images_are_read_wherever_they_lie(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "train/cat/0.png", "train/loose.png", "val/bird/1.png")
    with pytest.raises(ValueError, match=r"loose.png is in none of the class folders .* set data.classes=off"):
        folder(root, tmp_path).split("train")
    data = folder(root, tmp_path, classes="off")
    assert data.class_names == []
    assert (data.split("train").labels.tolist(), data.split("val").labels.tolist()) == ([-1, -1], [-1])


def test_shards_are_made_of_the_splits_and_classes_that_training_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "set", "A/cat/0.png", "A/1.png", "B/dog/2.png")
    (root / "A" / "notes.txt").write_text("text")
    make(str(root), str(tmp_path / "out"), "--classes", "off", "--splits", "train=A", "val=B")
    packed = shards(f"{tmp_path}/out/train-*.tar", tmp_path, val_urls=f"{tmp_path}/out/val-*.tar")
    assert packed.class_names == []
    assert (len(packed.split("train")), len(packed.split("val"))) == (2, 1)
    said = capsys.readouterr().out.splitlines()
    assert f"train in {root / 'A'}, val in {root / 'B'}" in said
    assert f"left out in {root / 'A'}: 1 .txt file (notes.txt)" in said
    assert "2 train, 1 val images, no classes" in said


def test_the_settings_are_those_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "set", "A/0.png", "B/1.png")
    data = ["data=folder", f"data.root={root}", "data.image_size=16", "logger=off"]
    assert "data.splits" in error_of(capsys, *data, "data.splits={train: C}")


# ---- what is held out


def test_one_more_item_moves_no_other() -> None:
    names = [f"{i}.png".encode() for i in range(2000)]
    sides = dict(zip(names, held_out.by_hash(names, 0.05, seed=0)))
    for extra in (b"new.png", b"0000.png", b"zzz/9.png"):
        more = [extra, *names]
        again = dict(zip(more, held_out.by_hash(more, 0.05, seed=0)))
        assert all(again[name] == side for name, side in sides.items())
    assert 60 < sum(sides.values()) < 140
    assert dict(zip(names, held_out.by_hash(names, 0.05, seed=1))) != sides


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 20])
def test_there_is_an_item_on_each_side(share: float, count: int) -> None:
    for rule in (
        held_out.by_hash([str(i).encode() for i in range(count)], share, 0),
        held_out.by_shuffle(count, share, 0),
    ):
        assert 0 < int(rule.sum()) < count
    with pytest.raises(ValueError, match="1 items are too few"):
        held_out.by_hash([b"0"], share, 0)


def test_an_earlier_run_keeps_its_own_split_and_its_range() -> None:
    stored = {"data": {"_target_": "vqvae.data.folder.Folder", "root": "x", "split_seed": 0}}
    renamed = rename_keys(stored)
    assert renamed["data"] == {
        **stored["data"],
        "held_out": "shuffle",
        "value_range": None,
        "classes": "auto",
        "splits": None,
        "pages": "first",
        "suffixes": None,
        "fit": "crop",
        "dtype": "uint8",
        "show": None,
    }
    today = {"data": {"_target_": "vqvae.data.folder.Folder", "root": "x", "held_out": "hash", "value_range": "auto"}}
    assert keep_earlier(today, renamed, typed=[]) == {"held_out": "shuffle", "value_range": None}
    assert keep_earlier(today, renamed, typed=["data.held_out"]) == {"value_range": None}
    assert keep_earlier(today, rename_keys(today), typed=[]) == {}
    assert held_out.by_shuffle(10, 0.25, 3).nonzero()[0].tolist() == sorted(shuffled(10, 3)[:2])


def shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def test_a_folder_s_run_of_an_earlier_version_goes_on_with_the_items_that_it_began_with(tmp_path: Path) -> None:
    root = fill(tmp_path / "p", *(f"{i}.png" for i in range(24)))
    own = [
        *MODEL,
        "data=folder",
        f"data.root={root}",
        "data.image_size=16",
        "data.val_share=0.25",
        "trainer.batch_size=4",
    ]
    own += ["prior.trainer.batch_size=4", f"data.cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    train_inside(*own, "stages=[autoencoder]", "data.held_out=shuffle", "data.value_range=null")
    config = tmp_path / "run" / "config.yaml"
    later = ("held_out", "value_range", "most_unreadable", "most_pixels", "classes", "splits", "pages")
    kept = [line for line in config.read_text().splitlines() if not line.strip().startswith(later)]
    config.write_text("\n".join(kept) + "\n")
    train_inside(*own)
    assert len(np.load(tmp_path / "run" / "codes" / "val" / "labels.npy")) == 6
    assert "held_out: shuffle" in config.read_text()
