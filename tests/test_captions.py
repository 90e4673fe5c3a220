"""Laws of captions: they stand beside images, which stay as they are, and say what is shown and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqvae.images import GAP, LINE, MARGIN, Captions, cut, font, grid, rows_of
from vqvae.report.contents import strips
from vqvae.sampling import job as jobs
from vqvae.sampling.job import Job

WORDS = ("disc", "ring", "square")


def sheet(channels: int = 3) -> list[Tensor]:
    """Three rows of eight images without white."""
    return rows_of(torch.randint(250, (24, channels, 32, 32), dtype=torch.uint8), 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_captions_leave_the_images_as_they_are(channels: int) -> None:
    rows = sheet(channels)
    plain = grid(rows)
    captions = Captions(rows=WORDS, columns=[str(i) for i in range(8)], note="a note")
    drawn = grid(rows, captions)
    assert drawn.shape == (3, LINE + plain.shape[1] + LINE, MARGIN + plain.shape[2])
    assert torch.equal(drawn[:, LINE:-LINE, MARGIN:], plain)
    for part in (drawn[:, LINE:-LINE, :MARGIN], drawn[:, :LINE, MARGIN:], drawn[:, -LINE:]):
        assert part.min() == 0  # black letters
    tiles = grid(rows, Captions(tiles=[f"{i}" for i in range(24)]))
    for row in range(3):
        top = GAP + row * (64 + LINE + GAP) + LINE
        assert torch.equal(tiles[:, top : top + 64], plain[:, GAP + row * 66 :][:, :64])


def test_the_report_finds_the_images_in_sheets_with_and_without_names() -> None:
    rows = sheet()
    for one, other in zip(strips(grid(rows), 3), strips(grid(rows, Captions(rows=WORDS)), 3), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "name", ["a long name of a class, or of a file", "Größe Ü", "two\nlines", "\x1b[31m", "", "x" * 99999]
)
def test_a_text_is_one_line_and_no_wider_than_its_place(name: str) -> None:
    shown = cut(name, 60)
    assert font().getlength(shown) <= 60
    assert shown.isprintable()
    assert cut(name[:3], 60).startswith(name[:1] if name[:1].isprintable() else "?")


def test_a_long_sheet_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Run:
        class data:
            picture = staticmethod(lambda items: items)

    given: list[tuple[int, Captions]] = []
    monkeypatch.setattr(jobs, "MOST_SHOWN", 10)
    monkeypatch.setattr(
        jobs, "grid", lambda rows, captions: given.append((len(rows), captions)) or grid(rows, captions)
    )
    job = Job(Run(), {}, tmp_path)  # type: ignore[arg-type]
    items = torch.zeros(25, 3, 8, 8, dtype=torch.uint8)
    job.write_images("all.png", items, 4, Captions(tiles=[str(i) for i in range(25)]))
    job.write_images("few.png", items[:8], 4, Captions())
    assert given[0] == (2, Captions(tiles=[str(i) for i in range(8)], note="the first 8 of 25 images"))
    assert given[1] == (2, Captions())
