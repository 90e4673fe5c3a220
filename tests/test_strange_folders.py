"""Laws of `cd <somebody's folder>; python sample.py run_dir=...`: nothing that lies there is loaded or read."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command
from quantizer_cases import needs_compiler

from vqvae.surroundings.compiler import CACHE, compiled, private_folder
from vqvae.surroundings.own_folder import HERE, own_folder, shield_children

MODULES = (
    "ctypes",
    "json",
    "pickle",
    "multiprocessing",
    "torch",
    "numpy",
    "matplotlib",
    "triton",
    "sitecustomize",
    "vqvae",
)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder of modules that leave a mark when they are imported, and of pipes, at which a reader waits forever."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'imported')!r}, 'w')\n")
    for name in ("libcuda.so.1", "libcudart.so", "libnvrtc.so", "matplotlibrc", "pyproject.toml", ".env", ".netrc"):
        os.mkfifo(folder / name)
    return folder


def unshielded() -> dict[str, str]:
    """The environment without what an earlier program set in this process."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH", CACHE)}


def start(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=folder, env={**unshielded(), **more}, capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow
@pytest.mark.parametrize("program", [["train.py"], ["sample.py", "n=1"]], ids=lambda program: program[0])
def test_no_program_opens_a_file_of_the_current_folder_that_it_was_not_given(
    program: list[str], finished_run: Path, trap: Path
) -> None:
    run_dir = Path(shutil.copytree(finished_run, trap.parent / "run"))
    done = start(trap, *command(*program, f"run_dir={run_dir}"))
    assert done.returncode == 0, done.stderr
    assert not (trap / "imported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "encode", "export"])
def test_neither_do_the_scripts_when_they_load_torch(name: str, trap: Path) -> None:
    done = start(trap, *command(f"scripts/{name}.py", "run_dir=nowhere"))
    assert (done.returncode, "run_dir=nowhere holds no run" in done.stderr) == (2, True), done.stderr
    assert not (trap / "imported").exists()


@pytest.mark.slow
def test_packing_shards_with_several_processes_loads_nothing_of_the_current_folder(trap: Path) -> None:
    from test_data import write_image

    for index in range(4):
        write_image(trap / "images" / f"{index}.png", index)
    done = start(trap, *command("scripts/make_shards.py", "images", "shards", "--size", "8", "--workers", "2"))
    assert done.returncode == 0, done.stderr
    assert sys.version_info < (3, 11) or not (trap / "imported").exists()


@pytest.mark.slow
@needs_compiler
def test_compiling_loads_nothing_of_the_current_folder_and_keeps_what_it_makes_to_this_user(trap: Path) -> None:
    """The compiler of torch starts `python -c` to see what the CPU can do."""
    code = (
        "import sys; sys.path[0] = sys.argv[1]\n"
        "from vqvae.surroundings.own_folder import own_folder\n"
        "with own_folder():\n    from vqvae.run.process import set_up_process\n    from vqvae.quantizers import nearest\n"
        "set_up_process()\nimport torch\n"
        "print(nearest.compiled('l1')(torch.ones(8, 2), torch.ones(1, 2, 8)).shape)"
    )
    cache = trap.parent / "cache"
    done = start(trap, sys.executable, "-c", code, str(ROOT), XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0, done.stderr
    assert list((cache / "vqvae" / "compiled").iterdir())
    assert sys.version_info < (3, 11) or not (trap / "imported").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not know PYTHONSAFEPATH")
def test_a_child_process_imports_this_package_and_nothing_of_the_current_folder(
    trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONSAFEPATH", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(trap.parent))
    code = "import json, vqvae; print(vqvae.__file__)"
    subprocess.run([sys.executable, "-c", "import json"], cwd=trap, check=True)
    assert (trap / "imported").exists()
    (trap / "imported").unlink()
    shield_children()
    done = subprocess.run([sys.executable, "-c", code], cwd=trap, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == ROOT / "vqvae"
    assert not (trap / "imported").exists()
    shield_children()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(trap.parent), str(ROOT)]


def test_the_own_folder_is_left_again_also_for_one_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with contextlib.suppress(ImportError), own_folder():
        assert Path.cwd() == HERE
        raise ImportError
    assert Path.cwd() == tmp_path / "here"
    (tmp_path / "here").rmdir()
    with own_folder():
        assert Path.cwd() == HERE
    with pytest.raises(FileNotFoundError):
        Path.cwd()
    os.chdir(tmp_path)


# ---- what torch compiles


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_compiled_code_is_kept_where_only_this_user_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0)
    try:
        folder = private_folder()
    finally:
        os.umask(before)
    assert folder == tmp_path / "cache" / "vqvae" / "compiled"
    assert (mode(folder), mode(folder.parent)) == (0o700, 0o700)
    assert private_folder() == folder


@pytest.mark.parametrize("kind", ["writable by others", "above it", "a link", "a file", "of another user", "relative"])
def test_a_folder_that_somebody_else_may_have_filled_is_not_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "." if kind == "relative" else str(tmp_path))
    folder = tmp_path / "vqvae" / "compiled"
    folder.parent.mkdir(mode=0o700)
    if kind == "a link":
        folder.symlink_to(tmp_path)
    elif kind == "a file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
    if kind == "writable by others":
        folder.chmod(0o777)
    if kind == "above it":
        folder.parent.chmod(0o777)
    if kind == "of another user":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    other = private_folder()
    assert other != folder
    assert mode(other) == 0o700
    assert private_folder() != other  # a new one for each process
    other.rmdir()


def test_a_cache_that_the_user_names_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    compiled(lambda x: x)
    assert os.environ[CACHE] == str(tmp_path)
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled(lambda x: x)
    assert os.environ[CACHE] == str(tmp_path / "vqvae" / "compiled")


def test_nothing_is_compiled_but_through_the_private_cache() -> None:
    sources = [path for path in (ROOT / "vqvae").rglob("*.py") if "torch.compile(" in path.read_text()]
    assert [path.name for path in sources] == ["compiler.py"]
