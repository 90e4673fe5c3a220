"""The end of gpu_check.sh: figures of its runs join those of its benchmark, in one table and one JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RUNS = ("sonnet", "default", "nccl")  # folders
STAGES = ("autoencoder", "prior")


def main(out: Path) -> int:
    """Read what the parts left in `out`, write figures.json there and print it. 1 if a part failed, else 0."""
    file = out / "figures.json"
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"figures": {}}
    for name in RUNS:
        kept["figures"].update(figures_of(out / name, name))
    rows = [line.split("\t") for line in (out / "parts.tsv").read_text().splitlines()]
    kept["parts"] = {name: {"exit": int(code), "seconds": int(seconds)} for name, code, seconds in rows}
    file.write_text(json.dumps(kept, indent=1))
    cells = {name: f"{value:,.3f}" for name, value in kept["figures"].items()}
    cells |= {f"FAILED {name}": reason for name, reason in kept.get("failed", {}).items()}
    for name, part in kept["parts"].items():
        cells[f"part {name}"] = f"{'passed' if part['exit'] == 0 else 'FAILED'} after {part['seconds']} s"
    width = max(map(len, cells))
    print("\n".join(f"{name:{width}}  {cell}" for name, cell in cells.items()))
    return int(any(part["exit"] for part in kept["parts"].values()) or bool(kept.get("failed")))


def figures_of(run: Path, name: str) -> dict[str, float]:
    """Speed and final figures of a run folder, as far as it came."""
    figures: dict[str, float] = {}
    for stage in STAGES:
        timing = run / stage / "timing.jsonl"
        if timing.exists():
            lines = [json.loads(line) for line in timing.read_text().splitlines()]
            figures[f"{name} {stage}: seconds of training"] = lines[-1]["timing/seconds"]
            rates = sorted(line["timing/items_per_second"] for line in lines[1:])
            if rates:
                figures[f"{name} {stage}: items/s, median"] = rates[len(rates) // 2]
    summary = run / "summary.json"
    if summary.exists():
        for key, value in json.loads(summary.read_text()).get("figures", {}).items():
            value = value["value"] if isinstance(value, dict) else value
            if isinstance(value, int | float):
                figures[f"{name}: {key}"] = value
    return figures


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
