"""What lies below a folder: its items, and what was left out, by reason. The one rule for every program."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from vqvae.data.cache import MARK
from vqvae.data.formats import PLUGINS
from vqvae.errors import UserError
from vqvae.surroundings.terminal import printable

SYSTEM_FOLDERS = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
}
CACHE_FILE = re.compile(
    r"[0-9a-f]{16}-((images|used|shard|volume)\.npy|(sums|facts)\.json)"
)  # as Cache and others name them
CONFIG_BYTES = 100_000  # of a config.yaml, looked through for what makes it one of a run
HIDDEN = "hidden and system folders"
OURS = "runs and caches of this program"
CLOSED = "folders that cannot be opened"
TWICE = "links to folders that are listed already"
EMPTY = "folders without items"


@dataclass
class Tree:
    """Items below `root`: sorted paths relative to it, with forward slashes.

    groups: the folders directly below it that hold items, sorted. left_out: reason -> number and first path.
    """

    root: Path
    files: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: str) -> None:
        count, first = self.left_out.get(reason, (0, path))
        self.left_out[reason] = count + 1, first

    def notes(self) -> list[str]:
        """One sentence for each reason: how many, and the first of them."""
        return [
            f"left out in {printable(str(self.root))}: {count} {reason if count > 1 else of_one(reason)} "
            f"({'such as ' * (count > 1)}{printable(first)})"
            for reason, (count, first) in sorted(self.left_out.items())
        ]


def list_tree(root: Path, suffixes: Collection[str] | None) -> Tree:
    """Files below `root` whose suffix, in lower case, is one of `suffixes` (None: all files).

    Links are followed; no folder is listed twice, nor one that holds `root`, so loops end. Left out are hidden files, hidden
    and system folders, runs and caches of this program by what they hold, and what cannot be opened.
    Raises UserError if `root` cannot be opened.
    """
    tree, seen = Tree(root), {identity(parent) for parent in Path(os.path.realpath(root)).parents}
    folders, links = deque([""]), deque[str]()  # links after real folders, so that they never hide one
    entered, explained = set(), set()  # folders directly below the root; those that need no further word
    while folders or links:
        folder = (folders or links).popleft()
        try:
            own = identity(root / folder)
            if own in seen:
                tree.leave_out(TWICE, folder)
                explained.add(top(folder))
                continue
            seen.add(own)
            with os.scandir(root / folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise UserError(f"{root} cannot be opened: {error.strerror}") from error
            tree.leave_out(CLOSED, f"{folder}: {error.strerror}")
            explained.add(top(folder))
            continue
        if folder and is_run(root / folder, entries):
            tree.leave_out(OURS, folder)
            explained.add(top(folder))
            continue
        if folder:
            entered.add(top(folder))
        for entry in entries:
            path, kind = f"{folder}/{entry.name}" if folder else entry.name, kind_of(entry)
            if reason := reason_against(entry.name, kind, suffixes):
                tree.leave_out(reason, path)
                if reason == OURS:
                    explained.add(top(path))
            elif kind == "folder":
                (links if entry.is_symlink() else folders).append(path)
            else:
                tree.files.append(path)
    tree.files.sort()
    tree.groups = sorted({top(file) for file in tree.files if "/" in file})
    for name in sorted(entered - explained - set(tree.groups)):
        tree.leave_out(EMPTY, name)
    return tree


def reason_against(name: str, kind: str, suffixes: Collection[str] | None) -> str | None:
    """Why a file or folder is left out, None if it is not. kind: see `kind_of`."""
    if kind == "folder":
        return HIDDEN if is_hidden(name) else None
    if kind != "file":
        return kind
    if name == MARK or CACHE_FILE.fullmatch(name):
        return OURS
    if name.startswith("."):
        return "hidden files"
    suffix = suffix_of(name)
    if suffixes is None or suffix in suffixes:
        return None
    if suffix in PLUGINS:
        return f"{suffix} files: {PLUGINS[suffix]} to have them read"
    return f"{printable(suffix)} files" if suffix else "files without a suffix"


def of_one(reason: str) -> str:
    """A reason for a single file, folder or link."""
    return re.sub(r"\b(file|folder|link)s\b", r"\1", reason, count=1)


def suffix_of(name: str) -> str:
    """Suffix of a file's name in lower case; that of packed files has two parts, such as .nii.gz."""
    stem, suffix = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + suffix if suffix == ".gz" else suffix


def check_suffixes(suffixes: list[str] | None) -> None:
    """Raise UserError for a setting of suffixes of which one has no dot."""
    if wrong := [one for one in suffixes or [] if not one.startswith(".")]:
        raise UserError(f"suffixes must begin with a dot, such as .npy, got {wrong[0]}")


def stem_of(name: str) -> str:
    """A file's name without what `suffix_of` tells of it."""
    stem, suffix = os.path.splitext(name)
    return os.path.splitext(stem)[0] if suffix.lower() == ".gz" else stem


def identity(folder: Path) -> tuple[int, int]:
    """What two names of one folder have in common."""
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def top(path: str) -> str:
    """The first part of a relative path."""
    return path.split("/", 1)[0]


def is_hidden(name: str) -> bool:
    """True for a folder that no user fills: hidden, or made by an operating system, a network disk or Python."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def kind_of(entry: os.DirEntry[str]) -> str:
    """file or folder, links followed, or the reason why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link in a circle, or through a folder that is closed
        return "links that lead nowhere"
    return "links that lead nowhere" if entry.is_symlink() else "neither files nor folders"


def is_run(folder: Path, entries: list[os.DirEntry[str]]) -> bool:
    """True for a run folder, whatever it is called: it has the config of a run, or nothing but the lock of one that starts."""
    if [entry.name for entry in entries] == ["lock"]:
        return True
    if not any(entry.name == "config.yaml" and kind_of(entry) == "file" for entry in entries):
        return False
    try:
        with (folder / "config.yaml").open("rb") as file:
            text = file.read(CONFIG_BYTES)
    except OSError:
        return False
    return b"_target_: vqvae." in text and b"run_dir:" in text
