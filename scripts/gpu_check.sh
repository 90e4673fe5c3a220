#!/usr/bin/env bash
# On a machine with a GPU: is what this project says of GPUs true? At most 9 minutes; ends with a table and figures.json.
#
#   bash scripts/gpu_check.sh OUT [data.root=FOLDER]    FOLDER: CIFAR-10 as JPEG files in class folders, below train/ and test/
#
# Uses the python on the PATH (PYTHON=... names another), without network and without wandb. OUT receives logs and figures.
# Its exit status is 1 if a part failed.
set -uo pipefail
out=$(realpath -m "${1:?usage: gpu_check.sh OUT [data.root=FOLDER]}")
root=${2:+data.root=$(realpath "${2#data.root=}")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
mkdir -p "$out"
rm -rf "$out"/{figures.json,parts.tsv,sonnet,default,nccl}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 VQVAE_FIGURES=$out/figures.json PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

part() { # part SECONDS NAME COMMAND...: runs it within the time, with its output in a log
    local limit=$1 name=$2 began=$SECONDS code
    shift 2
    echo "== $name"
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    echo "   exit $code after $((SECONDS - began)) s"
    printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - began))" >>"$out/parts.tsv"
}

part 75 cuda_tests "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py
tail -n 25 "$out/cuda_tests.log"
part 25 exactness "$python" scripts/benchmark.py exactness
cat "$out/exactness.log"
part 230 benchmark "$python" scripts/benchmark.py gpu
cat "$out/benchmark.log"
data=(data=folder "$root" data.image_size=32 data.workers=14 "data.cache_dir=$out/cache")
if [ -z "$root" ]; then
    echo "   no data.root= was given: the 10,000 steps run on the embedded images"
    data=(data=shapes)
fi
part 65 sonnet "$python" train.py experiment=cifar10_sonnet "${data[@]}" logger=off "stages=[autoencoder]" "run_dir=$out/sonnet"
part 45 default "$python" train.py logger=off "run_dir=$out/default"
part 30 nccl "$python" -m torch.distributed.run --standalone --nproc_per_node=1 train.py logger=off debug=fast "run_dir=$out/nccl"
part 65 fast_tests "$python" -m pytest -q -p no:cacheprovider -n 12 -m "not slow" -rfE tests
grep -E "^(FAILED|ERROR)|passed|failed" "$out/fast_tests.log" | cut -c1-200 | tail -n 70
"$python" scripts/benchmarks/check_table.py "$out"
