"""Output heads: what the decoder's output stands for."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vqvae.errors import UserError


class Head(nn.Module, ABC):
    """Base of output heads: how many channels the decoder puts out, and how they become data.

    A head that says how likely the data is has losses of its own.

    Args:
        variance: that of the training data in [-1, 1], over all items, channels and positions; every head is told it.
    """

    def __init__(self, variance: float) -> None:
        super().__init__()
        if variance <= 0:
            raise UserError(f"the training images are all one color (variance {variance}): nothing to learn")
        self.variance = variance

    @abstractmethod
    def decoder_channels(self, channels: int) -> int:
        """Number of decoder channels for data of C channels."""

    @abstractmethod
    def reconstruct(self, output: Tensor) -> Tensor:
        """Decoder output -> x_hat (B, C, *S), float32, as loss terms see it: with a gradient everywhere."""

    def to_image(self, output: Tensor) -> Tensor:
        """Decoder output -> data (B, C, *S) in [-1, 1]."""
        return self.reconstruct(output).clamp(-1, 1)

    def losses(self, output: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Float32 decoder output, x (B, C, *S) -> the head's own losses by name; none by default."""
        return {}

    def weights(self) -> dict[str, float]:
        """Weights of its own losses by name."""
        return {}

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        """Further figures, by registered names, from the means of its own losses over a set; none by default."""
        return {}


class Pixels(Head):
    """The decoder puts out x_hat itself."""

    def decoder_channels(self, channels: int) -> int:
        return channels

    def reconstruct(self, output: Tensor) -> Tensor:
        return output.float()
