"""torch.compile, which trusts what it finds in its cache: kept in a folder that only this user can write."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vqvae.surroundings.own_folder import own_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own is in the shared temporary folder, where anybody may make it first


def compiled(function: Any, **options: Any) -> Callable[..., Any]:
    """torch.compile with a private cache. A folder that the user names in the environment stays."""
    os.environ.setdefault("TORCH_WARM_POOL", "0")  # else it starts processes even where it compiles for a CPU
    if CACHE not in os.environ:
        os.environ[CACHE] = str(private_folder())
    return torch.compile(function, **options)


def private_folder() -> Path:
    """A folder in the user's cache that nobody else can write; where there can be none, a new one for this process."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vqvae" / "compiled"
    with contextlib.suppress(OSError):
        if not folder.is_absolute():
            raise FileNotFoundError
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for made in (folder.parent, folder):
            made.mkdir(mode=0o700, exist_ok=True)
        if all(map(is_private, (folder.parent, folder))) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    folder = Path(tempfile.mkdtemp(prefix="vqvae-compiled-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_private(folder: Path) -> bool:
    """True for a folder, not a link to one, that belongs to this user and that nobody else can write."""
    about = folder.lstat()
    own = not hasattr(os, "getuid") or about.st_uid == os.getuid()  # Windows has no such numbers
    return stat.S_ISDIR(about.st_mode) and own and not about.st_mode & 0o022


def start_workers() -> None:
    """Start the processes in which torch compiles for GPUs from a folder of ours, because they import torch.

    torch offers no setting for it; where its insides have other names, they start in the current folder.
    """
    with own_folder(), contextlib.suppress(ImportError, AttributeError):
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.warm_pool()
