"""Train a VQ-VAE and a prior on its codes, in one run folder. `python train.py --help` shows how."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import open_dict

from vqvae.config.compose import check_train, resolve
from vqvae.config.program import entry_point, typed_overrides, without_places
from vqvae.config.sweep import in_sweep
from vqvae.errors import TooManyUnreadable, UserError
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import printable, say


@entry_point("train")
def main(cfg: Any) -> float | None:
    """Train the stages that are not finished, then write the summary. Returns the monitored metric, for Hydra's sweepers."""
    check_train(resolve(without_places(cfg)))

    with own_folder():  # no library finds its code or settings in the current one
        from tqdm.contrib.logging import logging_redirect_tqdm

        from vqvae import distributed
        from vqvae.report.write import results_of
        from vqvae.run.last_screen import last_screen
        from vqvae.run.lock import locked
        from vqvae.run.process import set_up_process
        from vqvae.run.report import monitored, write_summary
        from vqvae.run.start import start_run
        from vqvae.run.sweep_job import folder_of_job
        from vqvae.run.train import train_autoencoder, train_prior
        from vqvae.training.stop import Stopped, StopRequest

    with StopRequest() as stop:
        try:
            set_up_process(cfg.device)
            distributed.init()
            overrides = typed_overrides()
            adopt_config(cfg, overrides)
            own = folder_of_job(cfg) if in_sweep() else cfg.run_dir and Path(cfg.run_dir)
            with locked(own) as path:
                cfg.run_dir = str(path)
                run = start_run(cfg, overrides, in_sweep())
                with logging_redirect_tqdm():
                    if "autoencoder" in run.cfg.stages:
                        train_autoencoder(run, stop)
                    if "prior" in run.cfg.stages:
                        train_prior(run, run.tokenizer(), stop)
                    figures, page = results_of(run)
                if figures is None:
                    return None
                say(last_screen(run, figures, page))
                return monitored(figures)
        except TooManyUnreadable as error:
            write_summary(Path(cfg.run_dir), error.counts, {})
            raise
        except Stopped as stopped:
            own = f"run_dir={cfg.run_dir}" if cfg.run_dir else "with the same overrides"
            on = "the same command continues the sweep" if in_sweep() else f"python train.py {own} continues"
            if distributed.is_main():
                with suppress(OSError):  # the terminal is closed
                    sys.stderr.write(printable(f"{stopped}; {on}") + "\n")
            stop.exit()
        finally:
            distributed.shutdown()


def adopt_config(cfg: Any, overrides: list[str]) -> None:
    """Take over data, model, quantizer, loss and adversary of the run that `tokenizer` names, if it names one."""
    if cfg.tokenizer is None:
        return

    from vqvae.run.folder import RunFolder

    other = RunFolder.load(cfg.tokenizer, list(cfg.allow_targets), "tokenizer")
    if other.weights_file("autoencoder") is None:
        raise UserError(f"tokenizer={cfg.tokenizer} has no finished autoencoder")
    brought = ("data", "model", "quantizer", "loss", "adversary")
    added = [override for override in overrides if override.startswith("++data.")]  # what conditions of the prior need
    own = {key: cfg.data[key] for key in (one.removeprefix("++data.").partition("=")[0] for one in added)}
    for override in overrides:
        if override in added:
            continue
        group = override.lstrip("+~").split("=")[0].split(".")[0].split("/")[0]
        if group in brought:
            raise UserError(f"{override} does not go with tokenizer={cfg.tokenizer}, which brings its own; drop it")
    for key in brought:
        cfg[key] = other.config[key]
    with open_dict(cfg):
        cfg.data.update(own)


if __name__ == "__main__":
    main()
