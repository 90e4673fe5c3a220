#!/usr/bin/env bash
# Train a VQ-VAE and a prior on built-in images and draw samples. Arguments go to train.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
exec .venv/bin/python train.py "$@"
