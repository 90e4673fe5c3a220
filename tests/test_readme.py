"""The README's Python runs as printed, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_python_in_the_readme_runs(finished_run: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names = {
        "torch": torch,
        "x": torch.rand(2, 3, 32, 32) * 2 - 1,
        "encoder": (encoder := torch.nn.Conv2d(3, 64, 4, 4)),
        "decoder": torch.nn.ConvTranspose2d(64, 3, 4, 4),
        "reconstruction_loss": F.mse_loss,
    }
    for block in blocks:
        exec(block.replace("runs/mine", str(finished_run)), names)
    assert names["images"].shape == (16, 3, 32, 32)  # type: ignore[attr-defined]
    names["loss"].backward()  # type: ignore[attr-defined]
    assert encoder.weight.grad is not None
    before = names["quantizer"].codebook.codes().clone()  # type: ignore[attr-defined]
    names["optimizer"].step()  # type: ignore[attr-defined]
    assert not torch.equal(names["quantizer"].codebook.codes(), before)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_pages_say_whom_they_serve(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    if page.parent.name == "docs":
        assert text.startswith("For "), page


def test_the_readme_is_short_and_has_what_newcomers_need() -> None:
    assert README.count("\n") <= 200
