"""Laws of the registry of figures: everything that is logged is declared once, and pages and tables are made from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import lines

from scripts import settings_table
from scripts.metrics_table import page
from vqvae.config.build import build
from vqvae.config.compose import compose
from vqvae.metrics.registry import FIGURES, figure, find, in_split, without_split
from vqvae.run.plots import panels_of
from vqvae.run.report import figures, print_figures
from vqvae.run.sweep import shown_columns
from vqvae.training.wandb_values import metric_settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def own() -> Iterator[None]:
    """Figures that a test declares are forgotten after it."""
    before = dict(FIGURES)
    yield
    FIGURES.clear()
    FIGURES.update(before)


def test_the_page_of_metrics_is_that_of_the_registry() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text()
    assert written == page() + "\n", "python scripts/metrics_table.py > docs/metrics.md"


def test_the_page_of_settings_is_that_of_the_configs_and_of_the_ranges() -> None:
    written = (ROOT / "docs" / "settings.md").read_text()
    assert written == settings_table.page() + "\n", "python scripts/settings_table.py > docs/settings.md"
    assert "| `clip_grad_norm` | `null` | a number above 0 or null |" in written


def test_everything_that_a_run_logs_is_declared(finished_run: Path) -> None:
    files = [
        finished_run / stage / f"{kind}.jsonl" for stage in ("autoencoder", "prior") for kind in ("metrics", "timing")
    ]
    names = {without_split(name)[0] for file in files for line in lines(file) for name in line} - {"step"}
    assert [name for name in sorted(names) if find(name) is None] == []


def test_a_name_in_logs_is_read_back() -> None:
    assert in_split("codebook/perplexity_3", "val") == "codebook/val/perplexity_3"
    assert without_split("codebook/val/perplexity_3") == ("codebook/perplexity_3", "val")
    assert without_split("timing/seconds") == ("timing/seconds", "")


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("codebook/perplexity_12", "codebook/perplexity_{m}"),
        ("codebook/window_perplexity_0", "codebook/window_perplexity_{m}"),
        ("prior/bits_per_code_bound_1", "prior/bits_per_code_bound_{m}"),
        ("prior/bits_per_code_bound", "prior/bits_per_code_bound"),
        ("autoencoder/code_distance_0", "autoencoder/code_distance_{level}"),
        ("autoencoder/entropy_0", "autoencoder/{term}_{level}"),
        ("autoencoder/entropy_weighted_0", "autoencoder/{term}_weighted_{level}"),
        ("autoencoder/reconstruction_mse_weighted", "autoencoder/reconstruction_{loss}"),
        ("autoencoder/searched_psnr_db", "autoencoder/searched_{figure}"),
        ("prior/grad_norm", "{stage}/grad_norm"),
        ("codebook/perplexity_x", None),
        ("autoencoder/unheard_of", None),
    ],
)
def test_a_member_of_a_family_has_its_entry(name: str, entry: str | None) -> None:
    found = find(name)
    assert (found.name if found else None) == entry


def test_a_new_figure_is_one_entry(own: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Its protocol, panel, place in a sweep's table and direction in wandb follow."""
    name = figure("autoencoder/fid", "FID of reconstructions", better="lower", panel="distances", sweep=True)
    assert figures({name: 3.25}) == {name: {"value": 3.25, "protocol": "FID of reconstructions"}}
    assert shown_columns(["job", "autoencoder/mse", name, "error"]) == [name, "error"]
    print_figures("run", figures({name: 3.25}))
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed == [[], ["run"], ["figure", "value"], [], [name, "3.25"]]
    assert panels_of({"autoencoder/val/fid"}) == {"distances": ["autoencoder/val/fid"]}
    assert ("autoencoder/val/fid", {"summary": "min"}) in metric_settings("autoencoder")


def test_a_figure_is_declared_once(own: None) -> None:
    with pytest.raises(AssertionError, match="declared twice"):
        figure("autoencoder/psnr_db", "again")


def test_plots_show_what_the_registry_says() -> None:
    names = {
        "step",
        "autoencoder/train/loss",
        "autoencoder/val/loss",
        "codebook/val/perplexity_1",
        "codebook/val/usage_1",
    }
    assert panels_of(names) == {
        "loss": ["autoencoder/train/loss", "autoencoder/val/loss"],
        "perplexity": ["codebook/val/perplexity_1"],
    }


def test_the_table_of_a_sweep_shows_the_first_map_alone() -> None:
    assert shown_columns(["codebook/usage_0", "codebook/usage_1", "autoencoder/mse"]) == ["codebook/usage_0"]


def test_wandb_keeps_the_best_value() -> None:
    settings = list(metric_settings("prior"))
    assert ("autoencoder/val/psnr_db", {"summary": "max"}) in settings
    assert ("prior/val/bits_per_code", {"summary": "min"}) in settings
    assert all("{" not in name and name.find("*") in (-1, len(name) - 1) for name, _ in settings)


def test_the_table_on_the_terminal_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_figures("run", figures({entry.name.replace("{m}", "0"): 123456.789 for entry in FIGURES.values()}))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_figures_of_ones_own_are_shown_unless_they_say_otherwise(own: None) -> None:
    shown, hidden = figure("mine/share", "a share"), figure("mine/other", "another", dashboard=False)
    assert (FIGURES[shown].dashboard, FIGURES[hidden].dashboard) == (True, False)
    assert not FIGURES["timing/seconds"].dashboard  # of the package
    settings = build(compose("train", ["logger=off"]).logger, "logger")
    logged = {in_split(name, "val"): 1.0 for name in (shown, hidden)} | {"timing/seconds": 1.0}
    assert settings.chosen(logged) == {"mine/val/share": 1.0}
