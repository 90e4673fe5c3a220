"""A folder of images, with or without splits and classes."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path

from torch import Tensor

from vqvae.data.base import Split, fingerprint, no_labels
from vqvae.data.images import ResizedImages, read_image
from vqvae.errors import UserError
from vqvae.ranges import checked
from vqvae.storage.files import digest

CONTENT_PROBES = 64  # files whose content is part of the fingerprint, with the name and size of all
DECODING = 2  # part of the fingerprint; raise it when the same files decode to different pixels
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass
class FolderSplit(Split):
    """Image files of one split: decoded, turned upright, resized and cropped to `read_size` when read."""

    root: Path
    files: list[str]
    read_size: int
    channels: int

    def read(self, index: int) -> Tensor:
        return read_image(self.root / self.files[index], self.read_size, self.channels)

    def title(self, index: int) -> str:
        return printable(str(self.root / self.files[index]))

    def subset(self, indices: Tensor) -> Split:
        return replace(self, labels=self.labels[indices], files=[self.files[i] for i in indices.tolist()])


@checked
@dataclass(kw_only=True)
class Folder(ResizedImages):
    """Images below `root`: in train/ and val/ or test/, or all in one folder and split by `split_seed`.

    Subfolders of a split are classes; without subfolders there are no labels.
    Raises UserError for a missing root and for a folder without images.
    """

    root: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = Path(expanduser(self.root))  # Path.expanduser raises RuntimeError for users that are not there
        if not self.path.is_dir():
            raise UserError(f"data.root={self.root} is not a folder; name the folder that holds the images")
        self.has_splits = (self.path / "train").is_dir()
        train = self.path / "train" if self.has_splits else self.path
        self._class_names = sorted(p.name for p in train.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.files = find_images(train)
        if not self.files:
            kinds = " ".join(sorted(SUFFIXES))
            raise UserError(f"no image in {train} or its subfolders (looked for {kinds})")

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
        files = find_images(folder) if folder.is_dir() else []
        if not files:
            wanted = f"{name}/" if name == "train" else "val/ or test/"
            raise UserError(f"{self.path} has train/ but no images in {wanted}; validation needs some")
        return self._make(name, folder, files)

    def _make(self, name: str, root: Path, files: list[str]) -> Split:
        labels = no_labels(len(files))
        if self._class_names:
            index = {class_name: i for i, class_name in enumerate(self._class_names)}
            for i, file in enumerate(files):
                class_name = file.split("/")[0]
                if "/" not in file or class_name not in index:
                    raise UserError(
                        f"{root / file} is in none of the class folders of the training images "
                        f"({', '.join(self._class_names[:5])}{', ...' if len(self._class_names) > 5 else ''})"
                    )
                labels[i] = index[class_name]
        sizes = [(file, (root / file).stat().st_size) for file in files]
        probed = files[:: max(1, len(files) // CONTENT_PROBES)]
        contents = [content_digest(root / file) for file in probed]
        identity = fingerprint(["folder", DECODING, name, self.resize, self.channels, sizes, contents])
        return FolderSplit(name, labels, identity, root, files, self.resize, self.channels)


def content_digest(file: Path) -> str:
    """SHA-256 of a file; empty if it cannot be read, because then no image comes from it."""
    try:
        return digest(file)
    except OSError:
        return ""


def printable(name: str) -> str:
    """File name with line ends and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def find_images(folder: Path) -> list[str]:
    """Sorted paths of the image files below `folder`, relative to it, with forward slashes."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted(p.relative_to(folder).as_posix() for p in found if p.is_file())
