"""Laws of other systems: Windows and macOS lack parts of Python's library, and machines have other devices."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, command, error_of

from vqvae import distributed
from vqvae.errors import UserError

HIDDEN = """import os, signal, sys
sys.modules.update(dict.fromkeys(["resource", "fcntl"]))
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "pthread_kill", "pthread_sigmask", "sigtimedwait"):
    delattr(signal, name)
os.supports_fd.discard(os.chdir)
for name in ("pread", "posix_fallocate", "O_NOFOLLOW"):
    delattr(os, name)
"""


@pytest.mark.slow
def test_a_run_needs_nothing_that_windows_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    words = [*TINY, *SMALL_CODEBOOK, f"run_dir={tmp_path / 'run'}"]
    for program in (["train.py", *words], ["sample.py", words[-1], "n=2"]):
        done = subprocess.run(command(*program), env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def test_a_device_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in {"mps": "float64", "tpu": "auto, cuda, cpu", "cuda": "finds no GPU"}.items():
        if name != "cuda" or not torch.cuda.is_available():
            assert said in error_of(capsys, *TINY, f"device={name}", f"run_dir={tmp_path}")


def test_the_cpu_can_be_chosen_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(distributed, "_chosen", "auto")
    assert distributed.device().type == "cuda"
    distributed.choose_device("cpu")
    assert distributed.device().type == "cpu"
    with pytest.raises(UserError, match="must be one of"):
        distributed.choose_device("gpu")
