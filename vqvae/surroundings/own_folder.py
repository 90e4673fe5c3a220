"""Libraries loaded from a folder of ours, because some look for code and settings in the current one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent


@contextlib.contextmanager
def own_folder() -> Iterator[None]:
    """Stand in a folder of ours for the length of a `with`, which imports libraries.

    torch loads libcuda.so.1 from the current folder if there is one (its libcusparseLt has an empty part in its search path),
    and matplotlib reads matplotlibrc there. So `cd somebodys_folder; python sample.py run_dir=.` would run what lies there.
    """
    by_path = os.chdir not in os.supports_fd  # on Windows; elsewhere the folder may have been renamed or removed
    before = os.getcwd() if by_path else os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    os.chdir(HERE)
    try:
        yield
    finally:
        os.chdir(before)
        if isinstance(before, int):
            os.close(before)


def shield_children() -> None:
    """Keep the Python processes that libraries start (by `python -c`) from importing what lies in the current folder.

    They find this package in its place instead. Python 3.10 does not know the setting.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    root = str(HERE.parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*paths, root]))
