"""The Inception network of the FID (arXiv 1706.08500), with the weights that all published FIDs are computed with."""

from __future__ import annotations

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.backbones.base import Backbone
from vqvae.backbones.weights import downloaded, read_weights
from vqvae.errors import UserError
from vqvae.storage.files import digest
from vqvae.surroundings.own_folder import own_folder

NAME = "inception"
CHECKSUM = (
    "6726825d"  # first digits of the SHA-256 of the published file, which torch-fidelity converted from TensorFlow's
)
SIDE = 299


class Inception(Backbone):
    """Inception-v3 of 2015 as a judge: 2,048 features, 1,008 classes. It serves no perceptual loss.

    Images are resized to 299 x 299 by an antialiased bicubic filter with a = -0.5, which is Pillow's and clean-fid's
    (arXiv 2104.11222), on unrounded values, and clamped.
    """

    def __init__(self, network: nn.Module, weight: Tensor) -> None:
        half = [128 / 255] * 3  # bytes are brought to (byte - 128) / 128
        super().__init__(network, half, half, size=(SIDE, SIDE), classifier=(weight, weight.new_zeros(len(weight))))

    def maps(self, prepared: Tensor) -> list[Tensor]:
        raise UserError(f"{NAME} judges sets of images, and has no perceptual distance: take vgg16_lpips for that")

    def vectors(self, prepared: Tensor) -> Tensor:
        return self.network(prepared).flatten(1)

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)


def inception(file: str | None) -> Inception:
    """Load the network from the published file, or download it. Raises UserError for other weights."""
    try:
        with own_folder():
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError(f"backbone={NAME} needs the package torch-fidelity: pip install 'vqvae[judged]'") from error
    place = downloaded(NAME, URL_INCEPTION_V3) if file is None else Path(file)
    state = read_weights(place)
    if not digest(place).startswith(CHECKSUM):
        raise UserError(f"file={place} does not hold the published weights of the FID: take {URL_INCEPTION_V3}")
    copy = io.BytesIO()  # of tensors alone: the class loads what it is given without any care
    torch.save(state, copy)
    copy.seek(0)
    whole = FeatureExtractorInceptionV3(NAME, ["2048"], feature_extractor_weights_path=copy)
    layers = [*whole.children()]  # in the order of the network; the last is the classifier, used without its bias
    return Inception(nn.Sequential(*layers[:-1]), whole.fc.weight.detach().clone())
