#!/usr/bin/env bash
# On a machine with a GPU: is what this project says of GPUs true? At most 9 minutes; ends with a table and figures.json.
#
#   bash scripts/gpu_check.sh OUT [data.root=FOLDER]    FOLDER: CIFAR-10 as JPEG files in class folders, below train/ and test/
#
# Uses the python on the PATH (PYTHON=... names another), without network and without wandb. OUT receives logs and figures.
set -uo pipefail
out=$(realpath -m "${1:?usage: gpu_check.sh OUT [data.root=FOLDER]}")
root=${2:+data.root=$(realpath "${2#data.root=}")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
mkdir -p "$out"
export CUBLAS_WORKSPACE_CONFIG=:4096:8 VQVAE_FIGURES=$out/figures.json PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

part() { # part SECONDS NAME COMMAND...: runs it within the time, with its output in a log
    local limit=$1 name=$2 began=$SECONDS
    shift 2
    echo "== $name"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    echo "   exit $? after $((SECONDS - began)) s"
}

part 80 cuda_tests "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py
tail -n 25 "$out/cuda_tests.log"
part 30 exactness "$python" scripts/benchmark.py exactness
cat "$out/exactness.log"
part 250 benchmark "$python" scripts/benchmark.py gpu
cat "$out/benchmark.log"
data=(data=folder "$root" data.image_size=32 data.workers=14 "data.cache_dir=$out/cache")
if [ -z "$root" ]; then
    echo "   no data.root= was given: the 10,000 steps run on the embedded images"
    data=(data=shapes)
fi
part 60 sonnet "$python" train.py experiment=cifar10_sonnet "${data[@]}" logger=off "stages=[autoencoder]" "run_dir=$out/sonnet"
part 45 default "$python" train.py logger=off "run_dir=$out/default"
part 75 fast_tests "$python" -m pytest -q -p no:cacheprovider -n 12 -m "not slow" -rfE tests
grep -E "^(FAILED|ERROR)|passed|failed" "$out/fast_tests.log" | cut -c1-200 | tail -n 70
"$python" - "$out" <<'END'
import json, sys
from pathlib import Path

out = Path(sys.argv[1])
kept = json.loads((out / "figures.json").read_text()) if (out / "figures.json").exists() else {"figures": {}}
figures = kept["figures"]
for name in ("sonnet", "default"):
    for stage in ("autoencoder", "prior"):
        timing = out / name / stage / "timing.jsonl"
        if timing.exists():
            lines = [json.loads(line) for line in timing.read_text().splitlines()]
            figures[f"{name} {stage}: seconds of training"] = lines[-1]["timing/seconds"]
            rates = sorted(line["timing/items_per_second"] for line in lines[1:])
            figures[f"{name} {stage}: items/s, median"] = rates[len(rates) // 2] if rates else 0
    summary = out / name / "summary.json"
    if summary.exists():
        for key, value in json.loads(summary.read_text())["figures"].items():
            value = value["value"] if isinstance(value, dict) else value
            if isinstance(value, (int, float)):
                figures[f"{name}: {key}"] = value
(out / "figures.json").write_text(json.dumps(kept, indent=1))
width = max(map(len, figures), default=0)
for key, value in figures.items():
    print(f"{key:{width}}  {value:,.3f}")
END
