"""mode=generate: samples of the prior."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from vqvae.images import Captions, write_gif
from vqvae.sampling.frames import Frames, render
from vqvae.sampling.job import MOST_SHOWN, Drawn, Job, join
from vqvae.surroundings.terminal import say

SHARD = 10_000  # samples of a file, or a few more, because chunks are not divided


def generate(job: Job) -> None:
    """Write grid.png and samples.npz, or several such files for many samples; on request single files and progress.gif.

    Samples are decoded and written while the next ones are drawn. Memory holds no more than three files' samples.
    """
    settings, names, n = job.settings, job.class_names, job.settings["n"]
    labels = job.labels()
    frames = Frames(n) if settings["gif"] else None
    chosen, columns = shown_of(n, len(names) if settings["class"] == "all" else 0, settings["columns"])
    shown, files, start = [], [], 0
    with ThreadPoolExecutor(1) as writer:
        pending: Future[Path] | None = None
        for items, codes in shards(job.draw_chunks(labels, on_progress=frames)):
            shown.append(items[chosen[(chosen >= start) & (chosen < start + len(items))] - start])
            if pending is not None:
                files.append(pending.result())
            pending = writer.submit(write, job, start, labels[start : start + len(items)], items, codes)
            start += len(items)
        assert pending is not None, "n is at least 1"
        files.append(pending.result())
    of_them = f" ({len(chosen):,} of them)" if len(chosen) < n else ""
    classes = job.captions(labels[chosen])
    asked = [f"{name} {value}" for name, value in job.conditions.items()]
    note = "; ".join([*([f"{len(chosen):,} of {n:,} samples"] if of_them else []), *asked])
    by_rows = settings["class"] == "all" and names
    captions = (
        Captions(rows=classes[::columns], note=note) if by_rows else Captions(tiles=classes if names else (), note=note)
    )
    png = job.write_images("grid.png", torch.cat(shown), columns, captions)
    say(f"{n:,} samples: {png}{of_them}")
    if job.writes_singles:
        say(f"a file of each: {job.out}")
    say(f"items and codes: {files[0]}" + (f" .. {files[-1].name}" if len(files) > 1 else ""))
    if frames is not None:
        file = job.out / "progress.gif"
        tiles = job.captions(labels[: frames.count]) if names else []
        write_gif(file, render(frames, job, min(settings["columns"], frames.count), Captions(tiles=tiles)))
        say(f"how the first {frames.count} came about: {file}")


def write(job: Job, start: int, labels: Tensor, items: Tensor, codes: list[Tensor]) -> Path:
    """Write the samples from number `start` on; returns the file of all."""
    seeds = job.seeds[start : start + len(items)]
    if job.writes_singles:
        classes = [f"_{name}" if name else "" for name in job.captions(labels)]
        job.write_singles([f"{seed:06d}{name}" for seed, name in zip(seeds, classes)], items)
    name = "samples.npz" if len(items) == job.settings["n"] else f"samples_{start:06d}.npz"
    maps = {f"codes_{m}": drawn for m, drawn in enumerate(codes)}
    return job.write_arrays(name, items=items, labels=labels, seeds=seeds, **maps)


def shards(chunks: Iterable[Drawn]) -> Iterator[Drawn]:
    """Join chunks until they hold SHARD samples, and again."""
    joined: list[Drawn] = []
    for chunk in chunks:
        joined.append(chunk)
        if sum(len(items) for items, _ in joined) >= SHARD:
            yield join(joined)
            joined = []
    if joined:
        yield join(joined)


def shown_of(n: int, classes: int, columns: int) -> tuple[Tensor, int]:
    """Numbers of the samples that the grid shows, and its columns. `classes`: that of rows of equal classes; 0: no such rows.

    All are shown, or of more than MOST_SHOWN the first of each class, or the first.
    """
    per_row = -(-n // classes) if classes else min(columns, n)
    kept = per_row if n <= MOST_SHOWN else min(columns, per_row)
    rows = torch.arange(0, n, per_row)
    if n > MOST_SHOWN:
        rows = rows[: max(1, MOST_SHOWN // kept)]
    numbers = (rows[:, None] + torch.arange(kept)).flatten()
    return numbers[numbers < n], kept
