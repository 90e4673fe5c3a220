"""mode=generate: samples of the prior."""

from __future__ import annotations

from vqvae.sampling.classes import choose_labels
from vqvae.sampling.frames import Frames, render, write_gif
from vqvae.sampling.job import Job


def generate(job: Job) -> None:
    """Writes grid.png and samples.npz, and on request single files and progress.gif."""
    settings, names, n = job.settings, job.run.data.class_names, job.settings["n"]
    labels = choose_labels(settings["class"], names, job.seeds)
    frames = Frames(n) if settings["gif"] else None
    items, codes = job.draw(labels, on_progress=frames)
    columns = -(-n // len(names)) if settings["class"] == "all" else min(settings["columns"], n)
    png = job.write_images("grid.png", items, columns)
    maps = {f"codes_{m}": drawn for m, drawn in enumerate(codes)}
    arrays = job.write_arrays("samples.npz", items=items, labels=labels, seeds=job.seeds, **maps)
    if settings["singles"]:
        classes = [f"_{names[label]}" if label >= 0 else "" for label in labels.tolist()]
        job.write_singles([f"{seed:06d}{name}" for seed, name in zip(job.seeds, classes)], items)
    print(f"{n} samples: {png}\nimages and codes: {arrays}")
    if frames is not None:
        file = job.out / "progress.gif"
        write_gif(file, render(frames, job, min(settings["columns"], frames.count)))
        print(f"how the first {frames.count} came about: {file}")
