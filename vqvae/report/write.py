"""Writes the report at the end of a run, and of runs that are named."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqvae import distributed
from vqvae.config.sweep import read_jobs
from vqvae.data.loader import ItemLoader
from vqvae.errors import UserError
from vqvae.inference.trained_model import TrainedModel
from vqvae.report.contents import Contents, gather
from vqvae.report.page import write_page
from vqvae.run import report
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run

log = logging.getLogger(__name__)

NAME = "report.html"
MOST_RUNS = 24


def results_of(run: Run) -> tuple[dict[str, Any] | None, Path | None]:
    """The figures of a finished run by name, on rank 0, and its report: those that it has, or new ones. Call it on all ranks.

    Those that it has are taken if they are of its weights.
    """
    page, figures = written_report(run), report.kept_figures(run)
    if figures is not None and (page is not None or not run.cfg.report):
        return figures, page
    log.info("results: measuring, drawing pictures%s", ", writing report.html" if run.cfg.report else "")
    trained = run.trained_model()
    figures = report.summarize(run, trained)
    return figures, report_end(run, trained) if run.cfg.report else None


def written_report(run: Run) -> Path | None:
    """The report of a run, if it is not older than its summary; else None. The same on all ranks."""
    page, summary = run.folder.path / NAME, run.folder.path / "summary.json"
    fresh = page.is_file() and summary.is_file() and page.stat().st_mtime_ns >= summary.stat().st_mtime_ns
    return page if distributed.broadcast_object(fresh) else None


def report_end(run: Run, trained: TrainedModel) -> Path:
    """Write the report of a run that has ended, for train.py, and return its file. Call it on all ranks.

    A finished run that is started again without its data keeps the report that it has, which shows more.
    """
    file = run.folder.path / NAME
    if not run.known.is_there("val") and file.is_file():
        return file
    loader = run.loader("val") if run.known.is_there("val") else None
    if distributed.is_main():
        write_page(file, [gather(run, run.folder.path.name, trained, loader, None)])
    return file


def report_runs(
    named: Sequence[str], out: Path | None, allow_targets: list[str], places: dict[str, Any], most: int | None
) -> Path:
    """Write one report of the runs `named`, and of all jobs of a sweep's folder among them. Returns its file.

    out: None: in the folder of the run, or of the sweep; of several, here. places: where the data is now.
    most: validation items that are measured; None: as many as do not take long. Raises UserError where no run is.
    """
    folders: list[Path] = []
    failed: dict[str, str] = {}
    for path in map(Path, named):
        jobs = sorted(config.parent for config in path.glob("*/config.yaml"))
        is_sweep = bool(jobs) and not (path / "config.yaml").is_file()
        folders += jobs if is_sweep else [path]
        failed |= {job.name: job.error for job in read_jobs(path) if job.error is not None} if is_sweep else {}
    folders = list(dict.fromkeys(folders))
    if len(folders) > MOST_RUNS:
        raise UserError(f"a report shows at most {MOST_RUNS} runs, and these are {len(folders)}: name those to compare")
    runs = [Run(RunFolder.load(folder, allow_targets, places=places)) for folder in folders]
    file = out or (Path(named[0]) if len(named) == 1 else Path()) / NAME
    short = [folder.resolve().name for folder in folders]
    longer = [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, short)]
    names = [
        name if short.count(name) == 1 else more if longer.count(more) == 1 else str(path)
        for path, name, more in zip(folders, short, longer)
    ]
    write_page(file, [opened(run, name, most) for run, name in zip(runs, names)], failed)
    return file


def opened(run: Run, name: str, most: int | None) -> Contents:
    """What the page says of a run that may not be finished, and whose data may be gone."""
    trained: TrainedModel | None = None
    loader: ItemLoader | None = None
    problems = []
    if run.folder.weights_file("autoencoder") is not None:
        try:
            trained = run.trained_model()
            loader = run.loader("val")
        except (UserError, OSError) as error:
            problems.append(str(error))
    contents = gather(run, name, trained, loader, most)
    contents.missing = list(dict.fromkeys([*contents.missing, *problems]))  # the codes may miss the same data
    return contents
