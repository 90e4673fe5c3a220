"""Losses on the decoder's output."""
