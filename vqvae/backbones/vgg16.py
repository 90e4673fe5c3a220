"""VGG16 with the heads of LPIPS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights, vgg16

from vqvae.backbones.base import LEAST_SIDE, Backbone
from vqvae.backbones.weights import downloaded, fill, package_folder, read_weights
from vqvae.errors import UserError

ENDS = (3, 8, 15, 22, 29)  # layers relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
URL = VGG16_Weights.IMAGENET1K_V1.url


class VGG16LPIPS(Backbone):
    """VGG16 of torchvision with the linear heads of LPIPS 0.1 (arXiv 1801.03924).

    With its channel weights, the mean over depths of the distances between normalized features is LPIPS.

    Args:
        network: the convolutions, `vgg16().features`.
        heads: five tensors (F_i,).
    """

    def __init__(self, network: nn.Module, heads: Sequence[Tensor], least_side: int = LEAST_SIDE) -> None:
        super().__init__(network, MEAN, STD, least_side)
        for depth, head in enumerate(heads):
            self.register_buffer(f"head{depth}", head * len(ENDS), persistent=False)  # LPIPS sums over depths

    def channel_weights(self) -> list[Tensor]:
        return [self.get_buffer(f"head{depth}") for depth in range(len(ENDS))]

    def maps(self, prepared: Tensor) -> list[Tensor]:
        maps, h = [], prepared
        for index, layer in enumerate(self.network.children()):
            h = layer(h)
            if index in ENDS:
                maps.append(h)
        return maps

    def vectors(self, prepared: Tensor) -> Tensor:
        return self.maps(prepared)[-1].mean((2, 3))


def vgg16_lpips(file: str | None, least_side: int = LEAST_SIDE) -> VGG16LPIPS:
    """Load VGG16 from a file, or download it (528 MB) if none is named; the heads come from the package lpips.

    Raises UserError.
    """
    place = downloaded("vgg16_lpips", URL) if file is None else Path(file)
    state = {key: value for key, value in read_weights(place).items() if not key.startswith("classifier.")}
    state = {key.removeprefix("features."): value for key, value in state.items()}
    with torch.device("meta"):
        whole = vgg16()  # 553 MB, most of them in layers that are not needed
    network = whole.features.to_empty(device="cpu")[: ENDS[-1] + 1]
    fill(network, state, "vgg16_lpips", place)
    for layer in network:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # it would overwrite what the gradient needs
    return VGG16LPIPS(network, heads(), least_side)


def heads() -> list[Tensor]:
    """The learned weights of LPIPS, one tensor (F_i,) a depth. Raises UserError if the package is not installed."""
    folder = package_folder("lpips")
    if folder is None:
        raise UserError("backbone=vgg16_lpips needs the package lpips: pip install 'vqvae[perceptual]'")
    state = read_weights(folder / "weights" / "v0.1" / "vgg.pth")
    return [state[f"lin{depth}.model.1.weight"].flatten() for depth in range(len(ENDS))]
