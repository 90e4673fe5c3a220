"""The folder of a job of a sweep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vqvae.config.compose import plain, resolve
from vqvae.config.saved import read_saved
from vqvae.config.sweep import another, job_folders
from vqvae.errors import UserError
from vqvae.run.continuing import FREE_KEYS, differences
from vqvae.run.folder import STAGES, RunFolder

NO_RESULT = re.compile(r"(run_dir|logger|report|device)(\.|$)")  # keys on which no result of a job depends


def folder_of_job(cfg: Any) -> Path:
    """The folder of the present job: that of a job of the same config, whatever it is called, else one named by what varies.

    So a sweep that is widened by a key, or run again with other words for the same, finds what is finished.
    """
    own, older = job_folders()
    if older != own and (older / "config.yaml").is_file():
        return older
    wanted = plain(resolve(cfg))
    if has_config(own, wanted, may_differ=FREE_KEYS):
        return own
    for file in sorted(own.parent.glob("*/config.yaml")):
        if has_config(file.parent, wanted, may_differ=NO_RESULT):
            return file.parent
    return another(own) if any(RunFolder(own, cfg).has_begun(stage) for stage in STAGES) else own


def has_config(folder: Path, wanted: dict[str, Any], may_differ: re.Pattern[str]) -> bool:
    """True for the folder of a run with this config, but for keys that may differ."""
    try:
        stored = plain(read_saved(folder / "config.yaml"))
    except UserError:
        return False
    return all(may_differ.match(key) for key, *_ in differences(stored, wanted))
