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
    for key in ("samples", "reference"):
        if cfg[key] and cfg.backbone is None:
            raise UserError(f"{key}={cfg[key]} needs a pretrained network: name it with backbone=efficientnet_lite0")
    for key in ("backbone", "backbone_file", "reference"):
        if problem := mistake_in(key, cfg[key], str | None):
            raise UserError(problem)
    if problem := mistake_in("metrics", cfg.metrics, list[str] | None):
        raise UserError(problem)
    if cfg.out is not None and Path(cfg.out).is_dir():
        raise UserError(f"out={cfg.out} is a folder: name a file, such as out={Path(cfg.out) / 'figures.json'}")
    if cfg.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {cfg.batch_size}")

    with own_folder():  # no library finds its code or settings in the current one
        from vqvae import distributed
        from vqvae.run.evaluation import evaluate_run
        from vqvae.run.folder import RunFolder
        from vqvae.run.judged import METRICS, Wanted
        from vqvae.run.process import set_up_process
        from vqvae.run.report import figures, print_figures
        from vqvae.run.run import Run
        from vqvae.storage.files import write_json

    set_up_process(cfg.device)
    with distributed.joined():
        run = Run(RunFolder.load(cfg.run_dir, list(cfg.allow_targets), places=plain(cfg.data)))
        search = run.cfg.search_sweeps if cfg.search is None else cfg.search
        wanted = Wanted(
            metrics=chosen(cfg.metrics, METRICS),
            backbone=cfg.backbone,
            file=cfg.backbone_file,
            samples=cfg.samples,
            settings={key: value for key, value in plain(cfg.sampling).items() if value is not None},
            reference=cfg.reference,
        )
        metrics, about = evaluate_run(run, cfg.split, cfg.batch_size, search, wanted)
        if not distributed.is_main():
            return
        reported = figures(metrics)
        file = Path(cfg.out or run.folder.path / f"evaluation_{cfg.split}.json")
        write_json(file, {**about, "figures": reported})
        print_figures(f"{cfg.run_dir}, {about['items']} items of split '{about['split']}'", reported)
        if about["split"] != cfg.split:
            say(f"this data has no split '{cfg.split}': its split '{about['split']}' was measured")
        if about["judged"]:
            say("\njudged by:\n" + "\n".join(f"  {key}: {value}" for key, value in about["judged"].items() if value))
        say(f"\nwritten to {file}")


def chosen(metrics: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """The groups that are asked for, all for None. Raises UserError for one that does not exist."""
    for name in metrics or ():
        if name not in known:
            raise UserError(f"metrics=[{name}] does not exist; {suggest(name, known)}")
    return known if metrics is None else tuple(metrics)


if __name__ == "__main__":
    main()
