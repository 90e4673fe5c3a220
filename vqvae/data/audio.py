"""The data set of sound files."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.data.file_facts import FileFacts
from vqvae.data.folder import content_digest
from vqvae.data.levels import Levels
from vqvae.data.patched import PatchedFiles
from vqvae.data.patches import PatchSplit, Size
from vqvae.data.sound_files import SUFFIXES, decibels, length_of, read_sound
from vqvae.data.tree import suffix_of
from vqvae.data.wave_plot import plot_sounds
from vqvae.data.waveforms import Sounds
from vqvae.errors import UserError
from vqvae.images import x_of
from vqvae.ranges import PositiveFloat, PositiveInt, checked

VERSION = 1  # part of the fingerprint; raise it when the same files give other items
ONCE_INEXACT = (
    ".ogg",
    ".oga",
    ".mp3",
)  # earlier versions gave some parts of such files wrongly
LEVELS = Levels("float32", -1.0, 1.0, clips=True)


@checked
@dataclass(kw_only=True)
class Audio(PatchedFiles, Sounds):
    """Parts of the sound files below `root` (see `SUFFIXES`), which lie there as images do: see `Folder`.

    Items are waves in [-1, 1], float32 (C, T), without companding. rate: samples per second, to which files of other rates are
    resampled. seconds: length of an item. Training takes random crops, such that every place of a file is as likely, and all
    else a fixed grid of them. silence_db: parts whose root mean square is so many dB of full scale or less are left out, such
    as -50; null: none. Left out, and counted, are files that are shorter than an item, or damaged.
    """

    size_key: ClassVar[str] = "seconds"
    kind: ClassVar[str] = "sounds"

    sample_rate: int = field(init=False)
    rate: PositiveInt
    seconds: PositiveFloat
    silence_db: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sample_rate = self.rate
        if not self.size[0]:
            raise UserError(f"seconds={self.seconds:g} is less than one sample at rate={self.rate}")
        self.silent: dict[str, int] = {}

    @property
    def size(self) -> Size:
        return (round(self.rate * self.seconds),)

    # ---- what the files hold

    def dims_of(self, file: Path) -> Size:
        length = length_of(file, self.channels, self.rate)
        if length < self.size[0]:
            raise OSError(f"it has {length / self.rate:.3g} seconds, and an item has {self.seconds:g}")
        return (length,)

    def patch_size(self, shapes: list[Size]) -> Size:
        """Up to 2 T - 1, or the longest file: of shorter ones than that, silence lies around the sound."""
        return min((2 * self.size[0] - 1,), max(shapes))

    def places_in(self, dims: Size) -> list[Size]:
        (length,), (read,) = dims, self.read_size
        return super().places_in(dims) if length >= read else [(-((read - length) // 2),)]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "exact": True}

    def identity(self, split: str) -> list[object]:
        named = [file for name in self.layout.folders for file in self.layout.tree(name).files]
        was = bool(self.recalled) and "exact" not in self.recalled  # a run of an earlier version, which goes on
        exact = ["exact"] if not was and any(suffix_of(file) in ONCE_INEXACT for file in named) else []
        form = [self.rate, self.size, self.read_size, self.channels, self.silence_db]
        return ["audio", VERSION, split, *form, *exact]

    def content_digest(self, file: Path) -> str:
        return content_digest(file)

    def patches(self, name: str) -> PatchSplit:
        """A split without its silent parts. Raises UserError if no part is louder.

        All files are decoded for that, once: the cache keeps how loud each part is.
        """
        split = super().patches(name)
        if self.silence_db is None:
            return split
        if distributed.is_main():  # the other ranks read it from the cache
            self.loudness(split)
        distributed.barrier()
        loud = [
            index for index, level in enumerate(self.loudness(split)) if level is None or level > self.silence_db
        ]  # of those that cannot be read, whoever needs them says so
        if not loud:
            raise UserError(f"no part of the {name} sounds is louder than data.silence_db={self.silence_db:g}")
        self.silent[split.name] = len(split) - len(loud)
        return split.subset(torch.tensor(loud))

    def loudness(self, split: PatchSplit) -> list[float | None]:
        """Decibels of each part of a split; None of those that cannot be read."""
        form = [self.rate, self.channels, self.size, self.read_size]
        facts = FileFacts(Path(self.cache_dir).expanduser(), ["loudness", VERSION, self.root, *form])
        numbers = split.places[:, 0]
        found: list[float | None] = []
        try:
            files = dict.fromkeys(numbers.tolist())
            hidden = distributed.bar_hidden()
            for number in tqdm(files, desc=f"hearing {split.name}", unit="file", disable=hidden, delay=1):
                starts = split.places[numbers == number, 1].tolist()
                found += facts.get(split.root / split.files[number], partial(self.decibels_at, starts=starts))
        finally:
            facts.save()
        return found

    def decibels_at(self, file: Path, starts: list[int]) -> list[float | None]:
        """Decibels of the parts of a file at these places."""
        found: list[float | None] = []
        for start in starts:
            try:
                found.append(decibels(self.read_patch(file, (start,)).numpy()))
            except OSError:
                found.append(None)
        return found

    def notes(self) -> list[str]:
        silent = ", ".join(f"{count} of {name}" for name, count in self.silent.items() if count)
        return [*super().notes(), *([f"left out as silent: {silent}"] if silent else [])]

    # ---- items

    @property
    def value_type(self) -> str:
        return "float32"

    @property
    def value_levels(self) -> Levels:
        return LEVELS

    @property
    def item_suffixes(self) -> frozenset[str]:
        return SUFFIXES

    def waves(self, x: Tensor) -> Tensor:
        return x

    def picture(self, items: Tensor) -> Tensor:
        """Plot waves and spectrograms of items (n, C, T)."""
        return plot_sounds(self.waves(x_of(items)))

    def read_patch(self, file: Path, corner: Size) -> Tensor:
        return torch.from_numpy(read_sound(file, corner[0], self.read_size[0], self.channels, self.rate))

    def load(self, path: Path) -> Tensor:
        """Read the first seconds of a file, with silence beyond its end: (C, T)."""
        return torch.from_numpy(read_sound(path, 0, self.size[0], self.channels, self.rate))

    def load_whole(self, path: Path) -> Tensor:
        """Read all of a file."""
        return torch.from_numpy(read_sound(path, 0, None, self.channels, self.rate))
