"""Laws of names on a terminal: whatever a file, a class or a key is called, it is shown as text."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, call_inside
from omegaconf import OmegaConf

from vqvae.run.tables import table
from vqvae.surroundings.terminal import PrintableFormatter, printable, printable_lines, say

HOSTILE = "\x1b[2J\x1b]0;owned\x07 \x9b31m \r\u202egnp \u2028 \x00 \udc80"
STEERS = re.compile(r"[^\n -~\xa1-\u2000\u3000-\ud7ff]")


@pytest.mark.parametrize("name", [HOSTILE, "a\nb", "\t", "\x7f", "\u200b"], ids=ascii)
def test_a_name_is_shown_in_one_line_of_characters_that_steer_nothing(name: str) -> None:
    assert printable(name).isprintable()
    assert "\n" not in printable(name)


def test_plain_text_stays_as_it_is() -> None:
    for text in ("caf\u00e9 \u732b.png", "a b", "", "x" * 1000):
        assert printable(text) == printable_lines(text) == text
    assert printable_lines("one\ntwo") == "one\ntwo"


def test_what_is_said_and_what_is_in_tables_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{HOSTILE}\nnext")
    say(table(["image", "psnr_db"], [[HOSTILE, 3.0]]))
    said = capsys.readouterr().out
    assert said.count("\n") == 4
    assert not STEERS.search(said)


def test_a_log_steers_nothing_and_keeps_the_lines_of_tracebacks() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.LogRecord("x", logging.WARNING, "f", 1, "skipped %s", (HOSTILE,), sys.exc_info())
    text = PrintableFormatter("%(message)s").format(record)
    assert "Traceback" in text.split("\n")[1]
    assert not STEERS.search(text)


@pytest.mark.parametrize("program", ["sample", "train"])
def test_what_a_stranger_has_named_is_one_plain_line(
    program: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a\x1b[31m\x9bb"
    shutil.copytree(finished_run, folder)
    config = OmegaConf.load(folder / "config.yaml")
    config.data["\x1b[2Jcleared"] = "\x1b]0;owned\x07"
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    for name in (folder, tmp_path / "\x1b[2J"):  # a config with such a key, and no run at all
        with pytest.raises(SystemExit) as stopped:
            call_inside(program, f"run_dir='{name}'", *(["tokenizer=nowhere\x1b[2J"] if program == "train" else []))
        captured = capsys.readouterr()
        assert stopped.value.code == 2
        assert captured.err.count("\n") == 1
        assert not STEERS.search(captured.err + captured.out)
        assert "\\x1b[" in captured.err


def test_the_log_and_the_summary_of_a_run_steer_nothing(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "a\x1b[31mb"))
    call_inside("train", f"run_dir='{folder}'")
    assert not STEERS.search(capsys.readouterr().out)
    assert not STEERS.search((folder / "train.log").read_text())


def test_nothing_is_printed_but_through_what_makes_it_plain() -> None:
    bare = re.compile(r"(?<![\w.])print\(|stderr\.write\((?!printable\(|f?\"(error: \{one_line|interrupted))")
    programs = [ROOT / "train.py", ROOT / "sample.py", *map((ROOT / "scripts").joinpath, ("encode.py", "evaluate.py"))]
    programs += [ROOT / "scripts" / "export.py", ROOT / "scripts" / "make_shards.py", *(ROOT / "vqvae").rglob("*.py")]
    found = [path.name for path in programs if bare.search(path.read_text())]
    assert found == ["terminal.py"]
