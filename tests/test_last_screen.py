"""Laws of what a run shows while it works and at its end: five lines and the next command, and losses without a terminal."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import SMALL_CODEBOOK, TINY, call_inside, run

from vqvae.run.last_screen import codebook, prior, reconstruction

LINES = ["reconstruction", "codebook", "prior", "time", "where"]


def screen(printed: str) -> list[str]:
    """The last lines, from the first of the five on."""
    shown = printed.splitlines()
    return shown[next(n for n, line in enumerate(shown) if line.startswith("reconstruction ")) :]


def test_a_run_ends_with_five_lines_and_a_command_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [*(one for one in TINY if one != "report=false"), *SMALL_CODEBOOK, "trainer.log_every_steps=2"]
    printed = run("train.py", *own, "run_dir=my run", cwd=tmp_path).stdout
    shown = screen(printed)
    assert [line.split()[0] for line in shown[:5]] == LINES
    assert max(map(len, shown)) <= 80
    figures = json.loads((tmp_path / "my run" / "summary.json").read_text())["figures"]
    assert f"PSNR {figures['autoencoder/psnr_db']['value']:.2f} dB" in shown[0]
    assert f"{figures['prior/bits_per_code']['value']:.4g} bits per code (4 without it)" in shown[2]
    assert (tmp_path / shown[4].split(" ", 1)[1].strip().rpartition(" (")[0]).is_file()  # the report
    python, program, *arguments = shlex.split(shown[-1].removeprefix("next: "))
    assert (python, program, arguments) == ("python", "sample.py", ["run_dir=my run", "class=all"])
    monkeypatch.chdir(tmp_path)
    call_inside("sample", *arguments, "n=10")
    for stage in ("autoencoder", "prior"):  # there is no terminal here
        assert len(re.findall(rf"{stage} step \d of 4: loss [\d.]+, \d+ items/s", printed)) == 2


def test_a_run_without_a_prior_names_the_command_that_trains_one(tmp_path: Path) -> None:
    first = [*TINY, *SMALL_CODEBOOK, "stages=autoencoder", "report=false"]
    shown = screen(run("train.py", *first, "run_dir=run", cwd=tmp_path).stdout)
    assert shown[2].split() == ["prior", "not", "trained"]
    assert "report.html" not in shown[4]
    assert shown[-1] == "next: python train.py run_dir=run stages=prior"
    more = screen(run("train.py", "run_dir=run", "stages=prior", cwd=tmp_path).stdout)
    assert "bits per code" in more[2]
    assert more[0] == shown[0]


def test_many_maps_and_likelihoods_fit_their_lines() -> None:
    use = {"perplexity": 461.234, "used_codes": 500, "dead_codes": 12}
    figures = {f"codebook/{name}_{m}": value + m for name, value in use.items() for m in range(12)}
    assert codebook(figures) == "perplexity 461.2 to 472.2 of 534 in 12 maps, 210 dead codes in all"
    assert codebook({}) == "none"
    bits = {"prior/bits_per_code_bound": 4.1234, "prior/bits_per_code_uniform": 9.0, "model/bits_per_dim_bound": 3.2}
    assert prior(bits) == "at most 4.123 bits per code (9 without it), 3.2 bits per dim in all"
    searched = {"autoencoder/psnr_db": 25.144, "autoencoder/searched_psnr_db": 25.54, "autoencoder/ssim": 0.9}
    assert reconstruction(searched) == "PSNR 25.14 dB, 25.54 with code search, SSIM 0.900"
