"""Distance in the features of a pretrained network."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae.backbones.base import Backbone
from vqvae.backbones.named import load_backbone
from vqvae.errors import UserError
from vqvae.losses.terms import Term
from vqvae.ranges import NonNegativeFloat, checked

EPSILON = 1e-8  # added to squared lengths: features of length 0 have a finite gradient


@checked
class Perceptual(Term):
    """LPIPS-like distance (arXiv 1801.03924) between x_hat and x: mean over items; of 3-D data, over slices.

    Args:
        backbone: name of a pretrained network; see `load_backbone`.
        file: its weights; None: those of the installed package, or a download.
    """

    def __init__(self, weight: NonNegativeFloat, backbone: str, file: str | None, variance: float) -> None:
        super().__init__(weight, variance)
        self.backbone = load_backbone(backbone, file)

    def check(self, channels: int, size: tuple[int, ...]) -> None:
        check_images(channels, size)

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return perceptual_distance(self.backbone, slices(x_hat), slices(x)).mean()


def perceptual_distance(backbone: Backbone, x_hat: Tensor, x: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] -> distance of each pair (B,), float32; gradients reach x_hat only.

    At every depth, features are divided by their length at each position, and squared differences summed over channels, with
    the backbone's channel weights if it has some; then the mean over positions, and over depths. Without channel weights,
    it is between 0 and 4, and 2 for unrelated features.
    """
    with torch.no_grad():
        wanted = backbone.features(x)
    pairs = zip(backbone.features(x_hat), wanted)
    differences = [(normalized(ours) - normalized(true)).square() for ours, true in pairs]
    weights = backbone.channel_weights()
    if weights is not None:
        differences = [error * weight[:, None, None] for error, weight in zip(differences, weights)]
    return torch.stack([error.sum(1).mean((1, 2)) for error in differences]).mean(0)  # (B,)


def normalized(features: Tensor) -> Tensor:
    """(B, F, H, W) of any float type -> vectors of length 1 along F, float32."""
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + EPSILON).rsqrt()


def check_images(channels: int, size: tuple[int, ...]) -> None:
    """Raises UserError for items of C channels and dims *S that are neither images nor stacks of images."""
    if len(size) == 1 or channels not in (1, 3):
        dims = "x".join(map(str, (channels, *size)))
        raise UserError(
            f"a pretrained network sees images of 1 or 3 channels, and these items are {dims}; leave it out"
        )


def slices(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> its slices (B T, C, H, W); images stay."""
    return x.movedim(2, 1).flatten(0, 1) if x.ndim == 5 else x
