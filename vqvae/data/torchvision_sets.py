"""Built-in sets of torchvision, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from os.path import expanduser
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vqvae.data.base import Split, fingerprint
from vqvae.data.framing import as_setting
from vqvae.data.images import Images, as_item
from vqvae.errors import UserError, suggest
from vqvae.ranges import checked

VERSION = 1  # part of the fingerprint; raise it when the same set gives other items
BY_TRAIN = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS", "CIFAR10", "CIFAR100")  # they have an argument `train`
BY_SPLIT = {  # what their argument `split` is for train, val and test; without a set for validation, test images serve
    **dict.fromkeys(("SVHN", "STL10", "GTSRB", "Food101"), ("train", "test", "test")),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "RenderedSST2"), ("train", "val", "test")),
    "Country211": ("train", "valid", "test"),
    "Imagenette": ("train", "val", "val"),
    "OxfordIIITPet": ("trainval", "test", "test"),
}
NAMES = (*BY_TRAIN, *BY_SPLIT)


@dataclass
class SetSplit(Split):
    """Images of a set by their numbers in it (n,), decoded by `to_item` when they are read. origin: the set, in messages."""

    images: Any
    numbers: Tensor
    to_item: Callable[..., Tensor]
    origin: str

    def read(self, index: int) -> Tensor:
        try:
            return self.to_item(self.images[int(self.numbers[index])][0])
        except (ValueError, SyntaxError, EOFError) as error:  # Pillow's, beside OSError
            raise OSError(f"{type(error).__name__}: {error}") from error

    def title(self, index: int) -> str:
        return f"image {int(self.numbers[index])} of {self.origin}"

    def subset(self, indices: Tensor) -> Split:
        return replace(self, labels=self.labels[indices], numbers=self.numbers[indices])


@checked
@dataclass(kw_only=True)
class TorchvisionSet(Images):
    """A set of torchvision.datasets with one label an image, downloaded to `root` on first use.

    name: one of NAMES. fit: how images of another size become one of `image_size`; see FITS. Validation uses the test images
    where a set has no third split.
    """

    name: str
    root: str
    fit: Literal["crop", "pad", "stretch"] = "crop"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recalled: dict[str, Any] = {}
        if self.name not in NAMES:
            raise UserError(f"name={self.name} is none of the sets that are known; {suggest(self.name, NAMES)}")

    def recall(self, facts: dict[str, Any]) -> None:
        self.recalled = facts

    @property
    def class_names(self) -> list[str]:
        if "class_names" in self.recalled:
            return self.recalled["class_names"]
        images = opened(self.name, self.root, 0)
        names = getattr(images, "classes", None) or map(str, range(int(labels_of(images).max()) + 1))
        return [name if isinstance(name, str) else name[0] for name in names]  # Imagenette has several names each

    def split(self, name: str) -> Split:
        part = ["train", "val", "test"].index(name)
        images = opened(self.name, self.root, part)
        labels = labels_of(images)
        digest = hashlib.sha256(labels.numpy().tobytes()).hexdigest()
        reading = [as_setting(self.size), self.channels, self.fit]
        identity = fingerprint(["torchvision", VERSION, self.name, arguments(self.name, part), digest, *reading])
        to_item = partial(as_item, size=self.size, channels=self.channels, fit=self.fit)
        return SetSplit(name, labels, identity, images, torch.arange(len(labels)), to_item, self.name)


def arguments(name: str, part: int) -> dict[str, Any]:
    """Arguments of a set's class for the splits train, val and test."""
    return {"train": part == 0} if name in BY_TRAIN else {"split": BY_SPLIT[name][part]}


@cache
def opened(name: str, root: str, part: int) -> Any:
    """A split of a set of torchvision. Raises UserError if it is not there and cannot be downloaded."""
    from torchvision import datasets

    try:
        return getattr(datasets, name)(expanduser(root), download=True, **arguments(name, part))
    except (OSError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{name} is not in {root} and could not be downloaded ({error}); put it there as torchvision has it, or name its "
            "folder by data.root=..."
        ) from error


def labels_of(images: Any) -> Tensor:
    """The label of each image (n,), int64, without decoding any."""
    found = next(getattr(images, key) for key in ("targets", "labels", "_labels", "_samples") if hasattr(images, key))
    if isinstance(found, list) and isinstance(found[0], tuple):  # of paths and labels
        found = [label for _, label in found]
    labels = torch.as_tensor(np.asarray(found), dtype=torch.int64)
    return labels if labels.ndim == 1 else labels[:, 0]  # QMNIST tells more of each
