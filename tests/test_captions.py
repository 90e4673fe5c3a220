"""Laws of captions: they stand beside images, which stay as they are, and say what is shown and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqvae.images import GAP, LINE, MARGIN, Captions, cut, font, grid, rows_of
from vqvae.report.contents import strips
from vqvae.run import plots
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


@pytest.mark.parametrize("size", [(5, 500), (500, 4), (1, 1)])
def test_a_sheet_that_is_too_small_for_its_rows_has_none(size: tuple[int, int]) -> None:
    """It may be a stranger's; pictures without pixels cannot be written."""
    assert strips(torch.zeros(3, *size, dtype=torch.uint8), 10) == []


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
            picture, noun = staticmethod(lambda items: items), "image"

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


def test_the_plot_of_codes_says_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    counts = [torch.tensor([6, 3, 0, 3])]
    bins = {"edges": [0.0, 1.0, 2.0], "counts": [4, 2]}
    histograms = {"codebook/spacing_histogram_0": bins, "autoencoder/similarity_histogram_1": bins}
    for passed in (0.0, 0.25):
        plots.plot_codes(counts, histograms, passed, tmp_path / "codebook.png")
    plain, among = ([axis.get_xlabel() for axis in figure.axes] for figure in drawn)
    assert plain[0] == "codes, most used first, by 12 validation vectors"
    assert among[0] == f"{plain[0]}, 25% of them passed on"
    titles = [axis.get_title() for axis in drawn[0].axes if axis.get_visible()]
    assert titles[0] == "codebook 0: 3 of 4 codes used"
    assert titles[1].startswith("codebook 0: pairs of codes by their distance")
    assert titles[2].startswith("level 1: vectors of the split by their cosine with their code")
