"""Layers of other projects, by their names and with what they return, made of the parts of `quantizers`."""

from vqvae.compat import sonnet, vq_layer

__all__ = ["sonnet", "vq_layer"]
