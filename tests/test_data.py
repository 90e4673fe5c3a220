"""Laws of data: determinism, the same batches resident and streamed, errors in one sentence."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import error_of
from PIL import Image

from vqvae.data import cache, resident
from vqvae.data.cache import Cache
from vqvae.data.code_store import CodeStore, smallest_dtype
from vqvae.data.folder import Folder
from vqvae.data.items import ItemEvaluationSet, ItemTrainingSet
from vqvae.data.loader import ItemLoader
from vqvae.data.sampler import chunks_of_rank, training_indices
from vqvae.data.shapes import SIGNED_DISTANCES, Shapes, draw_shapes
from vqvae.images import normalize, to_uint8

CPU = torch.device("cpu")


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(array).convert(mode).save(path)


def folder(root: Path, cache: Path, **settings: Any) -> Folder:
    plain = {
        "ndim": 2,
        "channels": 3,
        "image_size": 12,
        "flip": False,
        "limit": None,
        "resident": "memory",
        "workers": 0,
    }
    more = {"cache_dir": str(cache), "root": str(root), "resize": 12, "val_share": 0.25, "split_seed": 0}
    return Folder(**{**plain, **more, **settings})  # type: ignore[arg-type]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes with train/ and val/, of several sizes and modes, one file broken."""
    root = tmp_path / "images"
    for number, (split, name) in enumerate(itertools.product(["train", "val"], ["cat", "dog"])):
        for index in range(6):
            mode = ["RGB", "L", "P"][index % 3]
            write_image(root / split / name / f"{index}.png", 10 * number + index, (20 + index, 16), mode)
    (root / "train" / "cat" / "3.png").write_bytes(b"not an image")
    return root


class Sets(NamedTuple):
    train: ItemTrainingSet
    val: ItemEvaluationSet


def sets_of(data: Folder, batch_size: int = 5) -> Sets:
    train, val = (ItemLoader(data, data.split(name), CPU) for name in ("train", "val"))
    return Sets(ItemTrainingSet(data, train, batch_size, seed=3), ItemEvaluationSet(data, val))


def test_shapes_are_a_function_of_the_seed_and_hold_all_classes() -> None:
    first, again, other = draw_shapes(300, 32, 1), draw_shapes(300, 32, 1), draw_shapes(300, 32, 2)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert set(first[1].tolist()) == set(range(10))
    assert first[0].shape == (300, 3, 32, 32)


@pytest.mark.parametrize("name", SIGNED_DISTANCES)
def test_every_shape_is_drawn_inside_its_circle_and_covers_enough_pixels(name: str) -> None:
    axis = torch.linspace(-1.5, 1.5, 301)
    inside = SIGNED_DISTANCES[name](axis[None, :].expand(301, 301), axis[:, None].expand(301, 301)) < 0
    radius = torch.hypot(axis[None, :], axis[:, None]).expand(301, 301)
    assert float(radius[inside].max()) < 1.15
    assert float(inside.float().mean()) * 9 > 0.5  # of the area of the plotted square


def test_splits_of_shapes_differ(tmp_path: Path) -> None:
    common = {
        "ndim": 2,
        "channels": 3,
        "flip": False,
        "limit": None,
        "resident": "auto",
        "workers": 0,
        "cache_dir": str(tmp_path),
    }
    data = Shapes(image_size=32, train_count=20, val_count=20, draw_seed=0, **common)  # type: ignore[arg-type]
    splits = [data.split(name) for name in ("train", "val", "test")]
    assert len({split.fingerprint for split in splits}) == 3
    assert not torch.equal(splits[0].read(0), splits[1].read(0))


def test_bytes_to_floats_and_back_is_the_identity() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(normalize(every)), every)
    assert (float(normalize(every).min()), float(normalize(every).max())) == (-1, 1)


def test_an_epoch_shows_every_image_once_in_an_order_that_a_restart_does_not_change() -> None:
    whole = torch.cat([training_indices(7, step, 4, 10) for step in range(5)])
    assert sorted(whole[:10].tolist()) == sorted(whole[10:].tolist()) == list(range(10))
    assert whole[:10].tolist() != whole[10:].tolist()
    assert torch.equal(training_indices(7, 3, 4, 10), whole[12:16])


def test_chunks_cover_everything_once() -> None:
    assert torch.equal(torch.cat(chunks_of_rank(10, 4)), torch.arange(10))


@pytest.mark.parametrize("settings", [{}, {"flip": True, "resize": 15}, {"channels": 1}])
def test_resident_and_streamed_batches_are_the_same(classes: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    kinds = ("memory", "disk", "stream")
    sets = [sets_of(folder(classes, tmp_path / "cache", resident=kind, **settings)) for kind in kinds]
    batches = [list(itertools.islice(each.train.batches_from(2), 20)) for each in sets]
    for first, *others in [*zip(*batches), *zip(*(each.val.batches(5) for each in sets))]:
        assert all(torch.equal(first.x, other.x) and torch.equal(first.labels, other.labels) for other in others)
        assert first.x.shape[1:] == (settings.get("channels", 3), 12, 12)


def test_a_set_lies_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "MEMORY_BYTES", 100)
    new, room = tmp_path / "not" / "made" / "yet", resident.free_bytes(tmp_path)
    assert resident.choose_place("auto", 100, CPU, new, cached=False) == "memory"
    assert resident.choose_place("auto", 101, CPU, new, cached=False) == "disk"
    assert resident.choose_place("auto", 2 * room, CPU, new, cached=False) == "stream"
    assert resident.choose_place("auto", 2 * room, CPU, new, cached=True) == "disk"
    assert resident.choose_place("stream", 1, CPU, new, cached=True) == "stream"


def test_damage_to_a_file_too_large_to_read_whole_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WHOLE", 1000)
    monkeypatch.setattr(cache, "BLOCK", 50)
    file = tmp_path / "large"
    file.write_bytes(bytes(10_000))
    sums = [cache.checksum(file)]
    for damaged in (
        bytes(9_999),
        bytes(9_990) + b"x" * 10,
        b"x" + bytes(9_999),
        bytes(5_000) + b"x" * 200 + bytes(4_800),
    ):
        file.write_bytes(damaged)
        sums.append(cache.checksum(file))
    assert len(set(sums)) == 5


def test_workers_give_the_same_batches(classes: Path, tmp_path: Path) -> None:
    sets = [sets_of(folder(classes, tmp_path, resident="stream", workers=workers)) for workers in (0, 2)]
    firsts = [list(itertools.islice(each.train.batches_from(0), 4)) for each in sets]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*firsts))


def test_more_workers_than_cores_are_no_warning(
    classes: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    many = (os.cpu_count() or 1) + 1
    next(iter(sets_of(folder(classes, tmp_path, resident="stream", workers=many)).train.batches_from(0)))
    assert not [one for one in recwarn if "worker" in str(one.message)]


def test_a_broken_image_is_named_counted_and_replaced_by_the_next(
    classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = folder(classes, tmp_path / "cache")
    for start in ("decoded", "from the cache"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loader = ItemLoader(data, data.split("train"), CPU)
        assert loader.unreadable == {3}, start
        assert "cat/3.png" in caplog.text
        assert loader.images is not None
        assert torch.equal(loader.images[3], loader.images[4])


def test_a_cache_stays_readable_while_another_run_rewrites_it(classes: Path, tmp_path: Path) -> None:
    data, cache = folder(classes, tmp_path / "cache"), tmp_path / "cache"
    loader = ItemLoader(data, data.split("train"), CPU)
    readers = {path: path.open("rb") for path in cache.glob("*-*")}
    whole = {path: path.read_bytes() for path in readers}
    loader._decode_into(Cache(cache, loader.split.fingerprint), len(loader), (3, 12, 12))
    for path, reader in readers.items():
        assert path.stat().st_ino != os.fstat(reader.fileno()).st_ino, "written over, not replaced"
        assert reader.read() == whole[path] == path.read_bytes()
    assert set(cache.glob("*-*")) == set(readers)


def test_a_replaced_image_takes_the_label_of_its_replacement(tmp_path: Path) -> None:
    write_image(tmp_path / "p" / "train" / "b" / "0.png", 0)
    (tmp_path / "p" / "train" / "a").mkdir()
    (tmp_path / "p" / "train" / "a" / "0.png").write_bytes(b"")
    write_image(tmp_path / "p" / "val" / "b" / "0.png", 1)
    loader = ItemLoader(folder(tmp_path / "p", tmp_path), folder(tmp_path / "p", tmp_path).split("train"), CPU)
    assert loader.split.labels.tolist() == [1, 1]


def test_only_broken_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "0.png").write_bytes(b"")
    (tmp_path / "p" / "1.png").write_bytes(b"")
    data = folder(tmp_path / "p", tmp_path / "cache")
    with pytest.raises(ValueError, match="can be decoded"):
        ItemLoader(data, data.split("train"), CPU)


def test_one_folder_is_split_by_the_seed_without_overlap(tmp_path: Path) -> None:
    for index in range(20):
        write_image(tmp_path / "p" / f"{index:02d}.png", index)
    data = folder(tmp_path / "p", tmp_path / "cache")
    train, val = data.split("train"), data.split("val")
    assert len(train) + len(val) == 20
    assert 0 < len(val) < 12
    assert not set(train.files) & set(val.files)  # type: ignore[attr-defined]
    assert train.labels.tolist() == [-1] * len(train)
    assert data.split("val").fingerprint == val.fingerprint
    other = folder(tmp_path / "p", tmp_path / "cache", split_seed=1).split("val")
    assert other.files != val.files  # type: ignore[attr-defined]


def test_files_of_the_same_names_and_sizes_with_other_content_are_another_data_set(tmp_path: Path) -> None:
    for index, split in enumerate(("train", "val")):
        write_image(tmp_path / "p" / split / "0.bmp", index)
    data = folder(tmp_path / "p", tmp_path / "cache")
    train, val = (ItemLoader(data, data.split(name), CPU) for name in ("train", "val"))
    assert train.split.fingerprint != val.split.fingerprint
    assert not torch.equal(train.images, val.images)  # type: ignore[arg-type]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(tmp_path / "p" / name)
    split = folder(tmp_path / "p", tmp_path / "cache").split("train")
    assert abs(int(split.read(0).float().mean()) - 40000 // 257) <= 1


def test_a_limit_spreads_over_the_classes_and_is_another_data_set(classes: Path, tmp_path: Path) -> None:
    split = folder(classes, tmp_path).split("train")
    few = split.limited(4)
    assert few.labels.tolist() == [0, 0, 1, 1]
    assert few.fingerprint != split.fingerprint
    assert split.limited(100) is split


def test_folders_that_cannot_be_used_are_one_clear_sentence(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root=/nowhere is not a folder"):
        folder(Path("/nowhere"), tmp_path).split("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in"):
        folder(tmp_path / "empty", tmp_path).split("train")
    with pytest.raises(ValueError, match="resize must be at least image_size=12, got 8"):
        folder(classes, tmp_path, resize=8)
    write_image(classes / "val" / "bird" / "0.png", 0)
    with pytest.raises(ValueError, match=r"bird/0.png is in none of the class folders"):
        folder(classes, tmp_path).split("val")


def test_code_stores_use_the_smallest_integer_type_and_refuse_codes_that_do_not_fit(tmp_path: Path) -> None:
    assert [smallest_dtype(k) for k in (2, 256, 257, 65536, 65537)] == [
        np.uint8,
        np.uint8,
        np.uint16,
        np.uint16,
        np.uint32,
    ]
    codes = [torch.randint(500, (9, 2, 2)), torch.randint(16, (9, 4, 4))]
    header: dict[str, Any] = {
        "code_shapes": [(2, 2), (4, 4)],
        "codebook_sizes": [500, 16],
        "tokenizer": "a",
        "data": "b",
    }
    labels = torch.arange(9)
    parts = torch.arange(9).split(4)
    CodeStore.write(tmp_path / "s", header, 9, ((i, [m[i] for m in codes], labels[i]) for i in parts))
    store = CodeStore(tmp_path / "s")
    chosen = torch.tensor([8, 0, 3])
    assert all(torch.equal(a, b[chosen]) for a, b in zip(store.codes(chosen), codes))
    assert [m.dtype for m in store.maps] == [np.uint16, np.uint8]
    store.require(**header)
    with pytest.raises(ValueError, match="tokenizer is a, not other"):
        store.require(**{**header, "tokenizer": "other"})
    np.save(tmp_path / "s" / "codes_0.npy", np.zeros((8, 2, 2), np.uint16))
    with pytest.raises(ValueError, match=r"holds uint16 \(8, 2, 2\), not uint16 \(9, 2, 2\) as its header says"):
        CodeStore(tmp_path / "s")


def test_the_home_folder_of_an_unknown_user_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, "data=folder", "data.root='~nobody_here/x'", "data.image_size=32", "logger=off")
    assert "data.root=~nobody_here/x is not a folder" in message
