"""mode=nearest: what of the training set each sample is closest to, and whether samples are closer than new images are."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.data.items import center_crop
from vqvae.images import Captions
from vqvae.inference.trained_model import TrainedModel
from vqvae.run.run import Run
from vqvae.sampling.job import Job
from vqvae.surroundings.terminal import say

NEIGHBORS = 3  # shown of each sample, by either distance
HELD_OUT = 256  # validation images that samples are compared with, spread over the split
ELEMENTS = 2**24  # compared at a time: 16 MB of codes, 128 MB of pixels


@dataclass
class Queries:
    """Items (n, C, *S) whose neighbors are searched, and their M code maps (n, *s_m)."""

    items: Tensor
    codes: list[Tensor]


@dataclass
class Neighbors:
    """The k nearest of n queries, nearest first: distances (n, k), and their numbers in the training set (n, k).

    Mirror images of training images have the numbers from the training set's size on.
    """

    distances: Tensor
    numbers: Tensor


def nearest(job: Job) -> None:
    """Writes nearest.png and nearest.npz, and prints how samples and held-out images lie to the training images."""
    settings, run, trained = job.settings, job.run, job.trained
    labels = job.labels()
    samples = Queries(*job.draw(labels))
    store = run.code_store(trained, "val")
    count = min(HELD_OUT, len(store))
    codes = store.codes(torch.arange(count) * len(store) // count)
    held_out = Queries(job.decode(codes), codes)  # reconstructions, because samples come out of the decoder too
    both = Queries(torch.cat([samples.items, held_out.items]), [torch.cat(m) for m in zip(samples.codes, codes)])
    flips = [False, True] if run.cfg.prior.flip else [False]
    neighbors = {"codes": by_codes(run, trained, both.codes, flips), "pixels": by_pixels(run, both.items, flips)}

    n, noun = settings["n"], run.data.noun
    values = "pixels" if noun == "image" else "values"
    shown = [samples.items[:, None], *(training_items(run, near.numbers[:n]) for near in neighbors.values())]
    tiles = torch.cat(shown, dim=1)  # (n, 1 + 2 k, C, *S)
    names = job.captions(labels)
    captions = Captions(
        rows=[f"seed {seed} {name}" for seed, name in zip(job.seeds, names)],
        columns=["sample", *(f"{by} {rank}" for by in neighbors for rank in range(1, NEIGHBORS + 1))],
        note=f"the nearest training {noun}s, by codes and by {values}",
    )
    png = job.write_images("nearest.png", tiles.flatten(0, 1), tiles.shape[1], captions)
    arrays = {f"{name}_{key}": value[:n] for name, near in neighbors.items() for key, value in vars(near).items()}
    arrays |= {f"held_out_{name}_distances": near.distances[n:] for name, near in neighbors.items()}
    maps = {f"codes_{m}": drawn for m, drawn in enumerate(samples.codes)}
    file = job.write_arrays("nearest.npz", items=samples.items, labels=labels, seeds=job.seeds, **maps, **arrays)
    every = sum(m[0].numel() for m in codes)
    say(f"rows of sample, {NEIGHBORS} nearest training {noun}s by codes, and by {values}: {png}\nnumbers: {file}")
    between = "0 .. 255" if samples.items.dtype == torch.uint8 else "-1 .. 1"
    say(verdict(f"codes that differ, of {every}", neighbors["codes"].distances[:, 0], n, noun))
    say(verdict(f"root mean squared error of values {between}", neighbors["pixels"].distances[:, 0], n, noun))


def verdict(unit: str, distances: Tensor, samples: int, noun: str) -> str:
    """Distances (samples + held out,) to the nearest training item, a `noun` -> a sentence of what they show, and no more."""
    own, new = distances[:samples].double(), distances[samples:].double()
    median, median_new = statistics.median(own.tolist()), statistics.median(new.tolist())
    lower = (own[:, None] < new).double().mean() + (own[:, None] == new).double().mean() / 2  # ties count half
    relation = "closer to" if median < median_new else "farther from" if median > median_new else "as close to"
    than = "as" if median == median_new else "than"
    return (
        f"{unit}: samples lie {relation} their nearest training {noun}s {than} held-out {noun}s do (medians {median:.4g} of "
        f"{len(own)} samples, {median_new:.4g} of {len(new)} held-out reconstructions; the sample is the closer one in "
        f"{float(lower):.0%} of all pairs, 50% being no difference); {int((own == 0).sum())} samples are exact copies"
    )


def by_codes(run: Run, trained: TrainedModel, queries: list[Tensor], flips: list[bool]) -> Neighbors:
    """M code maps (n, *s_m) -> the training images, or their mirror images, of which the fewest codes differ."""
    wanted = torch.cat([m.flatten(1) for m in queries], dim=1).to(run.device)  # (n, all codes)

    def distances() -> Iterator[Tensor]:
        for flipped in flips:
            store = run.code_store(trained, "train", flipped=flipped)
            for rows in bar_of(len(store), max(1, ELEMENTS // wanted.numel()), "by codes"):
                codes = torch.cat([m.flatten(1) for m in store.codes(rows)], dim=1).to(run.device)  # (b, all codes)
                yield (wanted[:, None] != codes).sum(2)  # (n, b)

    return smallest(distances())


def by_pixels(run: Run, queries: Tensor, flips: list[bool]) -> Neighbors:
    """Items (n, C, *S) -> the training images, or their mirror images, of the least root mean squared error."""
    wanted = queries.to(run.device).flatten(1).double()  # (n, dims): sums of squares of integers are exact in float64
    lengths = wanted.square().sum(1)[:, None]
    loader = run.loader("train")

    def distances() -> Iterator[Tensor]:
        for flipped in flips:
            chunks = bar_of(len(loader), max(1, ELEMENTS // wanted.shape[1]), "by pixels")
            for images, _ in loader.batches(chunks):
                items = center_crop(images, run.data.size)
                x = (items.flip(-1) if flipped else items).flatten(1).double()  # (b, dims)
                squared = lengths + x.square().sum(1) - 2 * wanted @ x.T  # (n, b)
                yield (squared / wanted.shape[1]).clamp_min(0).sqrt()  # of floats it may be just below 0

    return smallest(distances())


def smallest(chunks: Iterable[Tensor]) -> Neighbors:
    """Distances (n, b) to one chunk of the training set after another -> the NEIGHBORS smallest; of equal ones the first."""
    best: Neighbors | None = None
    start = 0
    for distances in chunks:
        numbers = torch.arange(start, start + distances.shape[1]).expand(len(distances), -1)  # (n, b)
        start += distances.shape[1]
        nearer = distances.cpu()
        if best is not None:
            nearer, numbers = torch.cat([best.distances, nearer], 1), torch.cat([best.numbers, numbers], 1)
        ranked, order = nearer.sort(dim=1, stable=True)
        best = Neighbors(ranked[:, :NEIGHBORS], numbers.gather(1, order[:, :NEIGHBORS]))
    assert best is not None, "a training set is never empty"
    return best


def training_items(run: Run, numbers: Tensor) -> Tensor:
    """Numbers (n, k) -> those training images, or their mirror images, (n, k, C, *S)."""
    loader = run.loader("train")
    count = len(loader)
    images, _ = next(iter(loader.batches([numbers.flatten() % count])))
    items = center_crop(images, run.data.size).cpu()
    mirrored = (numbers.flatten() >= count).view(-1, *[1] * (items.ndim - 1))
    return torch.where(mirrored, items.flip(-1), items).unflatten(0, numbers.shape)  # (n, k, C, *S)


def bar_of(count: int, chunk: int, title: str) -> Iterator[Tensor]:
    """Indices 0 .. count - 1 in chunks, with a bar."""
    with tqdm(total=count, desc=title, unit="item", disable=distributed.bar_hidden()) as bar:
        for rows in torch.arange(count).split(chunk):
            yield rows
            bar.update(len(rows))
