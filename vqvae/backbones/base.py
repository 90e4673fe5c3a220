"""The contract of pretrained networks, and what is done to images before they see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.errors import UserError

LEAST_SIDE = 64  # pixels: below that, the deep maps of most networks have one position


class Backbone(nn.Module, ABC):
    """A pretrained network as a fixed function of images (B, C, H, W) in [-1, 1], C 1 or 3.

    It stays in eval mode, has no parameters and an empty `state_dict`, so that no optimizer moves it, and no checkpoint of a
    model that uses it holds it. Gradients reach the images. It computes in autocast's type where autocast is on.

    Args:
        network: with its weights.
        mean, std: of RGB values in [0, 1], by which the network's training images were normalized.
        least_side: smaller images are enlarged until their shorter side has so many pixels.
        size: the (H, W) of a network that takes no other; None: any.
        classifier: weight (K, F) and bias (K,) that make logits of its vectors, if it was trained to tell K classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        least_side: int = LEAST_SIDE,
        size: tuple[int, int] | None = None,
        classifier: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.least_side, self.size = network, least_side, size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 2 - 1)  # (3, 1, 1), in [-1, 1]
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 2)
        self.classes = 0 if classifier is None else len(classifier[1])
        for name, tensor in zip(("weight", "bias"), classifier or ()):
            self.register_buffer(f"classifier_{name}", tensor)
        freeze(self)
        self.to(memory_format=torch.channels_last)  # 1.7 times as fast on CPUs

    @abstractmethod
    def maps(self, prepared: Tensor) -> list[Tensor]:
        """Output of `prepare` -> feature maps (B, F_i, H_i, W_i) at several depths, the finest first."""

    @abstractmethod
    def vectors(self, prepared: Tensor) -> Tensor:
        """Output of `prepare` -> (B, F): the last layer before the classifier, mean over positions."""

    def channel_weights(self) -> Sequence[Tensor] | None:
        """A weight (F_i,) for each channel of each map in distances between maps; None: all 1."""
        return None

    def features(self, x: Tensor) -> list[Tensor]:
        """x (B, C, H, W) in [-1, 1] -> feature maps (B, F_i, H_i, W_i) at several depths, the finest first."""
        return self.maps(self.prepare(x))

    def pooled(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [-1, 1] -> one vector an image (B, F), float32."""
        return self.vectors(self.prepare(x)).float()

    def probabilities(self, vectors: Tensor) -> Tensor:
        """Output of `pooled` (B, F) -> class probabilities (B, K), of a network that has classes."""
        return F.linear(vectors, self.get_buffer("classifier_weight"), self.get_buffer("classifier_bias")).softmax(1)

    def prepare(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [-1, 1] -> (B, 3, H', W'), normalized and of a size that suits the network.

        Raises UserError for what is no image of one or three channels.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            shape = "x".join(map(str, x.shape[1:]))
            raise UserError(f"pretrained networks see images of 1 or 3 channels, and these items are {shape}")
        scale = max(1.0, self.least_side / min(x.shape[2:]))
        size = self.size or (round(x.shape[2] * scale), round(x.shape[3] * scale))
        if size != tuple(x.shape[2:]):
            x = self.resize(x, size)
        return (x.expand(-1, 3, -1, -1) - self.mean) / self.std

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W) -> (B, C, *size): bilinear, antialiased where it gets smaller."""
        return F.interpolate(x, size, mode="bilinear", antialias=min(size) < min(x.shape[2:]))

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)


def freeze(network: nn.Module) -> None:
    """Turn all parameters into buffers, and leave all buffers out of `state_dict`; switch to eval mode."""
    for module in network.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
        for name, buffer in [*module.named_buffers(recurse=False)]:
            module.register_buffer(name, buffer, persistent=False)
    network.eval()
