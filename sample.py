"""Draws pictures from a finished run. `python sample.py --help` shows how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqvae.config import ConfigError, check_keys_of, entry_point, resolve


@entry_point("sample")
def main(cfg: Any) -> None:
    """Writes grid.png and samples.npz, and on request single pictures, into a folder."""
    cfg = resolve(cfg)
    check_keys_of("sample", cfg)

    import numpy as np
    from tqdm.contrib.logging import logging_redirect_tqdm

    from vqvae.images import grid, write_png
    from vqvae.pipeline import Run
    from vqvae.priors.base import Sampling
    from vqvae.run_folder import RunFolder
    from vqvae.sampling import choose_labels, draw_pictures, rows_of

    if cfg.n < 1 or cfg.columns < 1:
        raise ConfigError(f"n and columns must be at least 1, got n={cfg.n}, columns={cfg.columns}")
    sampling = Sampling(cfg.temperature, cfg.top_k, cfg.top_p)
    run = Run(RunFolder.load(cfg.run_dir, list(cfg.allow_targets)))
    names = run.data.class_names
    seeds = list(range(cfg.seed, cfg.seed + cfg.n))
    labels = choose_labels(cfg["class"], names, seeds)
    tokenizer = run.tokenizer()
    with logging_redirect_tqdm():
        pictures, codes = draw_pictures(run.prior(tokenizer.model), tokenizer, seeds, labels, sampling)

    out = Path(cfg.out) if cfg.out else run.folder.path / "samples" / folder_name(cfg)
    columns = -(-cfg.n // len(names)) if cfg["class"] == "all" else min(cfg.columns, cfg.n)
    write_png(out / "grid.png", grid(rows_of(pictures, columns)))
    maps = {f"codes_{m}": one.numpy() for m, one in enumerate(codes)}
    np.savez_compressed(out / "samples.npz", pictures=pictures.numpy(), labels=labels.numpy(), seeds=seeds, **maps)
    if cfg.singles:
        for seed, label, picture in zip(seeds, labels.tolist(), pictures):
            class_name = f"_{names[label]}" if label >= 0 else ""
            write_png(out / f"{seed:06d}{class_name}.png", picture)
    print(f"{cfg.n} samples: {out / 'grid.png'}\npictures and codes: {out / 'samples.npz'}")


def folder_name(cfg: Any) -> str:
    """A name that tells how the samples were drawn."""
    parts = [f"seed{cfg.seed}", f"n{cfg.n}"]
    parts += [f"class-{cfg['class']}"] if cfg["class"] is not None else []
    for key, default in {"temperature": 1, "top_k": 0, "top_p": 1}.items():
        parts += [f"{key}{cfg[key]}"] if cfg[key] != default else []
    return "_".join(parts)


if __name__ == "__main__":
    main()
