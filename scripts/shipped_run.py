"""Makes the small run that comes with the package (run_dir=shapes) again: trains it, and copies what others need of it.

python scripts/shipped_run.py                     both stages, into runs/shapes_small and vqvae/shipped/shapes
python scripts/shipped_run.py run_dir=runs/other  a run of experiment=shapes_small that is there, or is continued
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "vqvae" / "shipped" / "shapes"
WHOLE = (
    "config.yaml",
    "data.json",
    "machine.json",
    "summary.json",
    "variance-*.pt",
    "*/weights-*.pt",
    "*/timing.jsonl",
)
EVALUATED = "*/metrics.jsonl"  # only the lines of evaluations: the others are 30 times as long


def copy_run(run: Path, target: Path) -> None:
    """Copy the files of a finished run that loading, sampling, evaluating and going on from it need."""
    shutil.rmtree(target, ignore_errors=True)
    for source in (file for pattern in (*WHOLE, EVALUATED) for file in sorted(run.glob(pattern))):
        copy = target / source.relative_to(run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.match(EVALUATED):
            lines = source.read_text().splitlines(keepends=True)
            copy.write_text("".join(line for line in lines if any("val/" in key for key in json.loads(line))))
        else:
            shutil.copyfile(source, copy)
    config = target / "config.yaml"  # where it was trained is nobody's business
    config.write_text(re.sub(r"(?m)^run_dir: .*$", f"run_dir: runs/{target.name}", config.read_text()))


def main() -> None:
    given = [argument.removeprefix("run_dir=") for argument in sys.argv[1:] if argument.startswith("run_dir=")]
    if len(given) != len(sys.argv) - 1:
        raise SystemExit(__doc__)
    run = Path(given[-1] if given else "runs/shapes_small")
    command = [sys.executable, ROOT / "train.py", "experiment=shapes_small", "logger=off", f"run_dir={run}"]
    subprocess.run(command, check=True)
    copy_run(run, TARGET)
    size = sum(file.stat().st_size for file in TARGET.rglob("*") if file.is_file())
    sys.stdout.write(f"{TARGET}: {size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
