"""Every public name has an example in its docstring, and the examples run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import vqvae

EXPORT = Path(__file__).resolve().parent / "older_runs" / "export"


@pytest.mark.parametrize("name", sorted(vqvae.PLACES))
def test_the_example_of_a_public_name_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "mine").symlink_to(EXPORT)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    public = getattr(vqvae, name)
    module = importlib.import_module(vqvae.PLACES[name])
    globs = {**vars(module), "torch": torch}
    (example,) = doctest.DocTestFinder(recurse=False).find(public, name, globs=globs)
    assert example.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example)
    assert runner.failures == 0
