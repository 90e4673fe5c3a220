"""The summary of a sweep."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqvae.config.saved import read_saved
from vqvae.config.sweep import Job, key_of, read_jobs
from vqvae.errors import UserError
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
        settings = varying_settings(base, jobs)
        rows = [{"job": name, **settings.get(name, {}), **values} for name, values in {**finished, **failed}.items()]
        if not rows:
            return
        keys = list(dict.fromkeys(key for own in settings.values() for key in own))
        columns = list(dict.fromkeys(["job", *keys, *(name for row in rows for name in row)]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(base / "summary.csv", text.getvalue().encode())
        shown = [*keys, *shown_columns(columns)]
        cells = [[row["job"], *(row.get(c, "") for c in shown)] for row in rows]
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


def varying_settings(sweep: Path, jobs: list[Job]) -> dict[str, dict[str, str]]:
    """Names of jobs -> the keys in which they differ, with their values; what a job was not told is in its config."""
    given = {job.name: {key_of(one): one.partition("=")[2] for one in job.overrides} for job in jobs}
    every = dict.fromkeys(key for values in given.values() for key in values)
    keys = [key for key in every if len({values.get(key) for values in given.values()}) > 1]
    return {
        name: {key: values[key] if key in values else configured(sweep / name, key) for key in keys}
        for name, values in given.items()
    }


def configured(folder: Path, key: str) -> str:
    """The value of a key in a run's config; nothing where that has no such value, as that of a group."""
    try:
        value = OmegaConf.select(read_saved(folder / "config.yaml"), key)
    except (UserError, OmegaConfBaseException):
        return ""
    return "" if value is None or OmegaConf.is_config(value) else str(value)
