"""A command-line program on a config: what a user got wrong is one line, what a bug is keeps its traceback."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vqvae.config.compose import CONFIGS, PACKAGE
from vqvae.config.messages import explain
from vqvae.errors import UserError

HYDRA = Path(hydra.__file__).resolve().parent
RANK_0_SPEAKS_SECONDS = 3
OF_TORCH = re.compile(
    r"Error\(s\) in loading state_dict|allocate memory|out of memory|[Ss]torage size calculation overflowed"
)
OTHER_RANK = re.compile(r"Connection (closed|reset) by peer|Broken pipe")  # as gloo says it


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """A command-line program on configs/<config_name>.yaml: what a user got wrong is one line, and exit code 2."""

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def job(cfg: DictConfig) -> Any:
            try:
                return function(cfg)
            except Exception as error:
                if (message := mistake(error, config_name)) is None:
                    raise
                if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs of the sweep go on
                    sys.stderr.write(f"error: {one_line(message)}\n")
                    return None
                fail(message)

        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises errors instead of printing them
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            except (HydraException, OmegaConfBaseException, ValueError, TypeError, RuntimeError) as error:
                if (message := mistake(error, config_name)) is None:
                    raise
                fail(message)
            except KeyboardInterrupt:
                sys.stderr.write("interrupted\n")
                raise SystemExit(130) from None

        return run

    return decorate


def fail(message: str) -> None:
    if os.environ.get("RANK", "0") != "0":  # what all ranks find, rank 0 tells: then torchrun ends the others
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(RANK_0_SPEAKS_SECONDS)
    sys.stderr.write(f"error: {one_line(message)}\n")
    raise SystemExit(2)


def one_line(message: str) -> str:
    return " ".join(message.split())


def mistake(error: Exception, config_name: str) -> str | None:
    """What to tell a user whose command ended in an error; None where the program itself is at fault."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        return mistake(error.__cause__, config_name)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error, config_name)
    if isinstance(error, RuntimeError) and OTHER_RANK.search(str(error)):
        return "another process of this run has ended"
    if isinstance(error, RuntimeError) and "Could not detect" in str(error):  # submitit, without Slurm
        return f"hydra/launcher=submitit_slurm: {error}; this needs a machine that submits to Slurm"
    if isinstance(error, (TypeError, ValueError)) and raised_in(error).is_relative_to(HYDRA):
        return f"hydra cannot put this command together ({error}): a group takes the name of one choice"
    if isinstance(error, (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError)) and is_ours(error):
        return words(error)
    return None


def words(error: BaseException) -> str:
    """The message of an error, or what stands behind an allocator's."""
    if asked := re.search(r"tried to allocate (\d+) bytes", str(error)):
        return f"this does not fit in memory: {int(asked[1]) / 2**30:,.1f} GiB were asked for at once"
    return str(error) or "this does not fit in memory"


def is_ours(error: BaseException) -> bool:
    """Whether it says what a user can get wrong: our own code raised it, or the operating system, or torch for weights
    that do not fit the networks or networks that do not fit in memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return True
    if isinstance(error, RuntimeError):
        return OF_TORCH.search(str(error)) is not None
    if isinstance(error, UserError):
        return True
    file = raised_in(error)
    return file.is_relative_to(PACKAGE) or file in (PACKAGE.parent / "train.py", PACKAGE.parent / "sample.py")


def raised_in(error: BaseException) -> Path:
    """The file whose code raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename).resolve() if trace is not None else Path()
