"""A finished run measured on any split of its data."""

from __future__ import annotations

import math
from typing import Any

import torch

from vqvae import distributed
from vqvae.config import plain
from vqvae.data.base import Data
from vqvae.data.code_store import CodeFeed, bits_of_uniform
from vqvae.data.loader import PictureFeed, centre_crop
from vqvae.data.sampler import chunks_of_rank
from vqvae.images import normalise
from vqvae.metrics.reconstruction import reconstruction_metrics, reconstruction_sums
from vqvae.pipeline import Run
from vqvae.stages.autoencoder import AutoencoderStage
from vqvae.stages.base import evaluate
from vqvae.tokenizer import Tokenizer


@torch.no_grad()
def evaluate_run(run: Run, split: str, batch_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> metrics over the whole split, in float32, and what they were measured on. The prior is left out if unfinished."""
    tokenizer, variance = run.tokenizer(), run.variance()
    loader = run.loader(split)
    stage = AutoencoderStage(tokenizer.model, tokenizer.reconstruction, variance, run.data.show)
    metrics = evaluate(stage, PictureFeed(run.data, loader, loader, batch_size, seed=0), batch_size)
    metrics |= searched_figures(run, tokenizer, split)
    metrics["model_parameters"] = sum(p.numel() for p in tokenizer.model.parameters())
    if run.folder.weights_file("prior"):
        store = run.code_store(tokenizer, split)
        prior = run.prior(tokenizer.model)
        feed = CodeFeed([], store, batch_size, seed=0, device=run.device)
        metrics |= evaluate(run.prior_stage(prior, tokenizer), feed, batch_size)
        metrics["bits_per_code_uniform"] = bits_of_uniform(store.codebook_sizes, store.code_shapes)
        metrics["prior_parameters"] = sum(p.numel() for p in prior.parameters())
    metrics |= bits_per_dim(metrics, run.data)
    about = {
        "run_dir": str(run.folder.path),
        "split": loader.split.name,
        "pictures": len(loader),
        "unreadable_pictures": len(distributed.any_row(loader.unreadable, len(loader))),
        "data": plain(run.cfg)["data"],
        "training_variance": variance,
        "precision": "float32",
    }
    return metrics, about


@torch.no_grad()
def searched_figures(run: Run, tokenizer: Tokenizer, split: str) -> dict[str, float]:
    """The reconstruction metrics of a split's code store, as `searched_<name>`; none where its codes are the encoder's own.

    Ranks share the work: call it on all of them.
    """
    if not tokenizer.model.search_sweeps:
        return {}
    store, loader = run.code_store(tokenizer, split), run.loader(split)
    nothing = torch.zeros(1, run.data.channels, *run.data.size, device=run.device)
    sums = {name: torch.zeros_like(value) for name, value in reconstruction_sums(nothing, nothing).items()}
    chunks = chunks_of_rank(len(store), 256)
    for indices, (images, _) in zip(chunks, loader.batches(chunks)):
        x = normalise(centre_crop(images, run.data.size))  # (b, C, *S)
        x_hat = tokenizer.decode([one.to(x.device) for one in store.codes(indices)])
        for name, value in reconstruction_sums(x_hat, x).items():
            sums[name] += value
    sums = dict(zip(sums, distributed.all_reduce_sum(list(sums.values()))))
    return {f"searched_{name}": value for name, value in reconstruction_metrics(sums, run.variance()).items()}


def bits_per_dim(metrics: dict[str, Any], data: Data) -> dict[str, float]:
    """Metrics of both stages -> what the codes cost and what the whole picture costs, in bits per dim.

    -log p(x) <= -log p(x | codes(x)) - log p(codes(x)), where the prior may give a bound itself (`_bound` in its names).
    Nothing where the reconstruction loss is no likelihood, or there is no prior.
    """
    found: dict[str, float] = {}
    dims = data.channels * math.prod(data.size)
    for bound in ("", "_bound"):
        if "bits_per_dim_reconstruction" in metrics and f"bits_per_picture{bound}" in metrics:
            codes = metrics[f"bits_per_picture{bound}"] / dims
            found[f"bits_per_dim_codes{bound}"] = codes
            found[f"bits_per_dim{bound}"] = metrics["bits_per_dim_reconstruction"] + codes
    return found
