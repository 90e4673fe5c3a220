"""Hydra in, checked config out: composing, checking, building, and what users are told."""

import sys

if not (3, 10) <= sys.version_info < (3, 14):  # hydra-core 1.3 crashes on 3.14
    sys.exit(f"error: this needs Python 3.10 to 3.13, and this is {sys.version.split()[0]}")
