"""Modes of sample.py, one module each; `modes` checks the command before torch is imported."""
