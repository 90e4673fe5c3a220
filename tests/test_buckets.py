"""Laws of buckets: batches of one shape, each image in the nearest proportions, and a sampler that has no state."""

from __future__ import annotations

import itertools
import json
from collections import Counter
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
from vqvae.data import buckets
from vqvae.data.buckets import BucketedTrainingSet, assign, place_of
from vqvae.data.folder import Folder
from vqvae.errors import UserError

SIZES = [[16, 16], [16, 24], [24, 16]]


def drawn(file: Path, height: int, width: int, seed: int, turned: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8))
    exif = Image.Exif()
    if turned:
        exif[buckets.UPRIGHT] = 6
    image.save(file, exif=exif)


def folder(root: Path, cache: Path, **settings: Any) -> Folder:
    own: dict[str, Any] = {"ndim": 2, "channels": 3, "image_size": 16, "resize": 16, "flip": False, "limit": None}
    more = {"resident": "stream", "workers": 0, "cache_dir": str(cache), "root": str(root), "buckets": SIZES}
    return Folder(**{**own, **more, "val_share": 0.25, "split_seed": 0, **settings})


def filled(root: Path, counts: tuple[int, int, int] = (6, 9, 3)) -> Path:
    """So many images of the sizes of the buckets, in this order."""
    for number, (count, (height, width)) in enumerate(zip(counts, SIZES)):
        for item in range(count):
            drawn(root / "train" / f"{number}_{item:02d}.png", height, width, 100 * number + item)
    drawn(root / "val" / "0.png", 16, 16, 0)
    drawn(root / "val" / "1.png", 30, 20, 1)
    return root


def test_an_image_is_in_the_bucket_of_the_nearest_proportions(tmp_path: Path) -> None:
    sizes = {"a": (50, 50), "b": (50, 59), "c": (50, 64), "d": (50, 300), "e": (64, 50), "f": (10, 11)}
    for name, (height, width) in sizes.items():
        drawn(tmp_path / "p" / "train" / f"{name}.png", height, width, 0)
    drawn(tmp_path / "p" / "train" / "g.jpg", 50, 75, 0, turned=True)
    (tmp_path / "p" / "train" / "h.png").write_bytes(b"no image")
    drawn(tmp_path / "p" / "val" / "0.png", 16, 16, 0)
    data = folder(tmp_path / "p", tmp_path / "c")
    assert assign(data, data.split("train")).tolist() == [0, 0, 1, 1, 2, 0, 2, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", [16, 20])
def test_batches_have_one_shape_and_do_not_depend_on_where_one_starts_or_where_items_lie(
    resize: int, tmp_path: Path
) -> None:
    filled(tmp_path / "p")
    found = []
    for kind, workers, first in (("stream", 0, 0), ("memory", 0, 7), ("auto", 0, 3), ("stream", 2, 7)):
        data = folder(tmp_path / "p", tmp_path / "c", resident=kind, workers=workers, flip=True, resize=resize)
        batches = BucketedTrainingSet(data, data.split("train"), 4, 5, CPU)  # type: ignore[arg-type]
        found.append(list(itertools.islice(batches.batches_from(first), 7 - first, 12 - first)))
        assert len(found[-1]) == 5
    for own, *others in zip(*found, strict=True):
        assert list(own.x.shape[2:]) in SIZES
        assert all(torch.equal(own.x, other.x) for other in others)
    assert len({batch.x.shape for batch in found[0]}) > 1


def test_an_image_is_seen_whole_where_it_fits_its_bucket(tmp_path: Path) -> None:
    """And as often as any other, in the end."""
    data = folder(filled(tmp_path / "p"), tmp_path / "c", resident="memory")
    split = data.split("train")
    batches = BucketedTrainingSet(data, split, 3, 5, CPU)  # type: ignore[arg-type]
    assert len(batches) == 18
    seen: Counter[int] = Counter()
    for step, batch in enumerate(itertools.islice(batches.batches_from(0), 600)):
        numbers = batches.indices(step).tolist()
        seen.update(numbers)
        if step < 30:
            for number, x in zip(numbers, batch.x):
                image = np.asarray(Image.open(split.root / split.files[number]))  # type: ignore[attr-defined]
                assert np.array_equal(((x.movedim(0, -1) + 1) * 127.5).round().numpy(), image)
    assert set(seen) == set(range(18))
    assert 60 < min(seen.values()) <= max(seen.values()) < 145
    assert batches.notes() == ["training images by bucket: 6 of 16 x 16, 9 of 16 x 24, 3 of 24 x 16"]


def test_the_bucket_of_a_step_follows_from_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the steps of a bucket are counted without a gap, also from one block of draws to the next."""
    monkeypatch.setattr(buckets, "DRAWN", 8)
    buckets.drawn.cache_clear()
    places = [place_of(3, step, (5, 2, 9)) for step in range(100)]
    for bucket in range(3):
        assert [own for one, own in places if one == bucket] == list(range(sum(one == bucket for one, _ in places)))
    buckets.drawn.cache_clear()
    assert place_of(3, 77, (5, 2, 9)) == places[77]
    assert [place_of(4, step, (5, 2, 9)) for step in range(100)] != places
    buckets.drawn.cache_clear()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buckets": []}, "must be sizes of different proportions"),
        ({"buckets": [[16, 16], [24, 24]]}, "must be sizes of different proportions"),
        ({"buckets": [[16]]}, "buckets"),
        ({"buckets": [[16, 0]]}, "buckets"),
        ({"pages": "all"}, r"with data\.pages=first and data\.fit=crop"),
        ({"fit": "pad"}, r"with data\.pages=first and data\.fit=crop"),
        ({"dtype": "uint16"}, "gray and color images of 8 bits"),
    ],
)
def test_mistakes_are_one_sentence(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        folder(tmp_path, tmp_path, **settings)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["data.buckets=[[16,16],[16,18]]"],
            "data.buckets, [16, 18]: a size of 18 does not divide by the encoder's stride 4",
        ),
        (
            ["data.buckets=[[16,16],[16,24]]", "model=tokens"],
            "data.buckets needs networks that take images of any size",
        ),
    ],
)
def test_networks_that_do_not_take_all_shapes_are_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = TINY_DATA if len(more) == 1 else ["logger=off"]
    data = ["data=folder", f"data.root={filled(tmp_path / 'p')}", "data.image_size=16", *more]
    said = error_of(capsys, *given, *data, f"run_dir={tmp_path / 'run'}")
    assert message in said
    assert said.count("\n") == 1


def test_both_stages_and_all_that_follows_work_with_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior, evaluation and samples have image_size."""
    data = ["data=folder", f"data.root={filled(tmp_path / 'p')}", "data.image_size=16", "data.workers=0"]
    data += ["data.buckets=[[16,16],[16,24],[24,16]]", f"data.cache_dir={tmp_path / 'c'}", "trainer.steps=12"]
    overrides = [*TINY_DATA, *SMALL_CODEBOOK, *data, "trainer.checkpoint_every_steps=2"]
    path, again = tmp_path / "run", tmp_path / "again"
    train_inside(*overrides, f"run_dir={path}")
    assert "training images by bucket: 6 of 16 x 16, 9 of 16 x 24, 3 of 24 x 16" in (path / "train.log").read_text()
    stop_at(monkeypatch, "autoencoder", 7)
    with pytest.raises(SystemExit):
        train_inside(*overrides, f"run_dir={again}")
    monkeypatch.undo()
    train_inside(*overrides, f"run_dir={again}")
    assert_same_result(path, again)
    assert json.loads((path / "codes" / "train" / "header.json").read_text())["code_shapes"] == [[4, 4]]
    run("sample.py", f"run_dir={path}", "n=2", f"out={tmp_path / 'drawn'}")
    run("scripts/evaluate.py", f"run_dir={path}")
    run("scripts/export.py", f"run_dir={path}", f"out={tmp_path / 'export'}")
    assert vqvae.load(tmp_path / "export").sample([0]).shape == (1, 3, 16, 16)
