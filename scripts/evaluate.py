"""Measures a finished run on a split of its data. `python scripts/evaluate.py --help` shows how.

Under torchrun, ranks share the work.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.config.compose import check_keys_of, plain, resolve
from vqvae.config.program import entry_point
from vqvae.config.types import mistake_in
from vqvae.errors import UserError, suggest
from vqvae.ranges import CountOrZero
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import say


@entry_point("evaluate")
def main(cfg: Any) -> None:
    """Prints a table and writes the same as JSON."""
    cfg = resolve(cfg)
    check_keys_of("evaluate", cfg)
    if cfg.split not in ("train", "val", "test"):
        raise UserError(f"split={cfg.split} does not exist; {suggest(cfg.split, ['train', 'val', 'test'])}")
    if problem := mistake_in("search", cfg.search, CountOrZero | None):
        raise UserError(problem)
    if problem := mistake_in("samples", cfg.samples, CountOrZero):
        raise UserError(problem)
    if cfg.samples and cfg.backbone is None:
        raise UserError(
            f"samples={cfg.samples} are judged by a pretrained network: name it with backbone=efficientnet_lite0"
        )
    for key in ("backbone", "backbone_file"):
        if problem := mistake_in(key, cfg[key], str | None):
            raise UserError(problem)
    if cfg.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {cfg.batch_size}")

    with own_folder():  # no library finds its code or settings in the current one
        from vqvae import distributed
        from vqvae.run.evaluation import evaluate_run
        from vqvae.run.folder import RunFolder
        from vqvae.run.process import set_up_process
        from vqvae.run.report import figures, print_figures
        from vqvae.run.run import Run
        from vqvae.storage.files import write_json

    set_up_process(cfg.device)
    with distributed.joined():
        run = Run(RunFolder.load(cfg.run_dir, list(cfg.allow_targets), places=plain(cfg.data)))
        search = run.cfg.search_sweeps if cfg.search is None else cfg.search
        judged = (cfg.backbone, cfg.backbone_file, cfg.samples)
        metrics, about = evaluate_run(run, cfg.split, cfg.batch_size, search, *judged)
        if not distributed.is_main():
            return
        reported = figures(metrics)
        file = Path(cfg.out or run.folder.path / f"evaluation_{cfg.split}.json")
        write_json(file, {**about, "figures": reported})
        print_figures(f"{cfg.run_dir}, {about['items']} items of split '{about['split']}'", reported)
        say(f"\nwritten to {file}")


if __name__ == "__main__":
    main()
