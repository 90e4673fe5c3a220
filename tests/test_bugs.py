"""Bugs look like bugs: only a user's mistake becomes one line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, call_inside, command, error_of

from vqvae.config.messages import user_message
from vqvae.data.shapes import Shapes
from vqvae.errors import UserError

MINE = """
from vqvae.quantizers.base import Quantizer

class Misspelled(Quantizer):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, [4])
        self.width = self.dimm

class Refusing(Quantizer):
    def __init__(self, dim: int) -> None:
        from vqvae.errors import UserError
        raise UserError("dim must be a prime")
"""


def test_a_bug_in_the_package_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def split(self: Shapes, name: str) -> None:
        _first, _second = (1, 2, 3)

    monkeypatch.setattr(Shapes, "split", split)
    with pytest.raises(ValueError, match="too many values to unpack"):
        call_inside("train", *TINY, *SMALL_CODEBOOK, f"run_dir={tmp_path / 'run'}")


def run_mine(name: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """train.py with a quantizer of the user's own."""
    (tmp_path / "mine.py").write_text(MINE)
    small = [override for override in TINY if not override.startswith("prior")]
    own = ["quantizer=identity", f"quantizer._target_=mine.{name}", "allow_targets=[mine.]", "stages=[autoencoder]"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return subprocess.run(
        command("train.py", *small, *own, "run_dir=run"),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_bug_in_a_users_own_quantizer_keeps_its_traceback(tmp_path: Path) -> None:
    done = run_mine("Misspelled", tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "self.width = self.dimm" in done.stderr
    assert str(tmp_path / "mine.py") in done.stderr


def test_what_a_users_own_quantizer_refuses_is_one_line_with_its_key(tmp_path: Path) -> None:
    done = run_mine("Refusing", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: quantizer.dim must be a prime\n"


@pytest.mark.parametrize(
    "error", [ValueError("a"), TypeError("b"), RuntimeError("c"), AttributeError("d"), OSError("e")]
)
def test_errors_not_meant_for_users_have_no_message(error: Exception) -> None:
    assert user_message(error) is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("n=0 must be at least 1"), "n=0 must be at least 1"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), "x.png"),
        (MemoryError(), "this does not fit in memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "this does not fit in memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes"), "2.0 GiB"),
    ],
)
def test_mistakes_and_limits_of_the_machine_have_a_message(error: Exception, message: str) -> None:
    said = user_message(error)
    assert said is not None
    assert message in said


def test_a_missing_constructor_argument_is_found_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, *TINY, "~prior.network.layers", f"run_dir={tmp_path / 'run'}")
    assert "prior.network.layers" in message
