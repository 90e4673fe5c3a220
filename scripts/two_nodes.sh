#!/usr/bin/env bash
# Two machines in one: torchrun over two network namespaces that only a cable joins, a process in each.
# Checks that both end well and that one whole run folder is left. Needs Linux, root and iproute2 (ip).
# Usage: bash scripts/two_nodes.sh [overrides of train.py]     PYTHON=... chooses the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" = 0 ] || { echo "error: network namespaces need root; run this with sudo" >&2; exit 2; }
command -v ip >/dev/null || { echo "error: there is no ip command; install iproute2" >&2; exit 2; }
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
folder=$(mktemp -d)
nodes=("vqvae$$a" "vqvae$$b")
cables=("vq$$a" "vq$$b") # an interface's name has 15 letters at most
pids=()

clean() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for node in "${nodes[@]}"; do ip netns delete "$node" 2>/dev/null || true; done # and its end of the cable
  rm -rf "$folder"
}
trap clean EXIT
trap 'exit 130' INT TERM

for node in "${nodes[@]}"; do
  ip netns add "$node" || { echo "error: this machine lets nobody make network namespaces" >&2; exit 2; }
  ip -n "$node" link set lo up
done
ip link add "${cables[0]}" netns "${nodes[0]}" type veth peer name "${cables[1]}" netns "${nodes[1]}"
for i in 0 1; do
  ip -n "${nodes[i]}" address add "10.99.0.$((i + 1))/24" dev "${cables[i]}"
  ip -n "${nodes[i]}" link set "${cables[i]}" up
done

hosts=(true false) # by its own rule torchrun asks the host name, which is the same in both
for i in 0 1; do
  GLOO_SOCKET_IFNAME=${cables[i]} OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES='' \
    timeout 240 ip netns exec "${nodes[i]}" "$python" -m torch.distributed.run --nnodes=2 --nproc-per-node=1 \
    --rdzv-backend=c10d --rdzv-endpoint=10.99.0.1:29400 --rdzv-id=two_nodes \
    --rdzv-conf="is_host=${hosts[i]},join_timeout=60" --local-addr="10.99.0.$((i + 1))" \
    train.py logger=off debug=fast data.train_count=96 data.val_count=20 "run_dir=$folder/run" "$@" \
    >"$folder/node$i.txt" 2>&1 &
  pids+=($!)
done
status=0
for i in 0 1; do
  code=0
  wait "${pids[i]}" || code=$?
  echo "node $i ended with $code"
  [ "$code" = 0 ] || { status=1 && tail -n 20 "$folder/node$i.txt"; }
done
[ "$status" = 0 ] || exit 1
"$python" - "$folder/run" <<'PYTHON'
import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
for stage in ("autoencoder", "prior"):
    lines = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4], f"{stage}: steps {[line['step'] for line in lines]}"
    assert len(list((run / stage).glob("weights-*.pt"))) == 1, f"{stage}: no weights"
assert not [*run.rglob("*.tmp")], "files that are not whole"
figures = json.loads((run / "summary.json").read_text())["figures"]
print(f"one whole run folder: {len(figures)} figures, psnr_db {figures['autoencoder/psnr_db']['value']:.2f}")
PYTHON
