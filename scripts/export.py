"""Writes a finished run as safetensors and ONNX. `python scripts/export.py --help` shows how."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.config.compose import check_keys_of, plain, resolve
from vqvae.config.program import entry_point
from vqvae.surroundings.own_folder import own_folder
from vqvae.surroundings.terminal import say


@entry_point("export")
def main(cfg: Any) -> None:
    """Writes the folder `out`, and says what lies in it."""
    cfg = resolve(cfg)
    check_keys_of("export", cfg)

    with own_folder():  # no library finds its code or settings in the current one
        from vqvae.export.hub import check_hub_name, push
        from vqvae.export.write import export_run
        from vqvae.run.folder import RunFolder
        from vqvae.run.process import set_up_process
        from vqvae.run.run import Run

    if cfg.hub is not None:
        check_hub_name(cfg.hub)
    set_up_process(cfg.device)
    run = Run(RunFolder.load(cfg.run_dir, list(cfg.allow_targets), places=plain(cfg.data)))
    out = Path(cfg.out or run.folder.path / "export")
    say("\n".join(export_run(run, out, cfg.hub, cfg.license)))
    if cfg.hub is not None:
        say(f"uploaded: {push(out, cfg.hub, cfg.private)}")


if __name__ == "__main__":
    main()
