"""mode=reconstruct: anyone's images through the tokenizer and back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.images import Captions
from vqvae.inference.trained_model import CHUNK
from vqvae.metrics.reconstruction import item_psnr
from vqvae.run.tables import table
from vqvae.sampling.job import Job
from vqvae.sampling.sources import read_many, single_name
from vqvae.storage.files import write_bytes
from vqvae.surroundings.terminal import counted, say

MOST_SHOWN = 64  # items in the PNG, and lines of the table


def reconstruct(job: Job) -> None:
    """Write reconstructions.png, each image beside its own, psnr.csv, and on request single files, and print a table."""
    search, skipped = sweeps_of(job), list[str]()
    shown, rows, taken = [], [], set[str]()
    for names, items in chunks(read_many(job.run, job.settings["folder"], job.settings["n"]), skipped):
        x = job.x(items)
        x_hat = job.trained.in_chunks(lambda inputs: [job.trained.reconstruct(inputs[0], search)], [x])[0]
        rows += list(zip(names, item_psnr(x_hat, x.cpu()).tolist()))
        made = job.run.data.to_items(x_hat)
        if job.writes_singles:
            singles = [single_name(name, taken) for name in names]
            for kind, of_kind in (("original", items), ("reconstructed", made)):
                job.write_singles([f"{name}_{kind}" for name in singles], of_kind)
        if len(rows) - len(names) < MOST_SHOWN:
            shown.append(torch.stack([items, made], dim=1).flatten(0, 1))  # (2 b, C, *S)
    report(job, rows, skipped)
    columns = 2 * max(1, min(job.settings["columns"] // 2, len(rows)))
    tiles = [text for name, psnr in rows[:MOST_SHOWN] for text in (name.rpartition("/")[2], f"{psnr:.2f} dB")]
    note = f"the first {MOST_SHOWN} of {len(rows):,}: " if len(rows) > MOST_SHOWN else ""
    captions = Captions(tiles=tiles, note=f"{note}originals, each beside its reconstruction and PSNR")
    png = job.write_images("reconstructions.png", torch.cat(shown)[: 2 * MOST_SHOWN], columns, captions)
    say(f"originals and reconstructions, side by side: {png}\nall PSNRs: {job.out / 'psnr.csv'}")


def sweeps_of(job: Job) -> int:
    """Sweeps of code search that the command asks for, or else the run."""
    return job.run.cfg.search_sweeps if job.settings["search"] is None else job.settings["search"]


def report(job: Job, rows: list[tuple[str, float]], skipped: list[str]) -> None:
    """Write psnr.csv and print a table of names and PSNRs, their mean, and what was skipped. Raises UserError without rows."""
    for line in skipped[:MOST_SHOWN]:
        say(f"skipped {line}")
    if not rows:
        raise UserError(f"folder={job.settings['folder']} holds no file that can be read ({len(skipped)} skipped)")
    text = io.StringIO()
    noun = job.run.data.noun
    csv.writer(text).writerows([(noun, "psnr_db"), *rows])
    write_bytes(job.out / "psnr.csv", text.getvalue().encode())
    say(table([noun, "psnr_db"], [list(row) for row in rows[:MOST_SHOWN]]))
    mean = sum(psnr for _, psnr in rows) / len(rows)
    say(f"mean PSNR of {counted(len(rows), noun)}: {mean:.2f} dB, {counted(len(skipped), 'file')} skipped")


def chunks(images: Iterable[tuple[str, Tensor | OSError]], skipped: list[str]) -> Iterator[tuple[list[str], Tensor]]:
    """Names and items -> names and items (b, C, *S), up to CHUNK at a time; what could not be read goes to `skipped`."""
    names: list[str] = []
    items: list[Tensor] = []
    for name, item in images:
        if isinstance(item, OSError):
            skipped.append(f"{name}: {item}")
            continue
        names, items = [*names, name], [*items, item]
        if len(items) == CHUNK:
            yield names, torch.stack(items)
            names, items = [], []
    if items:
        yield names, torch.stack(items)
