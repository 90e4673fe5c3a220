"""Finished runs that come with the package, by name: `python sample.py run_dir=shapes`."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from pathlib import Path

from vqvae.errors import UserError

SHIPPED = Path(__file__).resolve().parent
KEYS = re.compile(r"(run_dir|tokenizer|init_from)='?(\w+)'?")


def shipped_run(name: str | Path) -> Path | None:
    """The package's folder of a run that comes with it. None for other names, and where a folder of that name is here."""
    found = SHIPPED / name
    is_name = re.fullmatch(r"\w+", str(name)) is not None
    return found if is_name and (found / "config.yaml").is_file() and not Path(name).exists() else None


def with_shipped(arguments: list[str], config_name: str) -> list[str]:
    """Arguments of a program in which the names of shipped runs are paths of copies, runs/<name>, made where they are missing.

    A copy, because what programs make of a run lies in its folder. run_dir of train.py is a folder to write, never such a name.
    """
    return [replaced(argument, config_name) for argument in arguments]


def replaced(argument: str, config_name: str) -> str:
    found = KEYS.fullmatch(argument)
    if found is None or (config_name == "train" and found[1] == "run_dir"):
        return argument
    source = shipped_run(found[2])
    return argument if source is None else f"{found[1]}={copied(source)}"


def copied(source: Path) -> Path:
    """Copy a shipped run to runs/<name>, whole or not at all, unless it is there. Raises UserError for another run there."""
    target = Path("runs", source.name)
    if target.exists() and weights_in(target) != weights_in(source):
        raise UserError(
            f"{target} is another run than the {source.name} of the package: name it by its path, or move it away"
        )
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            copy = shutil.copytree(source, Path(folder, source.name))
            with contextlib.suppress(OSError):  # another process has made it meanwhile
                copy.rename(target)
    return target


def weights_in(run: Path) -> list[str]:
    """The files of weights of a run, whose names have their checksums."""
    return sorted(file.name for file in run.glob("*/weights-*.pt"))
