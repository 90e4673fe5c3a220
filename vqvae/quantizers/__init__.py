"""Discrete bottlenecks under one contract: see base.py. `vector` is composed of parts, `scalar` and `identity` are whole."""

from vqvae.quantizers.base import Loss, Quantized, Quantizer

__all__ = ["Loss", "Quantized", "Quantizer"]
