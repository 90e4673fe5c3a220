"""Encodes images into code stores. `python scripts/encode.py --help` shows how; under torchrun, ranks share the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.config.compose import check_keys_of, plain, resolve
from vqvae.config.program import entry_point
from vqvae.config.types import fits
from vqvae.errors import UserError
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import counted, say


@entry_point("encode")
def main(cfg: Any) -> None:
    """Writes <run_dir>/codes/<split> for every split that is asked for."""
    cfg = resolve(cfg)
    check_keys_of("encode", cfg)
    known = ["train", "val", "test"]
    if not fits(cfg.splits, list[str]) or not set(cfg.splits) <= set(known):
        raise UserError(f"splits={cfg.splits} must be a list of {', '.join(known)}, such as [train,val]")

    with own_folder():  # no library finds its code or settings in the current one
        from vqvae import distributed
        from vqvae.run.folder import RunFolder
        from vqvae.run.process import set_up_process
        from vqvae.run.run import Run

    set_up_process(cfg.device)
    with distributed.joined():
        run = Run(RunFolder.load(cfg.run_dir, list(cfg.allow_targets), places=plain(cfg.data)))
        tokenizer = run.tokenizer()
        for split in cfg.splits:
            store = run.code_store(tokenizer, split)
            if distributed.is_main():
                sizes = f"maps of {store.code_shapes}, codebooks of {store.codebook_sizes}"
                say(f"{store.path}: {counted(len(store), run.data.noun)}, {sizes}")


if __name__ == "__main__":
    main()
