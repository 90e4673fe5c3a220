"""mode=complete: an image of which a region is drawn anew, from what is left of its codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.data.waveforms import Sounds
from vqvae.errors import UserError, suggest
from vqvae.images import Captions
from vqvae.priors.sampling import Known
from vqvae.sampling.job import Job, paint
from vqvae.sampling.sources import names_in, read_named
from vqvae.surroundings.terminal import say

HALVES = {  # name -> the data dim, counted from the last, and whether it is the second half
    "left_half": (1, False),
    "right_half": (1, True),
    "top_half": (2, False),
    "bottom_half": (2, True),
}
POOLS: dict[int, Callable[..., Any]] = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


def complete(job: Job) -> None:
    """Writes completions.png and completions.npz, and on request single files."""
    settings, n = job.settings, job.settings["n"]
    names = names_in(settings["image"])
    if len(names) != 1:
        raise UserError(f"mode=complete needs one {job.run.data.noun}, got image={settings['image']}")
    region = region_to_draw(job)
    original, label = read_named(job.run, names[0])
    labels = job.labels()
    if settings["class"] is None and label >= 0 and job.class_names:
        labels = torch.full((n,), label)
    given = job.encode(job.x(original[None]))
    kept = kept_codes(region, given)
    known = Known([m.expand(n, *m.shape[1:]) for m in given], [m.expand(n, *m.shape) for m in kept])
    items, codes = job.draw(labels, known)
    shown = [original[None], paint(original[None], region[None]), job.decode(given), items]
    captions = Captions(tiles=["original", "masked", "decoded", *(f"seed {seed}" for seed in job.seeds)])
    png = job.write_images("completions.png", torch.cat(shown), min(settings["columns"], n + 3), captions)
    arrays = {f"codes_{m}": drawn for m, drawn in enumerate(codes)}
    arrays |= {f"given_{m}": own[0] for m, own in enumerate(given)}
    arrays |= {f"kept_{m}": mask for m, mask in enumerate(kept)}
    file = job.write_arrays("completions.npz", items=items, labels=labels, seeds=job.seeds, mask=region, **arrays)
    if job.writes_singles:
        job.write_singles([f"{seed:06d}" for seed in job.seeds], items)
    count, every = sum(int(mask.sum()) for mask in kept), sum(mask.numel() for mask in kept)
    say(
        f"original, masked, decoded (its reconstruction), and {n} completions that keep {count} of {every} codes: {png}\n"
        f"{job.run.data.noun}s, their codes, and those that were given and kept: {file}"
    )


def region_to_draw(job: Job) -> Tensor:
    """What the settings `keep` or `mask` leave to be drawn, (*S) bool. Raises UserError for what is no such region."""
    settings, data = job.settings, job.run.data
    if settings["keep"] is None:
        return region_of(settings["mask"] or "right_half", data.size)
    if not isinstance(data, Sounds):
        raise UserError(f"keep= is for sounds, and this run's data is {type(data).__name__}: say mask=")
    (length,), rate = data.size, data.sample_rate
    if (kept := round(settings["keep"] * rate)) >= length:
        raise UserError(
            f"keep={settings['keep']:g} leaves nothing to draw: sounds of this run have {length / rate:g} seconds"
        )
    return torch.arange(length) >= kept


def region_of(mask: Any, size: tuple[int, ...]) -> Tensor:
    """A half by its name, or a box from its first to beyond its last position, x before y -> (*S) bool, True within.

    The box is text or a list of numbers: x0,x1 for data of one dim, x0,y0,x1,y1 for two, in positions of the data as the
    model sees it. Raises UserError for anything else, for a box that is empty or reaches beyond the data.
    """
    region = torch.zeros(size, dtype=torch.bool)
    if isinstance(mask, str) and mask in HALVES and HALVES[mask][0] <= len(size):
        dim, second = HALVES[mask]
        half = size[-dim] // 2
        region.narrow(-dim, half if second else 0, size[-dim] - half if second else half).fill_(True)
        return region
    box = numbers_in(mask)
    if box is None or len(box) != 2 * len(size):
        halves = [name for name, (dim, _) in HALVES.items() if dim <= len(size)]
        axes = "xyz"[: len(size)]
        form = ",".join([f"{axis}0" for axis in axes] + [f"{axis}1" for axis in axes])
        raise UserError(f"mask={mask} is no region of this data; {suggest(str(mask), [*halves, form])}")
    for axis, first, beyond, length in zip("xyz", box, box[len(size) :], reversed(size)):
        if not 0 <= first <= beyond <= length:
            raise UserError(
                f"mask={mask}: {axis} goes from {first} to {beyond}, and must go upwards within 0 .. {length}"
            )
        if first == beyond:
            raise UserError(f"mask={mask} is empty: {axis} goes from {first} to {beyond}, the latter not included")
    spans = [slice(first, beyond) for first, beyond in zip(box, box[len(size) :])]
    region[tuple(reversed(spans))] = True
    return region


def numbers_in(mask: Any) -> list[int] | None:
    """'0,0,16,16' or [0, 0, 16, 16] -> its integers, or None."""
    parts = mask.split(",") if isinstance(mask, str) else mask
    try:
        return [int(part) for part in parts]
    except ValueError:
        return None


def kept_codes(region: Tensor, codes: list[Tensor]) -> list[Tensor]:
    """(*S) bool, M maps (B, *s_m) -> M masks (*s_m): True for codes whose patch lies outside of the region altogether.

    The patch of position j of s along a dim of S is floor(j S / s) .. ceil((j + 1) S / s) - 1, which is what adaptive
    pooling takes. (Networks look beyond it.)
    """
    if any(m.ndim - 1 != region.ndim for m in codes):
        raise UserError("mode=complete needs codes with a place in the data, and this model's tokens have none")
    inside = region.float()[None, None]  # (1, 1, *S)
    return [POOLS[region.ndim](inside, m.shape[1:])[0, 0] == 0 for m in codes]
