"""Writes the report of one or several runs. `python scripts/report.py --help` shows how."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.config.compose import check_keys_of, plain, resolve
from vqvae.config.program import entry_point
from vqvae.config.types import mistake_in
from vqvae.errors import UserError
from vqvae.ranges import PositiveInt
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import say


@entry_point("report")
def main(cfg: Any) -> None:
    """Writes one HTML file."""
    cfg = resolve(cfg)
    check_keys_of("report", cfg)
    values = plain(cfg)
    kinds = {"run_dir": str | list[str], "out": str | None, "most_items": PositiveInt | None}
    for key, kind in kinds.items():
        if problem := mistake_in(key, values[key], kind):
            raise UserError(problem)
    if cfg.out is not None and Path(cfg.out).is_dir():
        raise UserError(f"out={cfg.out} is a folder: name a file, such as out={Path(cfg.out) / 'report.html'}")
    named = [values["run_dir"]] if isinstance(values["run_dir"], str) else values["run_dir"]
    if not named:
        raise UserError("run_dir=[] names no run: name one or several, such as run_dir=[runs/a,runs/b]")

    with own_folder():  # no library finds its code or settings in the current one
        from vqvae.report.write import report_runs
        from vqvae.run.process import set_up_process

    set_up_process(cfg.device)
    out = None if cfg.out is None else Path(cfg.out)
    say(f"written to {report_runs(named, out, values['allow_targets'], values['data'], cfg.most_items)}")


if __name__ == "__main__":
    main()
