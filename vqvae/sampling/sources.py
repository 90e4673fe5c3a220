"""Images that a user names: files, or numbers of validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

# os.path: methods of Path raise for names that are too long, such as lists of many numbers
from os.path import expanduser, isfile
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.data.items import center_crop
from vqvae.data.tree import list_tree, stem_of
from vqvae.errors import UserError
from vqvae.run.run import Run
from vqvae.surroundings.terminal import printable, say


def names_in(image: Any) -> list[str]:
    """Names in the setting `image`: one, a list, or several separated by commas (unless that is a file)."""
    if isinstance(image, list):
        return [str(name) for name in image]
    return [str(image)] if isfile(str(image)) else str(image).split(",")


def read_named(run: Run, name: str) -> tuple[Tensor, int]:
    """A file, or the number of a validation image -> item (C, *S), and its label (-1: unknown).

    Raises UserError for what is neither, OSError for a file that cannot be decoded.
    """
    if name.isdecimal():
        split = run.split("val")
        if int(name) >= len(split):
            raise UserError(f"image={name}: the validation {run.data.noun}s are numbered 0 .. {len(split) - 1}")
        return crop(run, split.read(int(name))), int(split.labels[int(name)])
    path = Path(expanduser(name))
    if not isfile(path):
        raise UserError(f"image={name} is neither a file nor the number of a validation {run.data.noun}")
    try:
        return crop(run, run.data.load(path)), -1
    except OSError as error:
        raise UserError(f"image={name} cannot be read: {error}") from error


def read_many(run: Run, folder: str | None, count: int | None) -> Iterator[tuple[str, Tensor | OSError]]:
    """The first `count` files below a folder (None: all), or validation images -> names, and items or why not.

    Raises UserError where there is no such folder, or nothing in it.
    """
    if folder is None:
        split = run.split("val")
        readers = [(str(index), partial(split.read, index)) for index in range(len(split))]
    else:
        readers = [(name, partial(run.data.load, path)) for name, path in files_below(run, folder)]
    for name, item in read_each(readers[:count], run.data.noun):
        yield name, item if isinstance(item, OSError) else crop(run, item)


def read_originals(run: Run, folder: str, count: int | None) -> Iterator[tuple[str, Tensor | OSError]]:
    """The first `count` files below a folder (None: all) -> names, and items (C, *S) of their own size, or why not.

    Raises UserError for data of one size alone, and where there is no such folder, or nothing in it.
    """
    readers = [(name, partial(run.data.load_whole, path)) for name, path in files_below(run, folder)]
    yield from read_each(readers[:count], run.data.noun)


def files_below(run: Run, folder: str) -> list[tuple[str, Path]]:
    """Names and paths of the files below a folder that may be items. Raises UserError where there are none."""
    root = Path(expanduser(folder))
    if not root.is_dir():
        raise UserError(
            f"folder={folder} is not a folder{'; put the file into one of its own, and name that' * root.is_file()}"
        )
    tree = list_tree(root, run.data.item_suffixes)
    if not tree.files:
        raise UserError("; ".join([f"folder={folder} holds no files that can be read", *tree.notes()]))
    for note in tree.notes():
        say(note)
    return [(printable(file), root / file) for file in tree.files]


def single_name(name: str, taken: set[str]) -> str:
    """The name of a file without its ending, or the whole of it where another file is called so. Goes into `taken`."""
    stem = stem_of(name)
    chosen = name if stem in taken else stem
    taken.add(chosen)
    return chosen


def read_each(readers: Sequence[tuple[str, Callable[[], Tensor]]], noun: str) -> Iterator[tuple[str, Tensor | OSError]]:
    """Names, and what each reads or why not. noun: what each is, for a bar."""
    for name, read in tqdm(readers, desc="reconstructing", unit=noun, disable=distributed.bar_hidden()):
        try:
            yield name, read()
        except OSError as error:
            yield name, error


def crop(run: Run, item: Tensor) -> Tensor:
    """An item as it is read, (C, *R) -> as the model sees it, (C, *S)."""
    return center_crop(item[None], run.data.size)[0]
