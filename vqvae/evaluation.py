"""A finished run measured on any split of its data."""

from __future__ import annotations

from typing import Any

import torch

from vqvae.config import plain
from vqvae.data.code_store import CodeFeed, bits_of_uniform
from vqvae.data.loader import PictureFeed
from vqvae.pipeline import Run
from vqvae.stages.autoencoder import AutoencoderStage
from vqvae.stages.base import evaluate
from vqvae.stages.prior import PriorStage


@torch.no_grad()
def evaluate_run(run: Run, split: str, batch_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> metrics over the whole split, in float32, and what they were measured on. The prior is left out if unfinished."""
    tokenizer, variance = run.tokenizer(), run.variance()
    loader = run.loader(split)
    stage = AutoencoderStage(tokenizer.model, tokenizer.reconstruction, variance)
    metrics = evaluate(stage, PictureFeed(run.data, loader, loader, batch_size, seed=0), batch_size)
    metrics["model_parameters"] = sum(p.numel() for p in tokenizer.model.parameters())
    if run.folder.weights_file("prior"):
        store = run.code_store(tokenizer, split)
        prior = run.prior(tokenizer.model)
        feed = CodeFeed(store, store, batch_size, seed=0, device=run.device)
        metrics |= evaluate(PriorStage(prior, tokenizer.decode), feed, batch_size)
        metrics["bits_per_code_uniform"] = bits_of_uniform(store.codebook_sizes, store.code_shapes)
        metrics["prior_parameters"] = sum(p.numel() for p in prior.parameters())
    about = {
        "run_dir": str(run.folder.path),
        "split": loader.split.name,
        "pictures": len(loader),
        "unreadable_pictures": len(loader.unreadable),
        "data": plain(run.cfg)["data"],
        "training_variance": variance,
        "precision": "float32",
    }
    return metrics, about
