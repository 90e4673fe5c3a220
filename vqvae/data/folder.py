"""Anyone's pictures: a folder, with or without splits and classes."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path

from torch import Tensor

from vqvae.data.base import Split, fingerprint, no_labels
from vqvae.data.pictures import ResizedPictures, read_picture
from vqvae.errors import UserError
from vqvae.ranges import checked
from vqvae.storage.files import digest

CONTENT_PROBES = 64  # files whose content goes into the fingerprint, beside the name and size of all
DECODING = 2  # part of the fingerprint: raised when the same files come to be read as other pixels
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass
class FolderSplit(Split):
    """Picture files of one split, decoded, turned upright, resized and cropped to `read_size` when read."""

    root: Path
    files: list[str]
    read_size: int
    channels: int

    def read(self, index: int) -> Tensor:
        return read_picture(self.root / self.files[index], self.read_size, self.channels)

    def title(self, index: int) -> str:
        return printable(str(self.root / self.files[index]))

    def subset(self, indices: Tensor) -> Split:
        return replace(self, labels=self.labels[indices], files=[self.files[i] for i in indices.tolist()])


@checked
@dataclass(kw_only=True)
class Folder(ResizedPictures):
    """Pictures below `root`: in train/ and val/ or test/, or else all in one folder and split by `split_seed`.

    In a split, sub-folders are classes; without sub-folders there are no labels.
    Raises ValueError for a missing root and a folder without pictures.
    """

    root: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = Path(expanduser(self.root))  # Path.expanduser raises RuntimeError for users that are not there
        if not self.path.is_dir():
            raise UserError(f"data.root={self.root} is not a folder; name the folder that holds the pictures")
        self.has_splits = (self.path / "train").is_dir()
        train = self.path / "train" if self.has_splits else self.path
        self._class_names = sorted(p.name for p in train.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.files = find_pictures(train)
        if not self.files:
            kinds = " ".join(sorted(SUFFIXES))
            raise UserError(f"no picture lies in {train} or its sub-folders (looked for {kinds})")

    def split(self, name: str) -> Split:
        if not self.has_splits:
            files = list(self.files)
            random.Random(self.split_seed).shuffle(files)
            held_out = max(1, round(len(files) * self.val_share))
            chosen = files[held_out:] if name == "train" else files[:held_out]
            return self._make("train" if name == "train" else "val", self.path, sorted(chosen))
        other = {"val": "test", "test": "val"}.get(name, name)
        if not (self.path / name).is_dir():
            name = other
        folder = self.path / name
        files = find_pictures(folder) if folder.is_dir() else []
        if not files:
            wanted = f"{name}/" if name == "train" else "val/ or test/"
            raise UserError(f"{self.path} has train/ but no pictures in {wanted}; validation needs some")
        return self._make(name, folder, files)

    def _make(self, name: str, root: Path, files: list[str]) -> Split:
        labels = no_labels(len(files))
        if self._class_names:
            index = {class_name: i for i, class_name in enumerate(self._class_names)}
            for i, file in enumerate(files):
                class_name = file.split("/")[0]
                if "/" not in file or class_name not in index:
                    raise UserError(
                        f"{root / file} lies in none of the class folders of the training pictures "
                        f"({', '.join(self._class_names[:5])}{', ...' if len(self._class_names) > 5 else ''})"
                    )
                labels[i] = index[class_name]
        sizes = [(file, (root / file).stat().st_size) for file in files]
        probed = files[:: max(1, len(files) // CONTENT_PROBES)]
        contents = [content_digest(root / file) for file in probed]
        identity = fingerprint(["folder", DECODING, name, self.resize, self.channels, sizes, contents])
        return FolderSplit(name, labels, identity, root, files, self.resize, self.channels)


def content_digest(file: Path) -> str:
    """Empty for a file that may not be read, which no picture comes from."""
    try:
        return digest(file)
    except OSError:
        return ""


def printable(name: str) -> str:
    """A file name as one line that any terminal and file takes: line ends and undecodable bytes become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def find_pictures(folder: Path) -> list[str]:
    """Paths of the picture files below `folder`, relative to it, with forward slashes, sorted."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted(p.relative_to(folder).as_posix() for p in found if p.is_file())
