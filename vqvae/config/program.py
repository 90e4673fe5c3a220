"""The entry point of a command-line program: errors of users end in one line, bugs keep their traceback."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from vqvae.config.compose import CONFIGS, check_group_choices
from vqvae.config.help import page
from vqvae.config.hints import check_options
from vqvae.config.messages import ANOTHER_HAS_ENDED, user_message
from vqvae.config.sweep import in_sweep, record_job, sweep_folder
from vqvae.config.typed import as_hydra_reads, values_of
from vqvae.shipped.runs import with_shipped
from vqvae.surroundings.terminal import PrintableFormatter, printable

PLACES = ("data.root=", "data.path=", "data.urls=", "data.val_urls=", "data.most_unreadable=", "data.most_pixels=")
CONDITIONS = ("data.vectors=", "data.attributes=")
RANK_0_SPEAKS_SECONDS = 3
# Rounds that a thread waits awake for the others, which OpenMP reads when torch is imported. Its own number is so large that
# threads hold the cores on which those that they wait for should run, where there is other work (docs/experiments.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorator: turns a function of a config into a program that reads configs/<config_name>.yaml and its arguments.

    A user's mistake ends the program with one line and exit code 2. In a sweep, the other jobs go on.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def job(cfg: DictConfig) -> Any:
            try:
                result = function(cfg)
            except Exception as error:
                message = user_message(error, config_name)
                if in_sweep():
                    return end_job_of_sweep(Path(cfg.run_dir), error, message)
                if message is None:
                    raise
                fail(message)
            finally:
                end_workers()
            if in_sweep():
                record_job(Path(cfg.run_dir), error=None)
            return result

        def program() -> None:
            if logging.lastResort is not None:  # what programs without a log say
                logging.lastResort.setFormatter(PrintableFormatter())
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises errors instead of printing them
            try:
                check_options(sys.argv[1:], config_name)
                if config_name != "train" and {"--help", "-h"} & set(sys.argv[1:]):
                    sys.stdout.write(f"{page(config_name)}\n")
                    return
                sys.argv[1:] = with_shipped(as_hydra_reads(sys.argv[1:]), config_name)
                check_group_choices(sys.argv[1:])
                trains = config_name == "train"
                with sweep_folder(with_places(sys.argv[1:])) if trains else nullcontext(sys.argv[1:]) as arguments:
                    sys.argv[1:] = arguments
                    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            except Exception as error:
                message = user_message(error, config_name)
                if message is None:
                    raise
                fail(message)
            except KeyboardInterrupt:
                sys.stderr.write("interrupted\n")
                raise SystemExit(130) from None

        return program

    return decorate


def with_places(arguments: list[str]) -> list[str]:
    """Arguments of train.py in which a run that goes on takes keys of its own data, which those of the default data are not.

    A run with the tokenizer of another takes keys of its data that conditions of the prior need.
    """
    if any(argument.startswith("tokenizer=") for argument in arguments):
        return [f"++{argument}" if argument.startswith(CONDITIONS) else argument for argument in arguments]
    folders = values_of("run_dir", arguments)
    if not folders or not (Path(folders[-1]) / "config.yaml").is_file():
        return arguments
    if any(argument.startswith(("data=", "experiment=")) for argument in arguments):
        return arguments
    return [f"++{argument}" if argument.startswith(PLACES) else argument for argument in arguments]


def without_places(cfg: DictConfig) -> DictConfig:
    """A copy without the keys that `with_places` has added, which are checked with the run's own config."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for override in typed_overrides():
            if override.startswith("++data."):
                cfg.data.pop(override[len("++data.") :].partition("=")[0], None)
    return cfg


def fail(message: str) -> None:
    """Ends the program with one line and exit code 2."""
    # under torchrun every rank finds the mistake: rank 0 prints it, then the others are ended; last speaks who knows no reason
    turn = (os.environ.get("RANK", "0") != "0") + 2 * (message == ANOTHER_HAS_ENDED)
    if turn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(turn * RANK_0_SPEAKS_SECONDS)
    sys.stderr.write(f"error: {one_line(message)}\n")
    raise SystemExit(2)


def end_workers() -> None:
    """Tells processes that read data to end, because what an error or a stop has left of their loaders does not."""
    for worker in multiprocessing.active_children():
        worker.terminate()


def end_job_of_sweep(run_dir: Path, error: Exception, message: str | None) -> None:
    """Prints why a job of a sweep failed and records it. A bug, which has no message, shows its traceback."""
    if message is None:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
    sys.stderr.write(f"error: {one_line(message)}\n")
    record_job(run_dir, one_line(message))


def one_line(message: str) -> str:
    return printable(" ".join(message.split()))


def typed_overrides() -> list[str]:
    """Overrides of this command, as typed (of a sweep, those of the present job)."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
