"""Trains a VQ-VAE and a prior on its codes, in one run folder. `python train.py --help` shows how."""

from __future__ import annotations

import sys
from typing import Any

from vqvae.config.compose import check_train, resolve
from vqvae.config.program import entry_point
from vqvae.errors import UserError


@entry_point("train")
def main(cfg: Any) -> float | None:
    """Runs the stages that are not finished yet. Returns the last stage's monitored metric, for Hydra's sweepers."""
    check_train(resolve(cfg))

    from vqvae import distributed
    from vqvae.run.folder import RunFolder
    from vqvae.training.stop import Stopped, StopRequest

    folder = None
    with StopRequest() as stop:
        try:
            distributed.init()
            other = adopt_config(cfg)
            folder = RunFolder.prepare(resolve(cfg))  # now, so that what follows `data` follows the adopted one
            return run_stages(folder, other, stop)
        except Stopped as stopped:
            where = f"with run_dir={folder.path} and the same overrides " if folder else ""
            if distributed.is_main():
                sys.stderr.write(f"{stopped}; python train.py {where}continues\n")
            stop.leave()
        finally:
            distributed.shutdown()


def adopt_config(cfg: Any) -> Any:
    """With `tokenizer=<run_dir>`: takes over that run's data, model, quantizer and loss. Returns its folder, or None.

    `model.search_sweeps` alone may be another: it is about a finished model.
    """
    if cfg.tokenizer is None:
        return None
    from hydra.core.hydra_config import HydraConfig

    from vqvae.run.folder import RunFolder

    other = RunFolder.load(cfg.tokenizer, list(cfg.allow_targets), "tokenizer")
    if other.weights_file("autoencoder") is None:
        raise UserError(f"tokenizer={cfg.tokenizer} has no finished autoencoder")
    brought, sweeps = ("data", "model", "quantizer", "loss"), None
    for override in HydraConfig.get().overrides.task:
        name = override.lstrip("+~").split("=")[0]
        if name == "model.search_sweeps":
            sweeps = cfg.model.search_sweeps
        elif name.split(".")[0].split("/")[0] in brought:
            raise UserError(f"{override} does not go with tokenizer={cfg.tokenizer}, which brings its own; drop it")
    for key in brought:
        cfg[key] = other.config[key]
    if sweeps is not None:
        cfg.model.search_sweeps = sweeps
    return other


def run_stages(folder: Any, other: Any, stop: Any) -> float | None:
    """Checks the whole config, trains what is asked for and not finished, then writes pictures and the summary."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from vqvae.run.pipeline import Run, train_autoencoder, train_prior
    from vqvae.run.report import summarise

    run = Run(folder)
    run.check()
    folder.create()
    if other is not None:
        folder.adopt_tokenizer(other)
    with logging_redirect_tqdm():
        if "autoencoder" in run.cfg.stages:
            train_autoencoder(run, stop)
        tokenizer = run.tokenizer()
        if "prior" in run.cfg.stages:
            train_prior(run, tokenizer, stop)
        return summarise(run, tokenizer)


if __name__ == "__main__":
    main()
