"""Pack a folder of images into WebDataset shards, for data=webdataset.

    python scripts/make_shards.py my_images shards
    python scripts/make_shards.py my_images shards --size 256 --shard_mb 500

my_images is a folder as data=folder reads it: train/ and val/ or test/, or all in one folder, with subfolders as classes.
Writes shards/train-000000.tar, val-000000.tar, ... with <name>.jpg (or another format) and <name>.cls, and classes.txt. Names
are the paths of the files, with dots and the like as %2E, so that data=webdataset holds out the images that data=folder does.
Files are packed as they are, in the order of data=folder; with --size, as data=folder with data.resize reads them: upright,
resized, cropped at the center (--fit), as PNG. The same images give the same bytes. The folder appears when it is complete.
"""

from __future__ import annotations

import argparse
import glob
import io
import multiprocessing
import shutil
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tqdm import tqdm

from vqvae.surroundings.own_folder import own_folder, shield_children

with own_folder():  # torch finds no code in the current one
    from vqvae.data.depth import Ranges, choose_ranges, look_at
    from vqvae.data.folder import spread
    from vqvae.data.formats import MOST_PIXELS, SUFFIXES
    from vqvae.data.framing import Size, sides
    from vqvae.data.images import read_image
    from vqvae.data.layout import Layout
    from vqvae.data.shards import member_key
    from vqvae.data.tree import Tree
    from vqvae.errors import UserError
    from vqvae.storage.files import remove_leftovers, temporary_name
    from vqvae.surroundings.terminal import printable, say

FORMAT = tarfile.GNU_FORMAT  # names of any length
CHANNELS = 3  # of resized images; gray ones are unchanged when read with one channel


class Resizing(NamedTuple):
    """How images are read for --size."""

    size: Size
    fit: str
    ranges: Ranges


class Shards:
    """Writer of <folder>/<split>-000000.tar, -000001.tar, ..., each at most `most` bytes unless one sample is larger."""

    def __init__(self, folder: Path, split: str, most: int) -> None:
        self.folder, self.split, self.most = folder, split, most
        self.tar: tarfile.TarFile | None = None
        self.count = self.samples = 0

    def add(self, file: str, members: dict[str, bytes]) -> None:
        """Add the sample of an image file, given as its files by extension."""
        blocks, entries = tarfile.BLOCKSIZE, []
        for extension, data in members.items():
            about = tarfile.TarInfo(f"{member_key(file)}.{extension}")  # no time, no owner: equal images, equal bytes
            about.size = len(data)
            entries.append((about, data))
        size = sum(len(about.tobuf(FORMAT)) + -(-len(data) // blocks) * blocks for about, data in entries)
        if self.tar is None or (self.tar.offset > 0 and self.tar.offset + size + tarfile.RECORDSIZE > self.most):
            self.close()
            name = self.folder / f"{self.split}-{self.count:06d}.tar"
            self.tar = tarfile.open(name, "w", format=FORMAT)  # noqa: SIM115  # closed when it is full
            self.count += 1
        for about, data in entries:
            self.tar.addfile(about, io.BytesIO(data))
        self.samples += 1

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()


def image_bytes(root: Path, resizing: Resizing | None, file: str) -> tuple[str, bytes] | str:
    """Extension and content of an image file, or the reason why it cannot be read."""
    path = root / file
    try:
        if resizing is None:
            return path.suffix[1:].lower(), path.read_bytes()
        from torchvision.io import encode_png

        image = read_image(path, resizing.size, CHANNELS, resizing.ranges, fit=resizing.fit)
        return "png", encode_png(image).numpy().tobytes()
    except OSError as error:
        return f"{printable(str(path))}: {error}"


def contents(tree: Tree, resizing: Resizing | None, workers: int) -> Iterator[tuple[str, bytes] | str]:
    """`image_bytes` of all files, in order."""
    read = partial(image_bytes, tree.root.absolute(), resizing)  # the processes stand in another folder
    if workers < 2:
        yield from map(read, tree.files)
        return
    shield_children()
    with own_folder():  # whose processes import torch
        pool = multiprocessing.get_context("spawn").Pool(workers)
    with pool:
        yield from pool.imap(read, tree.files, chunksize=16)


def pack(layout: Layout, split: str, out: Path, resizing: Resizing | None, options: argparse.Namespace) -> str:
    """Pack one split. Returns a line for the user."""
    tree = layout.tree(split)
    if not tree.files:
        raise UserError(f"no image in {tree.root} or its subfolders")
    labels = layout.labels(tree)
    shards, skipped = Shards(out, split, round(options.shard_mb * 1e6)), 0
    bar = tqdm(tree.files, desc=split, unit="image", disable=None)
    for file, label, content in zip(bar, labels, contents(tree, resizing, options.workers)):
        if isinstance(content, str):
            skipped += 1
            bar.write(f"skipped {content}", file=sys.stderr)
            continue
        shards.add(file, {content[0]: content[1], **({"cls": str(label).encode()} if label >= 0 else {})})
    shards.close()
    if not shards.samples:
        raise UserError(f"none of the {len(tree.files)} images in {tree.root} can be read")
    return f"{shards.samples} images in {split}-{{000000..{shards.count - 1:06d}}}.tar" + (
        f", {skipped} skipped" if skipped else ""
    )


def layout_of(options: argparse.Namespace) -> Layout:
    """The splits and classes of the folder of images, as data=folder finds them."""
    splits = dict(name.partition("=")[::2] for name in options.splits) if options.splits else None
    return Layout(Path(options.images), splits, options.classes, SUFFIXES)


def make(options: argparse.Namespace) -> None:
    """Write the folder `out`. Raises UserError for what cannot be packed."""
    root, out = Path(options.images), Path(options.out)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; name the folder that holds the images")
    if out.exists():
        raise UserError(f"{out} exists already: name a new folder")
    if options.value_range and not options.value_range[0] < options.value_range[1]:
        raise UserError("--value_range must be two numbers in order")
    if options.shard_mb <= 0 or options.workers < 1 or min(options.size or [1]) < 1:
        raise UserError("--shard_mb, --size and --workers must be above 0")
    if options.size is not None and len(options.size) > 2:
        raise UserError("--size must be one side, or height and width")
    layout = layout_of(options)
    classes, resizing, train = layout.class_names, None, layout.tree("train")
    counts = ", ".join(f"{len(layout.tree(name).files):,} {name}" for name in layout.folders)
    say(f"{counts} images, {len(classes) or 'no'} classes")
    for note in layout.notes():
        say(note)
    if broken := [name for name in classes if len(name.splitlines()) != 1]:
        raise UserError(f"the class folder {printable(broken[0])} has a line end in its name: rename it")
    if options.size is not None:
        looked = look_at([train.root / file for file in spread(train.files)], MOST_PIXELS)
        ranges = choose_ranges(looked, tuple(options.value_range) if options.value_range else "auto")
        size = options.size[0] if len(options.size) == 1 else options.size
        resizing = Resizing(sides(size), options.fit, ranges)
    remove_leftovers(out.parent, glob.escape(out.name))
    temporary = temporary_name(out)
    temporary.mkdir(parents=True)
    try:
        lines = [pack(layout, name, temporary, resizing, options) for name in layout.folders]
    except BaseException:
        shutil.rmtree(temporary)
        raise
    if classes:
        (temporary / "classes.txt").write_text("".join(f"{name}\n" for name in classes), "utf-8")
    temporary.rename(out)
    say("\n".join(f"{out}: {line}" for line in lines))
    validation = next((f" 'data.val_urls={out}/{name}-*.tar'" for name in layout.folders if name != "train"), "")
    size = f" 'data.image_size=[{','.join(map(str, options.size))}]'" if options.size else ""
    size = f" data.image_size={options.size[0]}" if options.size and len(options.size) == 1 else size
    say(f"python train.py data=webdataset 'data.urls={out}/train-*.tar'{validation}{size}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder of images")
    parser.add_argument("out", help="the new folder for the shards")
    size = "resize to squares of this side, or to this height and width; without it, images are packed as they are"
    parser.add_argument("--size", type=int, nargs="+", metavar="SIDE", help=size)
    parser.add_argument(
        "--fit", choices=("crop", "pad", "stretch"), default="crop", help="with --size; see data.fit in docs/data.md"
    )
    parser.add_argument(
        "--shard_mb", type=float, default=500, help="size of a shard in MB, at most, unless one image is larger (500)"
    )
    value_range = (
        "black and white in images of more than 8 bits, with --size; see data.value_range in docs/data.md (auto)"
    )
    parser.add_argument("--value_range", nargs=2, type=float, metavar=("LOW", "HIGH"), help=value_range)
    parser.add_argument("--classes", choices=("auto", "off"), default="auto", help="off: no classes (auto)")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT=FOLDER", help="such as train=Training val=Testing")
    parser.add_argument("--workers", type=int, default=1, help="number of processes that read and resize (1)")
    options = parser.parse_args(arguments)
    try:
        make(options)
    except (UserError, OSError) as error:
        sys.stderr.write(printable(f"error: {error}") + "\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
