"""mode=interpolate: from one image to another through the space of what the encoders make of them."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.images import Captions
from vqvae.inference.trained_model import TrainedModel
from vqvae.sampling.job import Job
from vqvae.sampling.sources import names_in, read_named
from vqvae.surroundings.terminal import counted, say

MOST_COLUMNS = 20  # images in a row


def interpolate(job: Job) -> None:
    """Writes interpolation.png and interpolation.npz, and on request single files."""
    names, n = names_in(job.settings["image"]), job.settings["n"]
    if len(names) != 2:
        noun = job.run.data.noun
        raise UserError(f"mode=interpolate needs two {noun}s, such as image=[0,1], got image={job.settings['image']}")
    ends = torch.stack([read_named(job.run, name)[0] for name in names])  # (2, C, *S)
    path = job.run.data.to_items(between(job.trained, job.x(ends), n))
    shown = torch.cat([ends[:1], path, ends[1:]])
    columns = min(len(shown), MOST_COLUMNS)
    between_ends = [f"{i} of {n + 1}" for i in range(1, n + 1)]
    captions = Captions(tiles=["original", "decoded", *between_ends, "decoded", "original"])
    png = job.write_images("interpolation.png", shown, columns, captions)
    file = job.write_arrays("interpolation.npz", items=path, ends=job.run.data.values(ends))
    if job.writes_singles:
        job.write_singles([f"{i:03d}" for i in range(len(path))], path)
    own = counted(n, job.run.data.noun)
    say(
        f"an original, its reconstruction, {own} between, and the other's reconstruction and original: {png}\n"
        f"all but the originals, and these as `ends`: {file}"
    )


def between(trained: TrainedModel, ends: Tensor, count: int) -> Tensor:
    """Interpolate between two x (2, C, *S) in [-1, 1] -> (count + 2, C, *S), from one reconstruction to the other.

    The encoder outputs of every level are interpolated linearly; each point is quantized and decoded.
    """
    weights = torch.linspace(0, 1, count + 2)
    levels = [
        torch.lerp(features[:1], features[1:], weights.view(-1, *[1] * (features.ndim - 1)))  # (count + 2, D, *s_l)
        for features in trained.in_chunks(lambda inputs: trained.model.features(inputs[0]), [ends])
    ]

    def quantize_and_decode(features: list[Tensor]) -> list[Tensor]:
        return [trained.head.to_image(trained.model.from_features(features).decoded)]

    return trained.in_chunks(quantize_and_decode, levels)[0]
