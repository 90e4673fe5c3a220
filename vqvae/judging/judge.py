"""A pretrained network that judges images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vqvae.backbones.base import Backbone
from vqvae.backbones.named import INCEPTION, load_backbone
from vqvae.errors import UserError
from vqvae.losses.perceptual import check_images, slices
from vqvae.storage.checkpoint import fingerprint

IMAGES_AT_A_TIME = 128


@dataclass
class Judge:
    """A pretrained network, its name as figures have it, its number F of features, and the images that an item has for it."""

    backbone: Backbone
    name: str
    width: int
    views: int

    @classmethod
    def load(cls, name: str, file: str | None, channels: int, size: tuple[int, ...], device: torch.device) -> Judge:
        """Load the network that is to see items of C channels and dims *S. Raises UserError where it cannot."""
        try:
            check_images(channels, size)
            backbone = load_backbone(name, file).to(device)
        except UserError as error:
            raise UserError(f"backbone={name}: {str(error).replace('file=', 'backbone_file=')}") from error
        blank = torch.zeros(1, channels, *size[-2:], device=device)
        views = size[0] if len(size) == 3 else 1
        return cls(backbone, re.sub(r"\W", "_", name), backbone.pooled(blank).shape[1], views)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], or volumes, of which it sees the slices -> (B views, F), float32."""
        return self.backbone.pooled(slices(x))

    @property
    def items_at_a_time(self) -> int:
        """Items that it sees at once: of volumes fewer, because it sees all their slices."""
        return max(1, IMAGES_AT_A_TIME // self.views)

    @property
    def has_perceptual_distance(self) -> bool:
        """Whether the network has maps at several depths: Inception's are not used."""
        return self.name != INCEPTION

    def figure(self, name: str) -> str:
        """A figure's name with the network's. FID and KID are those of Inception alone."""
        if self.name == INCEPTION:
            name = re.sub(r"(?<=[rg])(fd|kd)", lambda found: {"fd": "fid", "kd": "kid"}[found[0]], name)
        return f"{name}_{self.name}"

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the network's weights and of how it is shown images."""
        return fingerprint({**dict(self.backbone.named_buffers()), "size": torch.tensor(self.backbone.size or 0)})
