"""What the page says of a run: what its folder holds, and what its model makes of the data."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vqvae.config.compose import plain
from vqvae.data.loader import ItemLoader
from vqvae.errors import UserError
from vqvae.images import GAP, MARGIN
from vqvae.inference.trained_model import TrainedModel
from vqvae.metrics.registry import find, without_split
from vqvae.metrics.renames import rename
from vqvae.report.charts import label
from vqvae.report.codes import CodeMap
from vqvae.report.items import Items, look_at
from vqvae.report.pictures import Picture, read_png
from vqvae.run.first_lines import classes, codes, parameters, times
from vqvae.run.folder import STAGES
from vqvae.run.machine import noted_machine
from vqvae.run.parts import build_model
from vqvae.run.report import SAMPLES_PER_CLASS, figures
from vqvae.run.run import Run
from vqvae.storage.files import read_own_text
from vqvae.training.hardware import GPU_MEMORY, MEMORY, RATE, SECONDS
from vqvae.training.logger import is_number, read_lines

MOST_FIGURES, MOST_NOTED, LONGEST = 200, 20, 1_000  # figures of a file, facts of a machine, characters of a text
LOG_TAIL = 20_000  # characters of train.log
MEMORIES = {MEMORY: "at most", GPU_MEMORY: "on the GPU at most"}


class Figure(NamedTuple):
    """A figure with the protocol that it was measured by."""

    name: str
    value: float
    protocol: str
    better: str


@dataclass
class Contents:
    """What the page says of one run. `lines`: of metrics.jsonl by stage; `missing`: sentences about what is not there."""

    name: str
    path: str
    state: str = ""
    missing: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, list[Figure]] = field(default_factory=dict)  # by where they are from
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    machine: list[tuple[str, str]] = field(default_factory=list)
    log: str = ""
    samples: list[tuple[str, Picture]] = field(default_factory=list)
    previews: list[tuple[str, Picture]] = field(default_factory=list)
    items: Items | None = None
    maps: list[CodeMap] = field(default_factory=list)


def gather(run: Run, name: str, trained: TrainedModel | None, loader: ItemLoader | None, most: int | None) -> Contents:
    """All that the page says of a run. most: validation items that are measured; None: as many as do not take long.

    trained: None where no stage is finished. loader: of the validation items; None where they are not there.
    """
    found = Contents(name, str(run.folder.path), config=plain(run.cfg))
    summary = read_json(run.folder.path / "summary.json")
    for stage in STAGES:
        with noting(found):
            found.lines[stage] = read_lines(run.folder.stage(stage) / "metrics.jsonl")
    found.state = state_of(run, found)
    found.figures = all_figures(run, summary, found.lines)
    with noting(found):
        found.facts.extend((name, text[:LONGEST]) for name, text in facts(run, trained))
    with noting(found):
        found.machine = machine(run, summary)
        found.log = (read_own_text(run.folder.path / "train.log") or "")[-LOG_TAIL:]
    if trained is not None:
        with noting(found):
            store = run.code_store(trained, "val") if trained.codebook_sizes else None
            if store is not None or loader is not None:
                found.items, found.maps = look_at(run, trained, store, loader, most)
    with noting(found):
        add_pictures(run, found)
    return found


@contextmanager
def noting(found: Contents) -> Iterator[None]:
    """Context in which what the user would be told as an error is listed as missing."""
    try:
        yield
    except (UserError, OSError) as error:
        found.missing.append(str(error))


def state_of(run: Run, found: Contents) -> str:
    """Whether a run is finished, in a word or two. What is not is listed as missing."""
    states = []
    for stage in STAGES:
        if run.folder.weights_file(stage) is not None:
            continue
        if stage not in run.cfg.stages:
            found.missing.append(f"The {stage} was not asked for: stages=[{', '.join(run.cfg.stages)}].")
            continue
        lines = found.lines.get(stage)
        state = f"stopped at step {lines[-1]['step']:,}" if lines else "not begun"
        states.append(f"{stage} {state}")
        found.missing.append(
            f"The {stage} is not finished: {state}. python train.py run_dir={run.folder.path} continues it."
        )
    return ", ".join(states) or "finished"


def facts(run: Run, trained: TrainedModel | None) -> Iterator[tuple[str, str]]:
    """What was trained on what, in words; the data, which may not be known, comes last."""
    model = build_model(run.cfg, run.data, 1.0)[0] if trained is None else trained.model
    yield "model", f"{type(model.quantizers[-1]).__name__}, {parameters(model)}, {codes(run, model)}"
    if trained is not None and trained.prior is not None:
        yield "prior", f"{type(trained.prior).__name__}, {parameters(trained.prior)}"
    counts = " and ".join(f"{run.known.count(name):,} {name}" for name in ("train", "val"))
    size = times([run.data.channels, *run.data.size])
    yield "data", f"{type(run.data).__name__}, {counts} items of {size}{classes(run)}"


def machine(run: Run, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware and times."""
    noted = {"vqvae": summary.get("version", "not noted"), **noted_machine(run.folder.path)}
    said = [(key, str(value)[:LONGEST]) for key, value in noted.items()][:MOST_NOTED]
    for stage in STAGES:
        lines = read_lines(run.folder.stage(stage) / "timing.jsonl")
        if not lines:
            continue
        last, rates = lines[-1], [line[RATE] for line in lines if is_number(line.get(RATE))]
        parts = [f"{last['step']:,} steps"]
        parts += [f"{label(last[SECONDS])} s of training"] if is_number(last.get(SECONDS)) else []
        parts += [f"{statistics.median(rates):,.0f} items per second"] if rates else []
        parts += [f"{last[key]:,.0f} MiB {where}" for key, where in MEMORIES.items() if is_number(last.get(key))]
        said.append((stage, ", ".join(parts)))
    return said


def all_figures(run: Run, summary: dict[str, Any], lines: dict[str, list[dict[str, Any]]]) -> dict[str, list[Figure]]:
    """Figures by where they are from: the summary, or else the last evaluation of each stage; then evaluations."""
    found = {"summary.json": figures_in(summary)}
    if not found["summary.json"]:
        for stage, of_stage in lines.items():
            evaluations = [line for line in of_stage if any(without_split(name)[1] == "val" for name in line)]
            last = evaluations[-1] if evaluations else {}
            metrics = {without_split(n)[0]: value for n, value in last.items() if without_split(n)[1] == "val"}
            found[f"{stage}, step {last.get('step')}"] = figures_in({"figures": figures(metrics)})
    for file in sorted(run.folder.path.glob("evaluation_*.json"))[:10]:
        about = read_json(file)
        items = f", {about['items']:,} items" if type(about.get("items")) is int else ""
        split = f", split '{about['split'][:LONGEST]}'" if isinstance(about.get("split"), str) else ""
        found[f"{file.name}{items}{split}"] = figures_in(about)
    return {source: listed for source, listed in found.items() if listed}


def figures_in(about: dict[str, Any]) -> list[Figure]:
    """The figures of a file that may be a stranger's: what is no number is left out."""
    listed = about.get("figures")
    entries = listed.items() if isinstance(listed, dict) else []
    found: list[Figure] = []
    for name, entry in entries:
        if isinstance(entry, dict) and is_number(entry.get("value")) and len(found) < MOST_FIGURES:
            name, known = rename(name[:LONGEST], "autoencoder"), find(name)
            better = "none" if known is None else known.better
            found.append(Figure(name, entry["value"], str(entry.get("protocol", ""))[:LONGEST], better))
    return found


def add_pictures(run: Run, found: Contents) -> None:
    """Samples by class; and where reconstructions or samples are missing, the last previews of training."""
    sheet, names = read_png(run.folder.path / "samples.png"), run.sample_rows()[0]
    if sheet is not None:
        rows = names or [f"seeds {SAMPLES_PER_CLASS * row} .." for row in range(4)]
        found.samples = [(row[:LONGEST], Picture(one)) for row, one in zip(rows, strips(sheet, len(rows)))]
    elif run.folder.weights_file("prior") is not None:
        found.missing.append(f"There is no samples.png: python train.py run_dir={run.folder.path} makes it.")
    wanted = [("autoencoder", "reconstructions")] * (found.items is None) + [("prior", "samples")] * (sheet is None)
    for stage, kind in wanted:
        for file in sorted((run.folder.stage(stage) / "images").glob(f"{kind}_*.png"))[-1:]:
            if (image := read_png(file)) is not None:
                found.previews.append((f"{stage}/images/{file.name}", Picture(image)))


def strips(sheet: Tensor, rows: int) -> list[Tensor]:
    """The rows of samples.png (3, H, W), as vqvae.images.grid has laid them out, without the names that older ones lack.

    None of a picture that is too small for them.
    """
    step = (sheet.shape[1] - GAP) // rows
    left = GAP + MARGIN if (sheet.shape[2] - GAP) % SAMPLES_PER_CLASS else GAP
    found = [sheet[:, GAP + row * step : (row + 1) * step, left:-GAP] for row in range(rows)]
    return [one for one in found if one.numel()]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a run folder; nothing where there is none, or none that can be read."""
    try:
        about = json.loads(read_own_text(file) or "{}")
    except (UserError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
