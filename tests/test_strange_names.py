"""Laws of files that are not ours: they are neither deleted nor written, and no name out of data leads to one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, run
from test_webdataset import make, png, shards, tar_of

from vqvae.data.cache import Cache
from vqvae.data.shapes import Shapes
from vqvae.errors import UserError
from vqvae.sampling.job import Job
from vqvae.storage.files import machine, path_part, read_own_text, remove_leftovers, temporary_name

DAYS = 24 * 3600


def aged(path: Path, days: float) -> Path:
    when = time.time() - days * DAYS
    os.utime(path, (when, when), follow_symlinks=False)
    return path


def someones(folder: Path) -> set[Path]:
    """Old files and folders that other programs call temporary."""
    thesis = folder / "thesis.tmp"
    thesis.mkdir(parents=True)
    (thesis / "chapter1.tex").write_text("years of work")
    names = ["notes.tmp", "x.0123abcd.tmp", "a-images.npy.tmp", ".vqvae.tmp", "x.vqvae.tmp", "x.0-0-0.vqvae.tmp"]
    files = [folder / name for name in names]
    for file in files:
        file.write_text("notes")
    return {aged(path, 400) for path in (*files, thesis)}


def dead_process() -> int:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    return ended.pid


def left_by(path: Path, maker: str, pid: int) -> Path:
    return path.with_name(f"{path.name}.{maker}-{pid}-01234567.vqvae.tmp")


def test_only_what_this_program_left_when_it_was_killed_is_removed(tmp_path: Path) -> None:
    others = someones(tmp_path)
    pid = dead_process()
    left = [left_by(tmp_path / "file", machine(), pid), left_by(tmp_path / "store", machine(), pid)]
    left.append(aged_file(left_by(tmp_path / "far", "0" * 8, pid), 2))
    left[0].touch()
    left[1].mkdir()
    (left[1] / "codes_0.npy").touch()
    kept = [left_by(tmp_path / "alive", machine(), os.getppid()), left_by(tmp_path / "far", "0" * 8, pid + 1)]
    for file in kept:
        file.touch()
    link = left_by(tmp_path / "link", machine(), pid)
    link.symlink_to(tmp_path / "thesis.tmp")
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {*others, *kept}
    assert (tmp_path / "thesis.tmp" / "chapter1.tex").is_file()


def aged_file(path: Path, days: float) -> Path:
    path.touch()
    return aged(path, days)


def test_a_temporary_name_is_ours_and_new(tmp_path: Path) -> None:
    names = {temporary_name(tmp_path / "x") for _ in range(100)}
    assert len(names) == 100
    for name in names:
        name.touch()
    remove_leftovers(tmp_path, "x")
    assert not list(tmp_path.iterdir())  # this process writes none of them any more


def test_a_cache_leaves_the_other_files_of_its_folder_alone(tmp_path: Path) -> None:
    others = someones(tmp_path)
    with Cache(tmp_path, "0123456789abcdef").writing() as files:
        for file in files:
            file.write_bytes(b"x")
    assert others < set(tmp_path.iterdir())
    assert Cache(tmp_path, "0123456789abcdef").is_good()


def test_what_is_beside_an_output_stays(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "export.tmp").mkdir()
    (tmp_path / "export.tmp" / "work").touch()
    run("scripts/export.py", f"run_dir={finished_run}", f"out={tmp_path / 'export'}")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(png(0))
    (tmp_path / "shards.tmp").mkdir()
    (tmp_path / "shards.tmp" / "work").touch()
    make(str(tmp_path / "images"), str(tmp_path / "shards"))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"export", "export.tmp", "images", "shards", "shards.tmp"}
    assert (tmp_path / "export.tmp" / "work").is_file()
    assert (tmp_path / "shards.tmp" / "work").is_file()


# ---- names

NAMES = [
    "../x",
    "x/../../../../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "...",
    " ",
    "a\nb",
    "a\rb",
    "a\0b",
    "\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "a\u2028b",
    "a\\b",
    "C:\\x",
    "x" * 300,
    "\u00e9" * 300,
    "\udc80",
    "~root",
    "-rf",
    "a b",
    "caf\u00e9",
    "tabby, cat",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_becomes_one_part_of_a_path(name: str, tmp_path: Path) -> None:
    part = path_part(name)
    (tmp_path / "below").mkdir()
    file = tmp_path / "below" / part
    file.write_text("x")
    assert [path.name for path in (tmp_path / "below").iterdir()] == [part]
    assert part.isprintable()
    assert len(part.encode()) < 150


def test_plain_names_stay_and_others_stay_different() -> None:
    plain = ["cat", "caf\u00e9", "tabby, cat", "v1.2", "a=b", ".hidden"]
    assert [path_part(name) for name in plain] == plain
    assert len({path_part(name) for name in NAMES}) == len(NAMES)
    assert len({path_part(name).lower() for name in ("a/b", "a-b", "a\\b", "a:b")}) == 4


def shapes(tmp_path: Path) -> Shapes:
    plain: dict[str, Any] = {"ndim": 2, "channels": 3, "flip": False, "limit": None, "resident": "auto", "workers": 0}
    sizes: dict[str, Any] = {"image_size": 8, "train_count": 4, "val_count": 2, "draw_seed": 0}
    return Shapes(cache_dir=str(tmp_path), **plain, **sizes)


def test_single_images_lie_below_their_folder_whatever_their_classes_are_called(tmp_path: Path) -> None:
    out = tmp_path / "run" / "samples"
    job: Any = Job(SimpleNamespace(data=shapes(tmp_path)), {}, out)  # type: ignore[arg-type]
    job.write_singles([f"000000_{name}" for name in NAMES], torch.zeros(len(NAMES), 3, 8, 8, dtype=torch.uint8))
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) == len(NAMES)
    assert {path.parent for path in found} == {out}


# ---- text files of someone's data


def test_a_text_file_beside_data_is_not_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("password\n")
    (tmp_path / "classes.txt").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"classes\.txt is a link: replace it"):
        read_own_text(tmp_path / "classes.txt")
    tar_of(tmp_path / "t.tar", {"0.png": png(0), "0.cls": b"0", "1.png": png(1), "1.cls": b"0"})
    with pytest.raises(UserError, match=r"classes\.txt is a link") as caught:
        shards(f"{tmp_path}/t.tar", tmp_path / "cache")
    assert "password" not in str(caught.value)


def test_a_text_file_is_a_text_of_moderate_size_or_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    assert read_own_text(file) is None
    file.write_text("cat\n")
    assert read_own_text(file) == "cat\n"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_own_text(file)
    with file.open("wb") as opened:
        opened.truncate(2**40)  # with holes: it takes no room
    with pytest.raises(UserError, match="has more than"):
        read_own_text(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="is not a file"):
        read_own_text(file)
    file.unlink()
    file.mkdir()
    with pytest.raises((UserError, IsADirectoryError)):
        read_own_text(file)


def test_class_folders_with_line_ends_are_refused_where_names_become_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "cat\ndog").mkdir(parents=True)
    (tmp_path / "images" / "cat\ndog" / "0.png").write_bytes(png(0))
    with pytest.raises(SystemExit):
        make(str(tmp_path / "images"), str(tmp_path / "shards"))
    assert "has a line end in its name: rename it" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_no_folder_is_deleted_by_a_name_that_somebody_else_may_have_chosen() -> None:
    """Only what temporary_name makes goes as a whole, code stores of a run begun anew (run/folder.py), and a shipped run."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "vqvae").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
        if "rmtree(" in path.read_text()
    }
    scripts = {"scripts/make_shards.py", "scripts/shipped_run.py"}
    assert found == {"vqvae/storage/files.py", "vqvae/export/write.py", "vqvae/run/folder.py", *scripts}
