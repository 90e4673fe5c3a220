"""CIFAR-10 through torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from vqvae.data.base import Split, TensorSplit, fingerprint
from vqvae.data.images import Images
from vqvae.errors import UserError
from vqvae.ranges import In, checked

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@checked
@dataclass(kw_only=True)
class CIFAR10(Images):
    """50,000 training and 10,000 test images of 32x32 (Krizhevsky 2009), downloaded to `root` on first use.

    Validation uses the test images, as the published VQ-VAE examples do, because there is no third split.
    """

    channels: Annotated[int, In(3)]
    image_size: Annotated[int, In(32)]
    root: str

    @property
    def class_names(self) -> list[str]:
        return NAMES

    def split(self, name: str) -> Split:
        from torchvision.datasets import CIFAR10 as Torchvision

        train = name == "train"
        try:
            data = Torchvision(self.root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 is not in {self.root} and could not be downloaded ({error}); put cifar-10-python.tar.gz "
                f"from https://www.cs.toronto.edu/~kriz/cifar.html into {self.root}, or name its folder by data.root=..."
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()  # (n, 3, 32, 32) uint8
        labels = torch.tensor(data.targets)
        return TensorSplit("train" if train else "test", labels, fingerprint(["cifar10", train]), images)
