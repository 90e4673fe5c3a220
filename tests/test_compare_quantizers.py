"""The table of quantizers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from conftest import SMALL_CODEBOOK, TINY

from scripts import compare_quantizers


def table(printed: str) -> dict[str, dict[str, str]]:
    """Rows of a printed table by the first cell; cells by title."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")
    ]
    return {row[0].strip("`"): dict(zip(lines[0], row)) for row in lines[2:]}


def test_cells_are_means_over_seeds_with_their_spread_or_the_error_over_items_of_one() -> None:
    runs = [{"a": 1.0, "a_error": 0.25}, {"a": 2.0, "a_error": 0.5}]
    assert compare_quantizers.cell(runs, "a", "a_error", ".2f") == "1.50 ± 0.71"
    assert compare_quantizers.cell(runs[:1], "a", "a_error", ".2f") == "1.00 ± 0.25"
    assert compare_quantizers.cell(runs[:1], "a", None, ".2f") == "1.00"
    assert compare_quantizers.cell(runs, "b", None, ".2f") == ""


@pytest.mark.slow
def test_the_table_has_each_preset_with_the_bits_that_a_prior_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [one for one in [*TINY, *SMALL_CODEBOOK] if not one.startswith(("prior", "logger", "stages", "quantizer="))]
    options = ["--only", "ema", "--seeds", "2", f"run_dir={tmp_path}", "--prior", "2", "--jobs", "2"]
    monkeypatch.setattr("sys.argv", ["compare_quantizers.py", *options, *small])
    assert compare_quantizers.main() == 0
    (found,) = table(capsys.readouterr().out).values()
    said = [json.loads((tmp_path / name / "summary.json").read_text())["figures"] for name in ("ema", "ema-1")]
    psnr = [one["autoencoder/psnr_db"]["value"] for one in said]
    bits = [one["prior/bits_per_code"]["value"] for one in said]
    spread = abs(psnr[0] - psnr[1]) / math.sqrt(2)
    assert found["PSNR dB"] == f"{sum(psnr) / 2:.2f} ± {spread:.2f}"
    assert found["bits per code"].startswith(f"{sum(bits) / 2:.3f}")
