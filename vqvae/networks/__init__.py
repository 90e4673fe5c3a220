"""Encoders and decoders: one file per mirrored pair, building blocks in blocks.py."""
