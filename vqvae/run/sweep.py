"""The summary of a sweep."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vqvae.config.sweep import Job, read_jobs
from vqvae.metrics.registry import find
from vqvae.metrics.renames import rename
from vqvae.run.tables import table
from vqvae.storage.files import write_bytes
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import say


class SweepSummary(Callback):
    """At the end of a sweep: one table of all its jobs, those that failed with their error, and summary.csv beside them."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        base = Path(config.hydra.sweep.dir)
        finished = {}
        for summary in sorted(base.glob("*/summary.json")):
            try:
                figures = json.loads(summary.read_text())["figures"]
                finished[summary.parent.name] = {rename(n, "autoencoder"): figures[n]["value"] for n in figures}
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                finished[summary.parent.name] = {"error": f"{summary} is damaged"}
        jobs = read_jobs(base)
        failed = {job.name: {"error": job.error} for job in jobs if job.error is not None}
        rows = [{"job": name, **values} for name, values in {**finished, **failed}.items()]
        if not rows:
            return
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(base / "summary.csv", text.getvalue().encode())
        labels = short_names(jobs)
        shown = shown_columns(columns)
        cells = [[labels.get(row["job"], row["job"]), *(row.get(c, "") for c in shown)] for row in rows]
        counts = f"{len(rows) - len(failed)} finished jobs" + (f" and {len(failed)} failed" if failed else "")
        say(f"\n{counts} in {base}\n{table(['job', *(c.split('/')[-1] for c in shown)], cells)}")
        say(f"all figures: {base / 'summary.csv'}; side by side: python scripts/report.py run_dir={base}")


def shown_columns(columns: list[str]) -> list[str]:
    """The columns that the registry shows in the table: of a family, its first member; and the error."""
    with own_folder():  # torch is not imported yet where jobs ran on other machines
        import vqvae.run.report  # noqa: F401  declares the figures

    first: dict[str, str] = {}  # by entry
    for column in columns:
        entry = find(column)
        if entry is not None and entry.sweep:
            first.setdefault(entry.name, column)
    return [*first.values(), *(c for c in columns if c == "error")]


def short_names(jobs: list[Job]) -> dict[str, str]:
    """Names of jobs -> the overrides in which they differ."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {job.name: ",".join(o for o in job.overrides if o not in common) or job.name for job in jobs}
