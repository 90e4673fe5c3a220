#!/usr/bin/env bash
# Makes the figures of docs/results.md again, one after another: hours on a CPU. Called again, it goes on where it was stopped.
#   bash scripts/results.sh OUT                 what needs no data set: the quick start, sounds, the benchmarks of sampling and quantizers
#   CIFAR=folder bash scripts/results.sh OUT    and all that is measured on CIFAR-10: a folder with train/<class>/ and test/<class>/
# OUT holds the runs, <name>.log with each command and all that it said, and results.txt with the end of each, the machine and the date.
set -euo pipefail
OUT=$(realpath -m "${1:?usage: [CIFAR=folder] bash scripts/results.sh OUT}")
[ -z "${CIFAR:-}" ] || CIFAR=$(realpath -e "$CIFAR")
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements-dev.txt
python=.venv/bin/python
cifar=(data=folder "data.root=${CIFAR:-}" data.image_size=32 "data.cache_dir=$OUT/cache")
mkdir -p "$OUT"

result() { # result NAME LINES COMMAND...: run it once, and keep the last LINES of its output
    local name=$1 lines=$2 log="$OUT/$1.log"
    shift 2
    if [ -e "$OUT/$name.done" ]; then
        return
    fi
    echo "$name: $*"
    echo "\$ $*" >"$log"
    if "$@" >>"$log" 2>&1; then
        {
            echo "== $name, $(date +%F), $(git rev-parse --short HEAD 2>/dev/null || echo 'no commit')"
            echo "\$ $*"
            tail -n "$lines" "$log"
        } >>"$OUT/results.txt"
        touch "$OUT/$name.done"
    else
        echo "  failed: see $log" >&2
    fi
}

[ -e "$OUT/results.txt" ] || { lscpu 2>/dev/null | grep -E "Model name|^CPU\(s\)|Flags" | cut -c1-400; $python -c "import torch; print('torch', torch.__version__)"; } >"$OUT/results.txt"
result quickstart 8 $python train.py logger=off "run_dir=$OUT/quickstart"
result tones 8 $python train.py experiment=tones logger=off "run_dir=$OUT/tones"
result sampling 40 $python scripts/benchmark.py sampling
result quantizers 40 $python scripts/benchmark.py quantizers
result heads 12 $python scripts/benchmark.py heads
if [ -n "${CIFAR:-}" ]; then
    result sonnet 8 $python train.py experiment=cifar10_sonnet "stages=[autoencoder]" "${cifar[@]}" logger=off "run_dir=$OUT/sonnet"
    result recipe 8 $python train.py experiment=cifar10 "stages=[autoencoder]" "${cifar[@]}" data.flip=true logger=off "run_dir=$OUT/recipe"
    result bits_per_dim 8 $python train.py experiment=cifar10_bits_small "${cifar[@]}" logger=off "run_dir=$OUT/bits"
    result training 20 $python scripts/benchmark.py training "${cifar[@]}"
    result precision 20 $python scripts/benchmark.py precision "${cifar[@]}"
    result data 20 $python scripts/benchmark.py data "data.root=$CIFAR"
    result compare_quantizers 45 $python scripts/compare_quantizers.py "${cifar[@]}" "run_dir=$OUT/compare_quantizers"
    result compare_losses 10 $python scripts/compare_losses.py "${cifar[@]}" "run_dir=$OUT/compare_losses"
    result compare_priors 10 $python scripts/compare_priors.py --minutes 2 "tokenizer=$OUT/recipe" "run_dir=$OUT/compare_priors"
    result codecs 10 $python scripts/compare_codecs.py "run_dir=$OUT/compare_priors/transformer"
fi
echo "results: $OUT/results.txt"
