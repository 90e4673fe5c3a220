#!/usr/bin/env bash
# Trains a VQ-VAE and a prior on embedded pictures and draws samples. Arguments go to train.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
exec .venv/bin/python train.py "$@"
