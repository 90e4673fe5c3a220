"""The data set of clips of video files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from vqvae.data.clips import FRAME_MS, Clips, load_gif
from vqvae.data.file_facts import FileFacts
from vqvae.data.folder import content_digest
from vqvae.data.framing import ImageSize, in_proportion, sides
from vqvae.data.images import as_item
from vqvae.data.patched import PatchedFiles
from vqvae.data.patches import Size, corners
from vqvae.data.video_files import SUFFIXES, Index, index_of, read_frames
from vqvae.errors import UserError
from vqvae.ranges import PositiveInt, checked

VERSION = 1  # part of the fingerprint; raise it when the same files give other items


@checked
@dataclass(kw_only=True)
class Video(PatchedFiles, Clips):
    """Clips of the video files below `root` (see `SUFFIXES`), which lie there as images do: see `Folder`.

    Items are uint8 (C, T, H, W). stride: of a file, every so many-th frame is used. Frames are resized and cropped as images
    are: `fit` and `resize`, see `ResizedImages`. Training takes random crops, in time too, such that every frame is as likely,
    and all else a fixed grid of them. Left out, and counted, are files that are shorter than a clip, or damaged.
    """

    kind: ClassVar[str] = "videos"

    stride: PositiveInt = 1
    fit: Literal["crop", "pad", "stretch"] = "crop"
    resize: ImageSize

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(side < kept for side, kept in zip(self.frame_size, sides(self.image_size))):
            raise UserError(f"resize={self.resize} must not be smaller than image_size={self.image_size}")
        self.indices: dict[Path, Index] = {}

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of frames as they are read."""
        own = self.image_size
        return in_proportion(self.resize, sides(own)) if isinstance(self.resize, int) else sides(self.resize)

    # ---- what the files hold

    @cached_property
    def file_facts(self) -> FileFacts:
        return FileFacts(Path(self.cache_dir).expanduser(), ["video", VERSION, self.root])

    def index(self, file: Path) -> Index:
        """Frames of a file of the data set. Raises OSError."""
        if file not in self.indices:
            self.indices[file] = Index(*self.file_facts.get(file, index_of))
        return self.indices[file]

    def dims_of(self, file: Path) -> Size:
        return (self.count_in(self.index(file)),)

    def count_in(self, index: Index) -> int:
        """Frames of a file of which `stride` - 1 are left out after each. Raises OSError for less than a clip."""
        count = -(-index.length // self.stride)
        if count < self.frames:
            raise OSError(f"it has {index.length} frames, and a clip needs {(self.frames - 1) * self.stride + 1}")
        return count

    @cached_property
    def shapes(self) -> dict[str, dict[str, Size]]:
        try:
            return super().shapes
        finally:
            self.file_facts.save()

    def patch_size(self, shapes: list[Size]) -> Size:
        """Less than 2 T - 1 frames where a file is too short for that."""
        return (min(2 * self.frames - 1, *(count for (count,) in shapes)), *self.frame_size)

    def is_patch_size(self, sizes: list[int]) -> bool:
        return self.frames <= sizes[0] < 2 * self.frames and tuple(sizes[1:]) == self.frame_size

    def places_in(self, dims: Size) -> list[Size]:
        return list(corners(dims, self.read_size[:1], [self.frames]))

    @cached_property
    def frame_ms(self) -> float:
        """How long a frame of the first training file is shown, times the stride."""
        if "frame_ms" in self.recalled:
            return self.recalled["frame_ms"]
        tree, first = self.layout.tree("train"), next(iter(self.shapes["train"]))
        return self.index(tree.root / first).milliseconds * self.stride or FRAME_MS

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "frame_ms": self.frame_ms}

    def recall(self, facts: dict[str, Any]) -> None:
        if type(facts.get("frame_ms")) not in (int, float) or not 1 <= facts["frame_ms"] <= 1e6:
            raise UserError(f"{str(facts.get('frame_ms'))[:100]} is no time of a frame")
        super().recall(facts)

    def identity(self, split: str) -> list[object]:
        return ["video", VERSION, split, self.size, self.read_size, self.channels, self.stride, self.fit]

    def content_digest(self, file: Path) -> str:
        return content_digest(file)

    # ---- items

    @property
    def item_suffixes(self) -> frozenset[str]:
        return SUFFIXES

    @property
    def to_frame(self) -> partial[Tensor]:
        return partial(as_item, size=self.frame_size, channels=self.channels, fit=self.fit)

    def read_patch(self, file: Path, corner: Size) -> Tensor:
        start, count = corner[0] * self.stride, self.read_size[0]
        return read_frames(file, self.index(file), start, count, self.stride, self.to_frame)

    def load(self, path: Path) -> Tensor:
        """Read the first frames of a file; of a GIF, a longer frame stands for several equal ones."""
        if path.suffix.lower() == ".gif":
            return load_gif(path, self.frames, self.frame_size, self.channels, self.frame_ms)
        index = index_of(path)
        self.count_in(index)
        return read_frames(path, index, 0, self.frames, self.stride, self.to_frame)
