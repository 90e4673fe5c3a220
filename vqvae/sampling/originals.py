"""mode=reconstruct size=original: images of any size through the tokenizer and back, each into a file of its own."""

from __future__ import annotations

from vqvae.images import x_of
from vqvae.metrics.reconstruction import item_psnr
from vqvae.sampling.job import Job
from vqvae.sampling.reconstruct import report, sweeps_of
from vqvae.sampling.sources import read_originals, single_name
from vqvae.surroundings.terminal import say


def reconstruct_originals(job: Job) -> None:
    """Writes the reconstruction of every image in the data's own units and type, and psnr.csv, and prints a table."""
    rows: list[tuple[str, float]] = []
    skipped: list[str] = []
    taken: set[str] = set()  # names without their endings
    for name, item in read_originals(job.run, job.settings["folder"], job.settings["n"]):
        if isinstance(item, OSError):
            skipped.append(f"{name}: {item}")
            continue
        x = x_of(item[None])
        x_hat = job.trained.reconstruct(x, sweeps_of(job), tile="auto").cpu()
        rows.append((name, float(item_psnr(x_hat, x))))
        job.write_singles([f"{single_name(name, taken)}_reconstructed"], job.run.data.to_items(x_hat))
    report(job, rows, skipped)
    say(f"reconstructions: {job.out}\nall PSNRs: {job.out / 'psnr.csv'}")
