"""The start of a training run: its folder, the checks, the first lines."""

from __future__ import annotations

import logging
from typing import Any

from vqvae.errors import TooManyUnreadable
from vqvae.run.checks import check_run
from vqvae.run.first_lines import first_lines
from vqvae.run.folder import RunFolder
from vqvae.run.machine import note_machine
from vqvae.run.process import set_up_logging
from vqvae.run.run import Run

log = logging.getLogger(__name__)


def start_run(cfg: Any, overrides: list[str], sweep_job: bool) -> Run:
    """Check a config, write it to the folder `cfg.run_dir`, and log what will happen. Arguments as in RunFolder.prepare.

    The folder holds all that the run needs to go on, data aside. Raises UserError for what does not fit,
    before anything is written; the config is there for a summary if images cannot be read.
    """
    folder = RunFolder.prepare(cfg, overrides, sweep_job)
    run = Run(folder)
    try:
        understood = first_lines(run, check_run(run))
    except TooManyUnreadable:  # the summary will say how many
        folder.create()
        raise
    folder.create()
    set_up_logging(folder)
    note_machine(folder)
    for line in understood:
        log.info("%s", line)
    folder.adopt_tokenizer()
    folder.adopt_initial_weights()
    run.known.keep()
    run.conditions.keep()
    return run
