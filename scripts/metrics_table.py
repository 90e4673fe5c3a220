"""Prints docs/metrics.md, made from the registry of figures.

python scripts/metrics_table.py > docs/metrics.md
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import vqvae.run.report
import vqvae.run.train  # noqa: F401  these two declare all figures
from vqvae.metrics.registry import FIGURES, Figure

HEAD = """For readers of `metrics.jsonl`, `timing.jsonl`, `summary.json`, `evaluation_*.json` and wandb.

# Metrics

The meaning of each figure, and how it is measured. This page is made by `python scripts/metrics_table.py > docs/metrics.md`.

A figure is named `<section>/<figure>`. In the logs the split stands second: `autoencoder/psnr_db` is logged as
`autoencoder/val/psnr_db`, and `autoencoder/loss` as `autoencoder/train/loss` and `autoencoder/val/loss`. Times have no split.
`{m}` is a code map and `{level}` a level of the model, both counted from 0; `{stage}` is `autoencoder` or `prior`. Sums
are over all ranks. Names of versions up to 0.1.0 are read as those of today.

Better: the better direction. Plot: the panel of `curves.png`, or the axis of a histogram in `codebook.png`. In: `report` is
`summary.json`, evaluations and their tables, `sweep` the table of a sweep, `dashboard` what wandb and tensorboard show
unless `logger.detail=full`."""


TABLE = ["| figure | how it is measured | better | plot | in |", "|---|---|---|---|---|"]


def section_of(entry: Figure) -> str:
    section = entry.name.split("/")[0]
    return "every stage" if section == "{stage}" else section


def row(entry: Figure) -> str:
    shown = {"report": entry.report, "sweep": entry.sweep, "dashboard": entry.dashboard}
    better = "" if entry.better == "none" else entry.better
    places = ", ".join(place for place, is_shown in shown.items() if is_shown)
    cells = [f"`{entry.name}`", entry.protocol, better, entry.panel or "", places]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def page() -> str:
    parts = [HEAD]
    entries = sorted(FIGURES.values(), key=lambda entry: entry.name)
    for section in sorted({section_of(entry) for entry in entries}):
        rows = [row(entry) for entry in entries if section_of(entry) == section]
        parts.append("\n".join([f"## {section}\n", *TABLE, *rows]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(page())
