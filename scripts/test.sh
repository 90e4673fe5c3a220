#!/usr/bin/env bash
# Lint, types and all tests that are not slow. Arguments go to pytest: `scripts/test.sh -m slow` runs the slow ones.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
export OMP_NUM_THREADS=1 GOMP_SPINCOUNT=10000 # the tests' networks are tiny: on a busy machine two threads wait for each other
[ $# -gt 0 ] || set -- -n auto --maxprocesses 4 --dist worksteal -m "not slow"
exec .venv/bin/python -m pytest -q "$@"
