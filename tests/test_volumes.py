"""Laws of NIfTI volumes: the values and places that nibabel tells, packed or not, and files written as they were read."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, assert_same_result, run, stop_at, train_inside
from test_arrays import TINY_DATA, arrays

import vqvae
from vqvae.data import nifti
from vqvae.data.array_set import Arrays
from vqvae.data.tree import list_tree
from vqvae.errors import UserError

nibabel = pytest.importorskip("nibabel")
AFFINE = np.array([[0.0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
FP32 = ["trainer.precision=fp32", "prior.trainer.precision=fp32"]


def volume(file: Path, shape: tuple[int, ...], seed: int = 0, dtype: str = "int16", scale: bool = False) -> np.ndarray:
    """A file with dims (x, y, z) or (x, y, z, channels); returns the values that it stands for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    image = nibabel.Nifti1Image(values, AFFINE)
    if scale:
        image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, file)
    return values * 0.5 - 10 if scale else values


def volumes(root: Path, cache: Path, **settings: Any) -> Arrays:
    return arrays(root, cache, **{"ndim": 3, "crop": [4, 8, 8], "suffixes": None, **settings})


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_items_are_the_values_that_the_file_stands_for(suffix: str, scale: bool, channels: int, tmp_path: Path) -> None:
    """With dims in the order depth, height, width, which is z, y, x."""
    shape = (11, 13, 9) if channels == 1 else (11, 13, 9, 2)
    known = [volume(tmp_path / "p" / f"{n}{suffix}", shape, n, scale=scale) for n in range(4)]
    data = volumes(tmp_path / "p", tmp_path / "c", channels=channels, value_range=[-10, 200])
    split = data.split("train")
    assert len(split) > 3
    for index in range(len(split)):
        number, *corner = split.places[index].tolist()  # type: ignore[attr-defined]
        whole = known[int(split.files[number].split(".")[0])].T.reshape(channels, 9, 13, 11)  # type: ignore[attr-defined]
        inside = (slice(start, start + kept) for start, kept in zip(corner, data.read_size))
        assert np.allclose(split.read(index).numpy(), (whole[(slice(None), *inside)] + 10) / 105 - 1, atol=1e-6)


def test_packed_files_are_unpacked_once_and_others_are_read_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        volume(tmp_path / "plain" / f"{n}.nii", (8, 8, 8), n)
        volume(tmp_path / "packed" / f"{n}.nii.gz", (8, 8, 8), n)
    plain = volumes(tmp_path / "plain", tmp_path / "none", value_range=[0, 200]).split("train")
    assert not (tmp_path / "none").exists()
    first = volumes(tmp_path / "packed", tmp_path / "c", value_range=[0, 200]).split("train")
    unpacked = sorted((tmp_path / "c").glob("*-volume.npy"))
    assert len(unpacked) == 3
    assert list_tree(tmp_path / "c", None).files == []
    monkeypatch.setattr(nifti, "unpack", None)
    again = volumes(tmp_path / "packed", tmp_path / "c", value_range=[0, 200]).split("train")
    assert first.fingerprint == again.fingerprint
    assert all(torch.equal(again.read(i), first.read(i)) for i in range(len(first)))
    assert plain.read(0).shape == first.read(0).shape
    monkeypatch.undo()
    for damaged in (unpacked[0].read_bytes()[:-100], b"", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8',"):
        unpacked[0].write_bytes(damaged)
        repaired = volumes(tmp_path / "packed", tmp_path / "c", value_range=[0, 200]).split("train")
        assert all(torch.equal(repaired.read(i), first.read(i)) for i in range(len(first)))


def test_files_that_cannot_be_used_are_counted_and_left_out(tmp_path: Path) -> None:
    root = tmp_path / "p"
    for n in range(6):
        volume(root / f"{n}.nii.gz", (9, 9, 9), n)
    good = (root / "0.nii.gz").read_bytes()
    (root / "cut.nii.gz").write_bytes(good[: len(good) // 2])
    (root / "noise.nii").write_bytes(b"no volume")
    volume(root / "small.nii", (9, 9, 3))
    volume(root / "flat.nii", (9, 9))
    volume(root / "colors.nii", (9, 9, 9), dtype="complex64")
    header = bytearray(gzip.decompress(good)[:352])
    header[42:48] = np.array([30000] * 3, "<i2").tobytes()
    (root / "bomb.nii.gz").write_bytes(gzip.compress(bytes(header)))
    data = volumes(root, tmp_path / "c", most_unreadable=0.6)
    assert len(data.shapes["train"]) == 6
    lost = {line.partition(":")[0].rpartition("/")[2]: line for line in data.left_out}
    assert set(lost) == {"cut.nii.gz", "noise.nii", "small.nii", "flat.nii", "colors.nii", "bomb.nii.gz"}
    assert "smaller than the crop" in lost["small.nii"]
    assert "no real numbers" in lost["colors.nii"]
    assert "does not hold" in lost["bomb.nii.gz"]


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume(tmp_path / "p" / "0.nii", (9, 9, 9))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UserError, match=r"need the package nibabel .*: pip install '\.\[volumes\]'"):
        volumes(tmp_path / "p", tmp_path).split("train")


def test_a_full_disk_of_the_cache_is_no_damaged_volume(tmp_path: Path) -> None:
    for n in range(2):
        volume(tmp_path / "p" / f"{n}.nii.gz", (9, 9, 9), n)
    (tmp_path / "c").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot be unpacked into data\.cache_dir"):
        volumes(tmp_path / "p", tmp_path / "c").split("train")


def test_results_are_written_with_the_voxels_of_the_data(tmp_path: Path) -> None:
    for n in range(2):
        volume(tmp_path / "p" / f"{n}.nii.gz", (9, 10, 11), n)
        np.save(tmp_path / "p" / f"{n}.npy", np.zeros((9, 9, 9)))
    data = volumes(tmp_path / "p", tmp_path / "c", dtype="uint16", value_range=[0, 200], suffixes=[".nii.gz"])
    again = volumes(tmp_path / "gone", tmp_path, dtype="uint16", value_range=[0, 200])
    again.recall(json.loads(json.dumps(data.facts())))
    item = data.load(tmp_path / "p" / "1.nii.gz")
    file = again.save(tmp_path / "a.b", item)
    assert file.name == "a.b.nii.gz"
    written = nibabel.load(file)
    assert np.array_equal(written.affine[:3, :3], AFFINE[:3, :3])
    assert written.header.get_zooms() == (1.5, 2.0, 3.0)
    assert written.get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(written.dataobj).T, data.values(item)[0])
    whole = data.load_whole(tmp_path / "p" / "1.nii.gz")
    assert np.array_equal(data.values(whole)[0], np.asarray(nibabel.load(tmp_path / "p" / "1.nii.gz").dataobj).T)
    with pytest.raises(UserError, match="are no sizes of voxels"):
        again.recall({**data.facts(), "voxels": [[1, 0, 0]]})


def test_runs_without_the_key_read_what_they_read(tmp_path: Path) -> None:
    for n in range(2):
        volume(tmp_path / "p" / f"{n}.nii", (9, 9, 9), n)
        np.save(tmp_path / "p" / f"{n}.npy", np.random.default_rng(n).random((9, 9, 9)))
    data = arrays(tmp_path / "p", tmp_path, ndim=3, crop=[4, 8, 8])
    assert list(data.shapes["train"]) == ["0.npy", "1.npy"]
    assert data.suffix == ".npy"
    with pytest.raises(UserError, match="suffixes must begin with a dot"):
        volumes(tmp_path / "p", tmp_path, suffixes=["npy"])


def test_both_stages_and_all_that_follows_take_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            for n in range(2):
                volume(tmp_path / "p" / split / name / f"{n}.nii.gz", (10, 34, 26), n)
    own = [one for one in TINY_DATA if not one.startswith("prior.network")]
    data = ["data=volumes", f"data.root={tmp_path / 'p'}", "data.crop=[8,16,8]", "data.dtype=uint16"]
    data += ["data.workers=0", f"data.cache_dir={tmp_path / 'c'}", "data.value_range=auto"]
    prior = ["prior=transformer", "prior.network.width=16", "prior.network.layers=1"]
    overrides, path, again = [*own, *SMALL_CODEBOOK, *data, *prior, *FP32], tmp_path / "run", tmp_path / "again"
    train_inside(*overrides, f"run_dir={path}")
    stop_at(monkeypatch, "autoencoder", 3)
    with pytest.raises(SystemExit):
        train_inside(*overrides, f"run_dir={again}")
    monkeypatch.undo()
    train_inside(*overrides, f"run_dir={again}")
    assert_same_result(path, again)
    run("sample.py", f"run_dir={path}", "n=2", "singles=true", f"out={tmp_path / 'drawn'}")
    assert np.load(tmp_path / "drawn" / "samples.npz")["items"].shape == (2, 1, 8, 16, 8)
    drawn = [nibabel.load(file) for file in sorted((tmp_path / "drawn").glob("0*.nii.gz"))]
    assert [(one.shape, one.get_data_dtype()) for one in drawn] == [((8, 16, 8), np.dtype("uint16"))] * 2
    folder = f"folder={tmp_path / 'p' / 'val'}"
    run("sample.py", f"run_dir={path}", "mode=reconstruct", folder, "singles=true", f"out={tmp_path / 'r'}")
    assert len(list((tmp_path / "r").glob("*_original*.nii.gz"))) == 4
    run("sample.py", f"run_dir={path}", "mode=reconstruct", folder, "size=original", f"out={tmp_path / 'o'}")
    whole = [nibabel.load(file) for file in (tmp_path / "o").glob("*.nii.gz")]
    assert [one.shape for one in whole] == [(10, 34, 26)] * 4
    run("scripts/evaluate.py", f"run_dir={path}")
    run("scripts/export.py", f"run_dir={path}", f"out={tmp_path / 'export'}")
    model = vqvae.load(tmp_path / "export")
    assert model.values(model.sample([0])).dtype == np.dtype("uint16")
