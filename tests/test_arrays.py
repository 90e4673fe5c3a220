"""Laws of arrays of one to three dims: crops of every place, the same values wherever items lie, units that come back."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, assert_same_result, error_of, run, stop_at, train_inside
from test_data import CPU

import vqvae
from vqvae.data.array_set import Arrays
from vqvae.data.items import ItemEvaluationSet, ItemTrainingSet
from vqvae.data.loader import ItemLoader
from vqvae.data.patches import corners
from vqvae.errors import UserError

TINY_DATA = [one for one in TINY if not one.startswith("data.")]


def arrays(root: Path, cache: Path, **settings: Any) -> Arrays:
    plain: dict[str, Any] = {"ndim": 1, "channels": 1, "crop": [8], "flip": False, "limit": None, "resident": "stream"}
    more = {"workers": 0, "cache_dir": str(cache), "root": str(root), "val_share": 0.25, "split_seed": 0}
    return Arrays(**{**plain, **more, **settings})


def written(root: Path, *shapes: tuple[int, ...], dtype: str = "float32", suffix: str = ".npy") -> list[np.ndarray]:
    root.mkdir(parents=True, exist_ok=True)
    found = []
    for seed, shape in enumerate(shapes):
        random = np.random.default_rng(seed)
        array = random.random(shape) if dtype.startswith("f") else random.integers(0, 200, shape)
        found.append(array.astype(dtype))
        save: Any = np.save if suffix == ".npy" else np.savez_compressed
        save(root / f"{seed}{suffix}", found[-1])
    return found


@pytest.mark.parametrize("length", [8, 9, 15, 16, 23, 40, 41])
def test_crops_of_the_patches_start_at_every_place(length: int) -> None:
    """Once each, but near the end, where patches overlap."""
    read = min(15, length)
    starts = [start + offset for (start,) in corners((length,), (read,), [8]) for offset in range(read - 8 + 1)]
    assert set(starts) == set(range(length - 8 + 1))
    counts = [starts.count(place) for place in range(max(0, length - read))]
    assert max(counts, default=1) <= 2
    assert sum(counts) <= len(counts) + 7


@pytest.mark.parametrize(("ndim", "shape"), [(1, (50,)), (2, (20, 33)), (3, (9, 17, 12))])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_items_are_parts_of_the_files(
    ndim: int, shape: tuple[int, ...], channels: int, suffix: str, tmp_path: Path
) -> None:
    whole = shape if channels == 1 else (*shape, channels)  # channels in the last dim
    files = written(tmp_path / "p", whole, whole, whole, whole, suffix=suffix)
    data = arrays(tmp_path / "p", tmp_path, ndim=ndim, crop=[8] * ndim, channels=channels, value_range=[0, 1])
    split = data.split("train")
    assert len(split) > 3
    for index in range(0, len(split), 7):
        number, *corner = split.places[index].tolist()  # type: ignore[attr-defined]
        array = files[int(Path(split.files[number]).stem)]  # type: ignore[attr-defined]
        part = array[tuple(slice(start, start + kept) for start, kept in zip(corner, data.read_size))]
        first = np.moveaxis(part, -1, 0) if channels > 1 else part[None]
        assert np.allclose(split.read(index).numpy(), first * 2 - 1, atol=1e-6)
        assert np.allclose(data.values(split.read(index)), first, atol=1e-6)


def test_batches_are_the_same_wherever_items_lie_and_do_not_depend_on_where_one_starts(tmp_path: Path) -> None:
    written(tmp_path / "p", (2, 20, 33), (2, 40, 21), (2, 17, 17), (2, 30, 30))
    sets = []
    for kind, workers in (("stream", 0), ("memory", 0), ("disk", 0), ("stream", 2)):
        data = arrays(
            tmp_path / "p", tmp_path / "c", ndim=2, channels=2, crop=[8, 12], resident=kind, workers=workers, flip=True
        )
        train, val = (ItemLoader(data, data.split(name), CPU) for name in ("train", "val"))
        batches = list(itertools.islice(ItemTrainingSet(data, train, 6, seed=1).batches_from(3), 4))
        sets.append([*batches, *ItemEvaluationSet(data, val).batches(5)])
    for first, *others in zip(*sets):
        assert first.x.shape[1:] == (2, 8, 12)
        assert all(torch.equal(first.x, other.x) for other in others)


def test_files_are_held_out_whole(tmp_path: Path) -> None:
    written(tmp_path / "p", *[(40,)] * 12)
    data = arrays(tmp_path / "p", tmp_path)
    used = {name: set(data.split(name).places[:, 0].tolist()) for name in ("train", "val")}  # type: ignore[attr-defined]
    assert used["train"].isdisjoint(used["val"])
    assert used["train"] | used["val"] == set(range(12))


def test_files_that_cannot_be_used_are_counted_and_left_out(tmp_path: Path) -> None:
    written(tmp_path / "p", *[(40,)] * 6)
    (tmp_path / "p" / "broken.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "p" / "small.npy", np.zeros(7))
    np.save(tmp_path / "p" / "channels.npy", np.zeros((2, 40)))
    data = arrays(tmp_path / "p", tmp_path, most_unreadable=0.5)
    assert sum(len(files) for files in data.shapes.values()) == 6
    assert any("left out: 3 arrays, such as" in note for note in data.notes())
    with pytest.raises(UserError, match="3 of 9 arrays cannot be used"):
        _ = arrays(tmp_path / "p", tmp_path, most_unreadable=0.1).shapes


def test_a_patch_that_is_not_a_number_is_replaced(tmp_path: Path) -> None:
    written(tmp_path / "p" / "train", (40,), (40,))
    written(tmp_path / "p" / "val", (40,))
    array = np.load(tmp_path / "p" / "train" / "1.npy")
    array[20] = np.nan
    np.save(tmp_path / "p" / "train" / "1.npy", array)
    data = arrays(tmp_path / "p", tmp_path, resident="memory")
    loader = ItemLoader(data, data.split("train"), CPU)
    assert 0 < len(loader.unreadable) < len(loader)
    assert loader.images is not None
    assert bool(loader.images.isfinite().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": [8, 8]}, "must have one length for each of ndim=1 dims"),
        ({"show": [1]}, "show must be 1 or 3 of the channels"),
        ({"value_range": [2, 1]}, "two numbers in order"),
        ({"root": "gone"}, "is not a folder"),
    ],
)
def test_mistakes_are_one_sentence(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        arrays(**{"root": tmp_path, "cache": tmp_path, **settings}).split("train")


def test_wrong_facts_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "p", *[(40,)] * 4)
    data = arrays(tmp_path / "p", tmp_path)
    facts = json.loads(json.dumps(data.facts()))
    again = arrays("gone", tmp_path)  # type: ignore[arg-type]
    again.recall(facts)
    assert (again.read_size, again.levels) == (data.read_size, data.levels)
    for wrong in ([7], [16], ["15"], [15, 15], None):
        with pytest.raises(UserError, match="no dims of patches"):
            arrays("gone", tmp_path).recall({**facts, "read_size": wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ndim", "shape", "crop", "prior"),
    [
        pytest.param(1, (2, 150), "[32]", ["prior=wavenet", "prior.network.width=8"], marks=pytest.mark.slow),
        (3, (2, 20, 40, 30), "[8,16,8]", ["prior=transformer", "prior.network.width=16", "prior.network.layers=1"]),
    ],
)
def test_both_stages_and_all_that_follows_take_arrays(
    ndim: int, shape: tuple[int, ...], crop: str, prior: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            written(tmp_path / "p" / split / name, shape, shape, dtype="int16")
    own = [one for one in TINY_DATA if not one.startswith("prior.network")]
    data = ["data=arrays", f"data.root={tmp_path / 'p'}", f"data.ndim={ndim}", "data.channels=2", f"data.crop={crop}"]
    data += ["data.dtype=uint16", "data.value_range=[0,200]", "data.workers=0", f"data.cache_dir={tmp_path / 'c'}"]
    overrides, path, again = [*own, *SMALL_CODEBOOK, *data, *prior], tmp_path / "run", tmp_path / "again"
    train_inside(*overrides, f"run_dir={path}")
    stop_at(monkeypatch, "autoencoder", 3)
    with pytest.raises(SystemExit):
        train_inside(*overrides, f"run_dir={again}")
    monkeypatch.undo()
    train_inside(*overrides, f"run_dir={again}")
    assert_same_result(path, again)
    run("sample.py", f"run_dir={path}", "n=2", "singles=true", f"out={tmp_path / 'drawn'}")
    drawn = np.load(tmp_path / "drawn" / "samples.npz")["items"]
    size = tuple(json.loads(crop))
    assert (drawn.shape, drawn.dtype) == ((2, 2, *size), np.dtype("uint16"))
    run("sample.py", f"run_dir={path}", "mode=reconstruct", f"folder={tmp_path / 'p' / 'val'}", f"out={tmp_path / 'r'}")
    run("scripts/evaluate.py", f"run_dir={path}")
    run("scripts/export.py", f"run_dir={path}", f"out={tmp_path / 'export'}")
    model = vqvae.load(tmp_path / "export")
    assert model.values(model.sample([0])).dtype == np.dtype("uint16")


def test_the_command_line_refuses_a_crop_that_the_stride_does_not_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "p", *[(100, 100)] * 30)
    data = ["data=arrays", f"data.root={tmp_path / 'p'}", "data.crop=[16,18]"]
    said = error_of(capsys, *TINY_DATA, *data, f"run_dir={tmp_path / 'run'}")
    assert (
        "data.crop=[16, 18]: a size of 18 does not divide by the encoder's stride 4; the nearest that does is 16"
        in said
    )
    assert said.count("\n") == 1
