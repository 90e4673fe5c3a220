"""Laws of tables of images and of torchvision's sets: each row is an item, mistakes are one sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, error_of, run, train_inside
from PIL import Image
from test_data import CPU, folder, write_image

from vqvae.data import torchvision_sets
from vqvae.data.loader import ItemLoader
from vqvae.data.table import Table
from vqvae.data.torchvision_sets import NAMES, TorchvisionSet
from vqvae.errors import UserError

TINY_DATA = [one for one in TINY if not one.startswith("data.")]
Rows = list[dict[str, Any]]


def table(file: Path, cache: Path, **settings: Any) -> Table:
    plain = {
        "ndim": 2,
        "channels": 3,
        "image_size": 12,
        "flip": False,
        "limit": None,
        "resident": "memory",
        "workers": 0,
    }
    more = {"cache_dir": str(cache), "root": str(file), "resize": 12, "val_share": 0.25, "split_seed": 0}
    return Table(**{**plain, **more, **settings})  # type: ignore[arg-type]


def written(file: Path, rows: Rows) -> Path:
    """A table, and an image for each of its rows."""
    for seed, row in enumerate(rows):
        write_image(file.parent / row["path"], seed)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        comma = "\t" if file.suffix == ".tsv" else ","
        lines = [comma.join(columns), *(comma.join(f'"{row.get(key, "")}"' for key in columns) for row in rows)]
        file.write_text("\n".join(lines) + "\n", "utf-8-sig")
    return file


def rows_with_splits() -> Rows:
    names = ["10", "9", "cat"]
    return [
        {"path": f"{'abc'[index % 3]}/{index} x, y.png", "label": names[index % 3], "split": split}
        for index, split in enumerate(["train"] * 6 + ["Validation"] * 3)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_row_is_an_item_of_its_split_and_class(suffix: str, tmp_path: Path) -> None:
    rows = rows_with_splits()
    data = table(written(tmp_path / f"t{suffix}", rows), tmp_path / "cache")
    assert data.class_names == ["9", "10", "cat"]  # numbers in their order, before names
    for name, word in (("train", "train"), ("val", "Validation")):
        split = data.split(name)
        wanted = {row["path"]: data.class_names.index(row["label"]) for row in rows if row["split"] == word}
        items = split.items()
        assert items is not None
        assert dict(zip(items.names, split.labels.tolist())) == wanted
        for index, item_name in enumerate(items.names):
            seed = [row["path"] for row in rows].index(item_name)
            write_image(tmp_path / "alone.png", seed)
            assert torch.equal(split.read(index), data.load(tmp_path / "alone.png"))


def test_a_table_of_a_folder_gives_the_items_of_the_folder(tmp_path: Path) -> None:
    rows = [{"path": f"{'ab'[index % 2]}/{index}.png", "label": "ab"[index % 2]} for index in range(12)]
    file = written(tmp_path / "p" / "t.csv", rows)
    ours, theirs = table(file, tmp_path / "c"), folder(tmp_path / "p", tmp_path / "c")
    for name in ("train", "val"):
        one, other = ours.split(name), theirs.split(name)
        assert one.labels.tolist() == other.labels.tolist()
        loaders = [ItemLoader(data, data.split(name), CPU).images for data in (ours, theirs)]
        assert torch.equal(loaders[0], loaders[1])  # type: ignore[arg-type]


def test_columns_and_words_can_be_named_and_labels_left_out(tmp_path: Path) -> None:
    rows = [{"path": f"{index}.png", "kind": "ab"[index % 2], "fold": str(index % 3)} for index in range(12)]
    file = written(tmp_path / "t.csv", rows)
    data = table(
        file, tmp_path / "c", label="kind", split_column="fold", splits={"train": "0", "val": "1", "test": "2"}
    )
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [4, 4, 4]
    assert data.class_names == ["a", "b"]
    assert table(file, tmp_path / "c", label="kind", split_column="none", classes="off").class_names == []
    assert table(file, tmp_path / "c", split_column="none").class_names == []


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"file": "a.png"}], {}, "has no column path; its columns are file: name one by data.path=..."),
        ([{"path": "a.png"}, {"path": "a.png"}], {}, "row 2: a.png is listed twice"),
        ([{"path": "a.png", "split": "fold1"}], {}, "the split fold1 is none of train"),
        ([{"path": "a.png", "split": "val"}], {}, "has no rows of the split train"),
        ([{"path": "a.png"}, {"path": "gone.png"}], {}, "1 of the 2 files that"),
        ([{"path": "a.png", "label": "x"}, {"path": "b.png", "label": ""}], {}, "b.png has no label: give it one"),
        ([{"path": 3}], {}, "row 1: path is no path"),
        ([], {}, "has no rows"),
    ],
)
def test_tables_that_make_no_sense_are_one_sentence(
    rows: Rows, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name, 0)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as raised:
        table(tmp_path / "t.jsonl", tmp_path, **settings).split("train")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b"[1, 2]\n", "line 1 is no object"),
        ("t.jsonl", b"{broken\n", "cannot be read"),
        ("t.csv", b"path\n\xff\xfe.png\n", "cannot be read"),
        ("t.txt", b"path\na.png\n", "must end with .csv, .tsv or .jsonl"),
    ],
)
def test_files_that_are_no_tables_are_one_sentence(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        table(tmp_path / name, tmp_path).split("train")
    assert message in str(raised.value)
    with pytest.raises(UserError, match="is not a file"):
        table(tmp_path / "gone.csv", tmp_path).split("train")


def test_a_run_on_a_table_goes_on_when_rows_were_added(tmp_path: Path) -> None:
    rows = [{"path": f"{index}.png", "label": "ab"[index % 2]} for index in range(24)]
    file = written(tmp_path / "t.csv", rows)
    data = ["data=table", f"data.root={file}", "data.image_size=16", f"data.cache_dir={tmp_path / 'c'}"]
    path = tmp_path / "run"
    train_inside(
        *TINY_DATA,
        *SMALL_CODEBOOK,
        *data,
        f"run_dir={path}",
        "stages=[autoencoder]",
        "trainer.steps=2",
        "schedule=constant",
    )
    written(file, [*rows, {"path": "new.png", "label": "a"}])
    train_inside(
        *TINY_DATA,
        *SMALL_CODEBOOK,
        *data,
        f"run_dir={path}",
        "trainer.steps=4",
        "schedule=constant",
        "stages=[autoencoder]",
    )
    assert "1 are new (such as new.png), and left out" in (path / "train.log").read_text()
    run("sample.py", f"run_dir={path}", "mode=reconstruct", f"out={tmp_path / 'out'}")


# ---- torchvision


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as MNIST's files hold it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Files of the form of FashionMNIST: 30 training and 10 test images."""
    raw = tmp_path / "sets" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 10)):
        random = np.random.default_rng(count)
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    torchvision_sets.opened.cache_clear()
    return tmp_path / "sets"


def fashion_set(root: Path, cache: Path, **settings: Any) -> TorchvisionSet:
    plain: dict[str, Any] = {"ndim": 2, "channels": 1, "image_size": 28, "flip": False, "limit": None}
    more = {"resident": "memory", "workers": 0, "cache_dir": str(cache), "root": str(root), "name": "FashionMNIST"}
    return TorchvisionSet(**{**plain, **more, **settings})


def test_a_set_of_torchvision_holds_its_images_and_labels(fashion: Path, tmp_path: Path) -> None:
    data = fashion_set(fashion, tmp_path)
    assert data.class_names[:2] == ["T-shirt/top", "Trouser"]
    for name, count in (("train", 30), ("val", 10), ("test", 10)):
        split = data.split(name)
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        assert split.labels.tolist() == [index % 10 for index in range(count)]
        assert all(np.array_equal(split.read(index)[0].numpy(), images[index]) for index in range(count))
    padded = fashion_set(fashion, tmp_path, image_size=[32, 40], fit="pad", channels=3).split("train")
    wanted = Image.fromarray(images[0]).resize((32, 32), Image.Resampling.BICUBIC)
    item = fashion_set(fashion, tmp_path, image_size=[32, 40], fit="pad", channels=3).split("val").read(0)
    assert np.array_equal(item[0, :, 4:36].numpy(), np.asarray(wanted))
    assert len({padded.fingerprint, data.split("train").fingerprint, data.split("val").fingerprint}) == 3
    assert len(data.split("train").limited(5)) == 5


def test_both_stages_take_a_set_of_torchvision(fashion: Path, tmp_path: Path) -> None:
    data = ["data=torchvision", f"data.root={fashion}", f"data.cache_dir={tmp_path / 'c'}", "data.workers=0"]
    path = tmp_path / "run"
    train_inside(*TINY_DATA, *SMALL_CODEBOOK, *data, f"run_dir={path}")
    for file in fashion.rglob("*ubyte"):
        file.unlink()
    torchvision_sets.opened.cache_clear()
    run("sample.py", f"run_dir={path}", "n=2", "class=Trouser", f"out={tmp_path / 'out'}")  # without its data


def test_unknown_sets_and_sets_that_are_not_there_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = error_of(capsys, *TINY_DATA, "data=torchvision", "data.name=FashonMNIST", f"run_dir={tmp_path / 'run'}")
    assert "FashionMNIST" in said
    from torchvision import datasets

    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets, "KMNIST", fail)
    with pytest.raises(UserError, match=r"KMNIST is not in .* and could not be downloaded \(no network\)"):
        fashion_set(tmp_path, tmp_path, name="KMNIST").split("train")
    assert all(hasattr(datasets, name) for name in NAMES)
