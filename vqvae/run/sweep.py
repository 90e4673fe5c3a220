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
from vqvae.run.tables import table
from vqvae.storage.files import write_bytes

SWEEP_COLUMNS = (
    "psnr_db",
    "ssim",
    "codebook0/perplexity",
    "codebook0/usage",
    "bits_per_code",
    "bits_per_code_bound",
    "bits_per_dim",
    "autoencoder_seconds",
    "error",
)


class SweepSummary(Callback):
    """At the end of a sweep: one table of all its jobs, those that failed with their error, and summary.csv beside them."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        base = Path(config.hydra.sweep.dir)
        finished = {}
        for summary in sorted(base.glob("*/summary.json")):
            try:
                figures = json.loads(summary.read_text())["figures"]
                finished[summary.parent.name] = {name: figures[name]["value"] for name in figures}
            except (ValueError, LookupError, TypeError):
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
        shown = [c for c in columns if c in SWEEP_COLUMNS]
        cells = [[labels.get(row["job"], row["job"]), *(row.get(c, "") for c in shown)] for row in rows]
        counts = f"{len(rows) - len(failed)} finished jobs" + (f" and {len(failed)} failed" if failed else "")
        print(f"\n{counts} in {base}\n{table(['job', *shown], cells)}")
        print(f"all figures: {base / 'summary.csv'}")


def short_names(jobs: list[Job]) -> dict[str, str]:
    """Names of jobs -> the overrides in which they differ."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {job.name: ",".join(o for o in job.overrides if o not in common) or job.name for job in jobs}
