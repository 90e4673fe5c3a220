"""The page: contents of runs -> HTML in one file, with its style, its script and its pictures inside."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from vqvae import __version__
from vqvae.metrics.registry import find, without_split
from vqvae.report.charts import MOST_POINTS, Chart, Line, histogram, label
from vqvae.report.codes import COLUMNS
from vqvae.report.contents import Contents, Figure
from vqvae.report.places import hider
from vqvae.report.settings import changed_settings
from vqvae.run.folder import STAGES
from vqvae.run.plots import panels_of
from vqvae.run.sweep import shown_columns
from vqvae.storage.files import write_bytes
from vqvae.surroundings.terminal import printable, printable_lines

HERE = Path(__file__).resolve().parent
MOST_BYTES = 5_000_000
MOST_BINS = 40
PICTURE = "data:image/"  # how the address of one inside of the page begins


class Amount(NamedTuple):
    """How many pictures a run may have: items, the best and the worst of them, codes of a map."""

    items: int
    extremes: int
    codes: int


AMOUNTS = [Amount(16, 8, 256), Amount(8, 4, 128), Amount(4, 2, 64), Amount(2, 1, 16), Amount(0, 0, 0)]


def write_page(file: Path, runs: list[Contents], failed: dict[str, str] | None = None) -> None:
    """Write the page of one or several runs. failed: names of jobs of a sweep -> why they failed."""
    write_bytes(file, page(runs, failed or {}).encode())


def page(runs: list[Contents], failed: dict[str, str]) -> str:
    """HTML with as many pictures as there is room for. All text is escaped, and only the page's own script may run."""
    style, script = (Markup((HERE / name).read_text()) for name in ("page.css", "page.js"))
    about = {
        "runs": runs,
        "several": len(runs) > 1,
        "failed": failed,
        "headlines": {run.name: headline(run) for run in runs},
        "settings": changed_settings([run.config for run in runs]),
        "configs": {run.name: yaml.safe_dump(run.config, sort_keys=False) for run in runs},
        "curves": curves(runs),
        "psnr_charts": psnr_charts(runs),
        "figures": figure_tables(runs),
        "histograms": {run.name: histograms(run) for run in runs},
        "columns": COLUMNS,
        "made": f"{time.strftime('%Y-%m-%d %H:%M')} by vqvae {__version__}",
        "style": style,
        "script": script,
        "digest": Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
    }
    whole = template(hider(runs))
    for amount in AMOUNTS:
        text = whole.render(**about, amount=amount)
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def template(hide: Callable[[str], str]) -> Template:
    """The template of the page, which escapes whatever is put into it. hide: takes paths of this machine out of a text."""

    def written(value: Any) -> Any:
        """Text in which nothing changes the direction of writing or cannot be encoded. Markup stays as it is."""
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return value if not plain else value if value.startswith(PICTURE) else printable_lines(hide(value))

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, finalize=written, trim_blocks=True
    )
    environment.filters["label"] = label
    return environment.get_template("page.html")


def headline(run: Contents) -> list[Figure]:
    """The figures that the table of a sweep shows, too."""
    known = {figure.name: figure for listed in list(run.figures.values())[::-1] for figure in listed}
    return [known[name] for name in shown_columns(list(known))]


def curves(runs: list[Contents]) -> list[tuple[str, list[Chart]]]:
    """Charts of each stage over its steps, one for each panel of the registry; lines of several runs have their colors."""
    found = []
    for stage in STAGES:
        logs = [run.lines.get(stage, []) for run in runs]
        names = {name for log in logs for line in log for name, value in line.items() if not isinstance(value, dict)}
        steps = [float(line["step"]) for log in logs for line in log]
        span, charts = (min(steps, default=0.0), max(steps, default=0.0)), []
        for title, members in panels_of(names).items():
            lines = [
                Line(
                    f"{printable(run.name)}: {name}" if len(runs) > 1 else name,
                    [(line["step"], line[name]) for line in log if name in line],
                    color=r if len(runs) > 1 else m,
                    dash=m if len(runs) > 1 else 0,
                )
                for r, (run, log) in enumerate(zip(runs, logs))
                for m, name in enumerate(members)
            ]
            charts.append(Chart(title, lines, x_values=span))
        if charts:
            found.append((stage, charts))
    return found


def histograms(run: Contents) -> list[Chart]:
    """The histograms of a run's last evaluation that have a panel in the registry."""
    charts = []
    for lines in run.lines.values():
        evaluations = [line for line in lines if any(isinstance(value, dict) for value in line.values())]
        for name, bins in evaluations[-1].items() if evaluations else []:
            figure, split = without_split(name)
            entry = find(figure)
            if not isinstance(bins, dict) or split != "val" or len(bins["counts"]) > MOST_POINTS:
                continue
            if entry is not None and entry.panel is not None:
                charts.append(histogram(figure, bins["edges"], bins["counts"], "of the split", entry.panel))
    return charts


def psnr_charts(runs: list[Contents]) -> dict[str, Chart]:
    """The distribution of the PSNR of items, of each run that has some; all over the same range."""
    measured = {run.name: run.items.psnr for run in runs if run.items is not None}
    span = [float(bound) for psnr in measured.values() for bound in (psnr.min(), psnr.max())]
    charts = {}
    for name, psnr in measured.items():
        bins = min(MOST_BINS, math.ceil(len(psnr) ** 0.5))
        low, high = float(psnr.min()), max(float(psnr.max()), float(psnr.min()) + 0.01)
        edges, counts = torch.linspace(low, high, bins + 1).tolist(), psnr.float().histc(bins, low, high).tolist()
        charts[name] = histogram("PSNR of single items", edges, counts, "items", "dB", span)
    return charts


class Row(NamedTuple):
    """A figure of all runs: its entry, the value of each run or None, and the best of them where there is one."""

    figure: Figure
    values: list[float | None]
    best: float | None


def figure_tables(runs: list[Contents]) -> list[tuple[str, list[Row]]]:
    """A table for each place that figures are from."""
    sources = dict.fromkeys(source for run in runs for source in run.figures)
    return [(source, rows_of([run.figures.get(source, []) for run in runs])) for source in sources]


def rows_of(listed: list[list[Figure]]) -> list[Row]:
    """Figures of each run -> a row for each name."""
    by_name = [{figure.name: figure for figure in figures} for figures in listed]
    known = {name: figure for of_run in reversed(by_name) for name, figure in of_run.items()}
    rows = []
    for name, figure in known.items():
        values = [of_run[name].value if name in of_run else None for of_run in by_name]
        there = [value for value in values if value is not None]
        choose = {"higher": max, "lower": min}.get(figure.better)
        rows.append(Row(figure, values, choose(there) if choose and len(there) > 1 else None))
    return rows
