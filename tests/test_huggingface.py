"""Laws of sets of Hugging Face: images and classes as the library tells them, and every mistake in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, assert_same_result, error_of, run, stop_at, train_inside
from PIL import Image
from test_arrays import TINY_DATA
from test_data import CPU

import vqvae
from vqvae.data.huggingface import HuggingFace
from vqvae.data.loader import ItemLoader
from vqvae.errors import UserError

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "ant", "bee"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written below the home folder, and no test asks the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8))


def rows(count: int, first: int = 0, names: list[str] | None = None, **columns: Any) -> Any:
    """A set of `count` images whose classes go round."""
    pictures = [picture(first + number) for number in range(count)]
    labels = [(first + number) % len(NAMES) for number in range(count)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names or NAMES)}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict({"image": pictures, "label": labels, **columns}, datasets.Features(features))


def parquet(root: Path, **splits: int) -> Path:
    (root / "data").mkdir(parents=True)
    for number, (split, count) in enumerate(splits.items()):
        rows(count, 100 * number).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def data_of(path: Any, cache: Path, **settings: Any) -> HuggingFace:
    own: dict[str, Any] = {"ndim": 2, "channels": 3, "image_size": [20, 16], "resize": [20, 16], "flip": False}
    more = {"limit": None, "resident": "stream", "workers": 0, "cache_dir": str(cache), "path": str(path)}
    return HuggingFace(**{**own, **more, "val_share": 0.25, "split_seed": 0, **settings})


def test_images_and_classes_are_those_of_the_set(tmp_path: Path) -> None:
    """Class names in the order of the ClassLabel."""
    data = data_of(parquet(tmp_path / "p", train=7, test=4), tmp_path)
    assert data.class_names == NAMES
    train, val = data.split("train"), data.split("val")
    assert (len(train), len(val), val.name) == (7, 4, "test")
    assert train.labels.tolist() == [n % 3 for n in range(7)]
    for number in range(7):
        assert np.array_equal(train.read(number).movedim(0, -1).numpy(), np.asarray(picture(number)))
    assert np.array_equal(val.read(2).movedim(0, -1).numpy(), np.asarray(picture(102)))
    assert train.title(3) == f"image 3 of {tmp_path / 'p'}"
    loader = ItemLoader(data_of(tmp_path / "p", tmp_path / "c", resident="memory", workers=2), train, CPU)
    assert torch.equal(loader.images[5], train.read(5))  # type: ignore[index]


def test_folders_of_images_and_saved_sets_are_read(tmp_path: Path) -> None:
    for split, name, number in [("train", "a", 0), ("train", "b", 1), ("test", "a", 2), ("test", "b", 3)]:
        (tmp_path / "images" / split / name).mkdir(parents=True)
        picture(number).save(tmp_path / "images" / split / name / f"{number}.png")
    data = data_of(tmp_path / "images", tmp_path)
    assert data.class_names == ["a", "b"]
    assert np.array_equal(data.split("train").read(1).movedim(0, -1).numpy(), np.asarray(picture(1)))
    datasets.DatasetDict({"Training": rows(4), "validation": rows(3, 50)}).save_to_disk(tmp_path / "saved")
    saved = data_of(tmp_path / "saved", tmp_path)
    assert [len(saved.split(name)) for name in ("train", "val")] == [4, 3]
    assert (
        saved.split("train").fingerprint != data_of(tmp_path / "saved", tmp_path, channels=1).split("train").fingerprint
    )


def test_one_split_is_held_out_by_the_number_of_each_row(tmp_path: Path) -> None:
    rows(20).save_to_disk(tmp_path / "one")
    splits = [data_of(tmp_path / "one", tmp_path).split(name) for name in ("train", "val")]
    numbers = [set(split.numbers.tolist()) for split in splits]  # type: ignore[attr-defined]
    assert numbers[0].isdisjoint(numbers[1])
    assert numbers[0] | numbers[1] == set(range(20))
    assert splits[0].fingerprint != splits[1].fingerprint
    rows(30).save_to_disk(tmp_path / "more")
    more = set(data_of(tmp_path / "more", tmp_path).split("val").numbers.tolist())  # type: ignore[attr-defined]
    assert numbers[1] <= more


def test_labels_without_names_are_their_values_and_may_be_missing(tmp_path: Path) -> None:
    kinds = ["x", None, "y", "x"]
    rows(4, kind=kinds).save_to_disk(tmp_path / "p")
    data = data_of(tmp_path / "p", tmp_path, label_column="kind", splits={"train": "train", "val": "train"})
    assert data.class_names == ["x", "y"]
    assert data.split("train").labels.tolist() == [0, -1, 1, 0]
    without = data_of(tmp_path / "p", tmp_path, label_column=None, splits={"train": "train", "val": "train"})
    assert without.class_names == []
    assert without.split("val").labels.tolist() == [-1] * 4


def test_an_image_that_cannot_be_decoded_is_named_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = [{"bytes": b"no image", "path": None}, None]
    features = datasets.Features({"image": datasets.Image()})
    good = datasets.Dataset.from_dict({"image": [picture(0), picture(1)]}, features)
    bad = datasets.Dataset.from_dict({"image": cells}, features)
    datasets.DatasetDict({"train": datasets.concatenate_datasets([good, bad]), "val": good}).save_to_disk(
        tmp_path / "p"
    )
    data = data_of(tmp_path / "p", tmp_path / "c", label_column=None, resident="memory", most_unreadable=0.6)
    loader = ItemLoader(data, data.split("train"), CPU)
    assert loader.unreadable == {2, 3}
    assert f"image 3 of {tmp_path / 'p'}" in caplog.text
    assert "it is empty" in caplog.text


def test_mistakes_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(4, kind=list("abcd")).add_column("box", [[1, 2]] * 4).save_to_disk(tmp_path / "p")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for settings, message in [
        (
            {"image_column": "picture"},
            r"has no column picture; it has image, label, kind, box: .* data\.image_column=\.\.\.$",
        ),
        ({"label_column": "class"}, r"has no column class; .* data\.label_column=\.\.\., or null for no classes$"),
        ({"label_column": "image"}, r"data\.label_column=image holds .*, and no classes"),
        ({"label_column": "box"}, r"data\.label_column=box holds list, and no classes"),
        ({"image_column": "label"}, r"data\.image_column=label holds ClassLabel\(.*\), and no images"),
        ({"splits": {"train": "all"}}, "has no split all; it has train"),
        ({"path": tmp_path / "file"}, "is a file: name the folder"),
        ({"path": tmp_path / "gone"}, "is neither a folder nor a name, such as owner/name"),
        ({"path": tmp_path / "empty"}, "cannot be loaded by datasets"),
        ({"path": "owner/name"}, "data.path=owner/name cannot be loaded by datasets: .*"),
    ]:
        with pytest.raises(UserError, match=message) as raised:
            data_of(**{"path": tmp_path / "p", "cache": tmp_path, **settings}).split("train").read(0)
        assert "\n" not in str(raised.value)
    datasets.DatasetDict({"a": rows(4), "b": rows(4)}).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match=r"has no split train; it has a, b: .*data\.splits=\{train: a\}"):
        data_of(tmp_path / "other", tmp_path).split("train")
    strangers = rows(4, names=["cat", "ant", "fly"])
    datasets.DatasetDict({"train": rows(4), "val": strangers}).save_to_disk(tmp_path / "strange")
    with pytest.raises(UserError, match="the class fly of the split val is none of the training images"):
        data_of(tmp_path / "strange", tmp_path).split("val")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets .*: pip install '\.\[datasets\]'"):
        data_of(tmp_path / "p", tmp_path).split("train")


def test_a_set_of_the_hub_without_a_network_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, *TINY_DATA, "data=huggingface", "data.path=owner/name", f"run_dir={tmp_path / 'run'}")
    assert "data.path=owner/name cannot be loaded by datasets: " in said
    assert said.count("\n") == 1


def test_both_stages_and_all_that_follows_take_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = parquet(tmp_path / "p q", train=24, validation=6)
    data = ["data=huggingface", f"data.path={root}", "data.image_size=16", "data.workers=0"]
    overrides = [*TINY_DATA, *SMALL_CODEBOOK, *data, f"data.cache_dir={tmp_path / 'c'}"]
    path, again = tmp_path / "run", tmp_path / "again"
    train_inside(*overrides, f"run_dir={path}")
    stop_at(monkeypatch, "autoencoder", 3)
    with pytest.raises(SystemExit):
        train_inside(*overrides, f"run_dir={again}")
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    root = root.rename(tmp_path / "elsewhere")
    train_inside(f"run_dir={again}", f"data.path={root}")
    assert_same_result(path, again)
    run("sample.py", f"run_dir={again}", "class=ant", "n=2", f"out={tmp_path / 'drawn'}")
    assert np.load(tmp_path / "drawn" / "samples.npz")["labels"].tolist() == [1, 1]
    run("sample.py", f"run_dir={path}", "mode=nearest", "n=2", f"data.path={root}", f"out={tmp_path / 'near'}")
    run("scripts/evaluate.py", f"run_dir={path}", f"data.path={root}")
    run("scripts/export.py", f"run_dir={path}", f"data.path={root}", f"out={tmp_path / 'export'}")
    assert vqvae.load(tmp_path / "export").sample([0]).shape == (1, 3, 16, 16)
