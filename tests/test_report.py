"""Laws of the report: one file that runs nothing of a stranger's, says what is missing, and shows what was measured."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import PROGRAM, Browser
from conftest import ROOT, SMALL_CODEBOOK, TINY, run, train_inside
from omegaconf import OmegaConf

from vqvae.images import write_png
from vqvae.report import page as pages
from vqvae.report.charts import Chart, Line, axis_of, histogram
from vqvae.report.codes import Neighborhoods
from vqvae.report.contents import Contents
from vqvae.report.items import Items, Pair
from vqvae.report.page import MOST_BYTES, page
from vqvae.report.pictures import Picture
from vqvae.report.places import hider
from vqvae.report.settings import changed_settings
from vqvae.report.write import opened
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run

OWN = [one for one in TINY if not one.startswith("data.")]
HOSTILE = [  # names of classes, files and runs
    "<script>alert(1)<!--",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</style><svg onload=alert(4)>".replace("/", "\u2215"),
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp\x1b[31m",
]
TAGS = {  # of the template
    *("html", "head", "meta", "title", "link", "style", "body", "header", "footer", "nav", "main", "section", "script"),
    *(
        "p",
        "h1",
        "h2",
        "h3",
        "h4",
        "a",
        "b",
        "i",
        "em",
        "code",
        "pre",
        "small",
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
        "div",
        "span",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "svg", "path", "details", "summary"),
    *("button", "label", "input"),
}


class Parsed(HTMLParser):
    """Elements and their attributes, the scripts, and the text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.source = file.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text in single spaces, that of style and scripts too."""
        return re.sub(r"\s+", " ", " ".join(self.texts))


def assert_runs_nothing_of_others(found: Parsed) -> None:
    """Only elements of the template, no handlers, nothing loaded, and one script, which the page's policy names."""
    assert {tag for tag, _ in found.elements} <= TAGS
    names = {name for _, attributes in found.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    for tag, attributes in found.elements:
        for name in ("src", "href"):
            if (value := attributes.get(name)) is not None:
                assert re.match(r"data:(image/(png|webp);base64,[A-Za-z0-9+/=]+|,)$|#[a-z]+$", value), (tag, value[:80])
    programs = [script for (_, of), script in zip(scripts_of(found), found.scripts) if of.get("type") is None]
    (policy,) = (of["content"] for tag, of in found.elements if of.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(programs[0].encode()).digest()).decode()
    assert len(programs) == 1
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in str(policy)


def scripts_of(found: Parsed) -> list[tuple[str, dict[str, str | None]]]:
    return [element for element in found.elements if element[0] == "script"]


def report(*arguments: str, cwd: Path | None = None) -> Parsed:
    """The report that scripts/report.py writes."""
    return Parsed(
        (cwd or Path()) / run("scripts/report.py", *arguments, cwd=cwd).stdout.split("written to ")[1].strip()
    )


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, in `run`, on gray images in folders with hostile names, in `images`; report=true."""
    base = tmp_path_factory.mktemp("stranger")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in HOSTILE:
            for index in range(3):
                pixels = torch.randint(256, (1, 16, 16), dtype=torch.uint8, generator=generator)
                write_png(base / "images" / split / name / f"{index}{HOSTILE[1]}.png", pixels)
    data = ["data=folder", f"data.root={base / 'images'}", "data.image_size=16", "data.channels=1"]
    cache = f"data.cache_dir={base / 'cache'}"
    train_inside(*OWN, *SMALL_CODEBOOK, *data, cache, "report=true", f"run_dir={base / 'run'}")
    return base


@pytest.fixture
def copied(stranger: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stranger / "run", tmp_path / "run"))


def test_a_run_ends_with_a_page_that_runs_nothing_of_others_and_shows_their_names(stranger: Path) -> None:
    found = Parsed(stranger / "run" / "report.html")
    assert_runs_nothing_of_others(found)
    for name in HOSTILE[:5]:
        assert name in found.text
    assert "\\u202egnp\\x1b[31m" in found.text
    assert "\u202e" not in found.source
    assert "\x1b" not in found.source


def test_a_page_holds_no_path_of_the_machine_that_it_was_made_on(stranger: Path) -> None:
    found = Parsed(stranger / "run" / "report.html")
    assert str(stranger) not in found.source
    assert "run folder: run (vqvae" in found.text  # of train.log
    assert "train in images/train, val in images/val" in found.text
    assert "images" in found.text


def test_paths_are_written_from_the_run_folder_on_or_as_names() -> None:
    run = Contents("mine", "/home/me/my runs/mine", config={"data": {"root": "/mnt/my disk/photos"}, "seed": 3})
    hide = hider([run])
    said = {
        "line 1 of /home/me/my runs/mine/autoencoder/metrics.jsonl is damaged": (
            "line 1 of autoencoder/metrics.jsonl is damaged"
        ),
        "python train.py run_dir='/home/me/my runs/mine' continues it": "python train.py run_dir='mine' continues it",
        "train in /mnt/my disk/photos/train, val in /mnt/my disk/photos/val": "train in photos/train, val in photos/val",
        "init_from=/srv/runs/other: 3 of 4": "init_from=other: 3 of 4",
        "12 images/s, 1 / 2 of autoencoder/val/psnr_db, https://a.b/c/d, runs/x/y": None,
    }
    for text, shown in said.items():
        assert hide(text) == (shown or text)


def test_whatever_a_strangers_files_say_is_text(copied: Path) -> None:
    """In every file of a run folder that holds text, where the program does not refuse it."""
    evil = "</script></pre></td>\"'><script>alert(9)</script>\u202e"
    config = OmegaConf.load(copied / "config.yaml")
    config.logger.project, config.logger.tags = evil, [evil]
    (copied / "config.yaml").write_text(OmegaConf.to_yaml(config))
    summary = json.loads((copied / "summary.json").read_text())
    summary["version"] = evil
    summary["figures"] |= {
        evil: {"value": 3, "protocol": evil},
        "x": {"value": evil},
        "y": evil,
        "z": {"value": 10**400},
    }
    (copied / "summary.json").write_text(json.dumps(summary))
    (copied / f"evaluation_{HOSTILE[0]}.json").write_text(json.dumps({**summary, "items": evil}))
    (copied / "machine.json").write_text(json.dumps({evil: evil, "torch": evil}))
    (copied / "train.log").write_text(evil)
    log = copied / "autoencoder" / "metrics.jsonl"
    bins = {"edges": [0.0, 5e-324, 1e99], "counts": [float("inf"), 2**62]}
    bins = {"edges": [0.0, 5e-324, 1e99], "counts": [float("inf"), 2**62]}
    more = {"step": 5, f"autoencoder/val/{evil}": 1.0, evil: 2, "codebook/val/perplexity_99": float("nan")}
    more["autoencoder/val/similarity_histogram_0"] = bins
    log.write_text(log.read_text() + json.dumps(more) + "\n")
    (copied / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n" + evil.encode() * 9)
    shutil.copytree(copied, copied.parent / HOSTILE[1])
    found = report(f"run_dir=[{copied},'{copied.parent / HOSTILE[1]}']", "out=page.html", cwd=copied.parent)
    assert_runs_nothing_of_others(found)
    assert "<script>alert(9)</script>\\u202e" in found.text
    assert "There is no samples.png" in found.text


def test_the_page_says_what_is_missing_of_a_run_without_its_data(stranger: Path, copied: Path) -> None:
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace(str(stranger / "images"), str(copied / "gone")))
    found = report(f"run_dir={copied}")
    assert "data.root=gone is not a folder" in found.text
    assert "Previews" in found.text  # of training, in place of reconstructions
    assert "codes are used in the validation set" in found.text
    assert "of the split 'val'" not in found.text
    shutil.rmtree(copied / "codes" / "val")
    again = report(f"run_dir={copied}")
    assert again.text.count("is not a folder") == 1
    assert "of 16 codes are used" not in again.text
    there = report(f"run_dir={copied}", f"data.root={stranger / 'images'}")
    assert "of the split 'val'" in there.text


def test_the_page_says_what_is_missing_of_a_run_with_one_stage_and_of_one_that_was_stopped(
    copied: Path, tmp_path: Path
) -> None:
    shutil.rmtree(copied / "prior")
    for name in ("samples.png", "summary.json", "train.log", "machine.json"):
        (copied / name).unlink()
    found = report(f"run_dir={copied}")
    assert f"The prior is not finished: not begun. python train.py run_dir={copied.name} continues it." in found.text
    assert "autoencoder, step 4" in found.text  # where the figures are from
    config = OmegaConf.load(copied / "config.yaml")
    config.stages = ["autoencoder"]
    (copied / "config.yaml").write_text(OmegaConf.to_yaml(config))
    assert "The prior was not asked for: stages=[autoencoder]." in report(f"run_dir={copied}").text
    stopped = Path(shutil.copytree(ROOT / "tests" / "older_runs" / "stopped", tmp_path / "stopped"))
    assert "The autoencoder is not finished: stopped at step 2." in report(f"run_dir={stopped}").text


def test_a_damaged_file_is_one_sentence_among_what_is_missing(copied: Path) -> None:
    (copied / "autoencoder" / "metrics.jsonl").write_text("{\n")
    (copied / "summary.json").write_text("[" * 100_000)
    (copied / "codes" / "val" / "codes_0.npy").write_bytes(b"x")
    assert "line 1 of" in (text := report(f"run_dir={copied}").text)
    assert "codes_0.npy" in text


def test_no_run_and_too_many_are_refused_in_one_sentence(copied: Path, tmp_path: Path) -> None:
    for arguments, said in [
        ("run_dir=nowhere", "run_dir=nowhere holds no run"),
        ("run_dir=[]", "names no run"),
        ("run_dir=[" + ",".join(f"{copied}/{number}" for number in range(25)) + "]", "shows at most 24 runs"),
        ("run_dir=3", "run_dir=3 holds no run"),
    ]:
        done = run("scripts/report.py", arguments, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr


def test_a_sweeps_folder_is_a_page_of_its_jobs_and_of_those_that_failed(copied: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "sweep"
    for seed in (0, 1):
        job = Path(shutil.copytree(copied, jobs / f"seed={seed}"))
        (job / "config.yaml").write_text((job / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}"))
    (jobs / "seed=2.job.json").write_text(json.dumps({"overrides": ["seed=2"], "error": "it <b>failed</b>"}))
    found = report(f"run_dir={jobs}")
    assert (jobs / "report.html").is_file()
    assert "2 runs side by side" in found.text
    assert "it <b>failed</b>" in found.text
    cells = re.findall(r"<td><code[^>]*>([^<]*)</code></td>", found.source)
    assert cells[:4] == ["seed", "0", "1", "0"]  # first what the runs differ in: key, values, default


def test_a_finished_run_keeps_its_report_and_makes_one_that_is_gone_unless_report_is_false(
    stranger: Path, copied: Path
) -> None:
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace(str(stranger / "images"), str(copied / "gone")))
    (copied / "report.html").write_text("with pictures")
    train_inside(f"run_dir={copied}")
    assert (copied / "report.html").read_text() == "with pictures"
    train_inside(f"run_dir={copied}", f"data.root={stranger / 'images'}")
    assert (copied / "report.html").read_text() == "with pictures"
    (copied / "report.html").unlink()
    train_inside(f"run_dir={copied}", f"data.root={stranger / 'images'}", "report=false")
    assert not (copied / "report.html").exists()
    train_inside(f"run_dir={copied}", f"data.root={stranger / 'images'}", "report=true")
    assert "Reconstructions" in Parsed(copied / "report.html").text


# ---- what is measured


@pytest.fixture(scope="module")
def contents(stranger: Path) -> Contents:
    return gathered(stranger / "run")


def gathered(folder: Path, most: int | None = None) -> Contents:
    return opened(Run(RunFolder.load(folder, [])), "run", most)


def test_the_mean_psnr_of_the_items_is_the_figure_of_the_summary(stranger: Path, contents: Contents) -> None:
    figures = json.loads((stranger / "run" / "summary.json").read_text())["figures"]
    assert contents.items is not None
    assert float(contents.items.psnr.mean()) == pytest.approx(figures["autoencoder/psnr_mean_db"]["value"], abs=1e-4)
    shown = sorted(pair.psnr for pair in contents.items.best)
    assert shown == pytest.approx(sorted(contents.items.psnr.tolist())[-len(shown) :])


def test_items_that_are_looked_at_have_the_error_that_stands_below_them(contents: Contents) -> None:
    """Up to the rounding of pixels to 8 bits."""
    assert contents.items is not None
    for pair in contents.items.worst:
        a, b = (one.image.double() / 255 for one in (pair.original, pair.reconstruction))
        assert -10 * torch.log10((a - b).square().mean()) == pytest.approx(pair.psnr, abs=0.05)


def test_codes_are_listed_by_their_use_in_the_store_with_the_nearest_of_them(
    stranger: Path, contents: Contents
) -> None:
    codes = np.load(stranger / "run" / "codes" / "val" / "codes_0.npy")
    counts = np.bincount(codes.ravel(), minlength=16)
    (code_map,) = contents.maps
    assert [code.uses for code in code_map.codes] == sorted(counts[counts > 0].tolist(), reverse=True)
    assert all(counts[code.number] == code.uses for code in code_map.codes)
    assert code_map.used == int((counts > 0).sum())
    book = Run(RunFolder.load(stranger / "run", [])).trained_model().model.codebooks()[0]
    assert book is not None
    shown = book.detach().double()[[code.number for code in code_map.codes]]
    for place, code in enumerate(code_map.codes):
        distances = [float((shown[place] - shown[other]).norm()) for other in code.nearest]
        assert place not in code.nearest
        rest = [float((shown[place] - one).norm()) for i, one in enumerate(shown) if i != place]
        assert distances == pytest.approx(sorted(rest)[: len(distances)], abs=1e-5)


@pytest.mark.parametrize(("side", "places"), [(12, 4), (10, 3), (8, 1)])
def test_a_codes_picture_is_the_mean_of_the_cells_where_it_is_and_of_those_around(side: int, places: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, side, side, generator=generator) * 2 - 1
    codes = torch.randint(4, (5, places, places), generator=generator)
    drawn = Neighborhoods(torch.tensor([2, 0]), 4)
    drawn.add(x[:2], codes[:2])
    drawn.add(x[2:], codes[2:])
    cell = -(-side // places)
    whole = torch.nn.functional.interpolate(x, [cell * places] * 2, mode="bilinear").double().numpy()
    margin = cell if places > 2 else 0
    for slot, code in enumerate((2, 0)):
        found = []
        for n, row, column in np.argwhere(codes.numpy() == code):
            rows = np.arange(row * cell - margin, (row + 1) * cell + margin).clip(0, cell * places - 1)
            columns = np.arange(column * cell - margin, (column + 1) * cell + margin).clip(0, cell * places - 1)
            found.append(whole[n][:, rows][:, :, columns])
        assert np.abs(drawn.tiles()[slot].numpy() - np.mean(found, 0)).max() < 1e-5


def test_fewer_items_are_measured_where_that_is_asked_for(stranger: Path) -> None:
    items = gathered(stranger / "run", 4).items
    assert items is not None
    assert (len(items.psnr), items.total) == (4, 18)


# ---- the page


def noise(count: int, side: int) -> list[Pair]:
    images = torch.randint(256, (count, 2, 3, side, side), dtype=torch.uint8)
    return [Pair("noise", 1.0, Picture(a), Picture(b)) for a, b in images]


def test_a_page_has_as_many_pictures_as_go_into_5_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "changed_settings", lambda configs: [])
    few, many = (Items("val", True, 16, torch.ones(16), noise(16, side), [], []) for side in (16, 200))
    small, large = (page([Contents("a", "a", "finished", items=items)], {}) for items in (few, many))
    assert small.count('alt="original"') == 16
    assert len(large.encode()) <= MOST_BYTES
    assert 0 < large.count('alt="original"') < 16


def test_settings_name_what_was_changed_and_parts_of_another_class_as_a_whole() -> None:
    from vqvae.config.compose import compose, plain, resolve

    overrides = [["quantizer=fsq", "trainer.steps=7", "seed=3"], ["trainer.steps=7", "run_dir=somewhere"]]
    rows = changed_settings([plain(resolve(compose("train", one))) for one in overrides])
    assert [row[0] for row in rows] == ["quantizer", "seed", "trainer.steps"]
    assert rows[0][2][0] == "scalar.FSQ(dim=64, levels=[8, 8, 8])"
    assert rows[0][2][1] == rows[0][1]
    assert rows[2] == ("trainer.steps", "1500", ["7", "7"])


def test_settings_of_a_part_with_many_arguments_are_those_that_its_preset_does_not_have() -> None:
    from vqvae.config.compose import compose, plain, resolve

    overrides = [
        ["data=folder", "data.root=/a", "data.image_size=32"],
        ["data=folder", "data.root=/b", "data.flip=true"],
    ]
    rows = changed_settings([plain(resolve(compose("train", one))) for one in overrides])
    (row,) = [row for row in rows if row[0] == "data"]
    assert row[2] == [
        "folder.Folder(image_size=32, root=/a, resize=32)",
        "folder.Folder(flip=true, root=/b, resize=64)",
    ]


SPANS = [
    *([0.0], [3.0, 3.0], [-5.0, 7.0], [4.15, 4.1504], [1e-9, 2e-9], [1.0, 1e9], [0.0, 2**62]),
    *([1e99, 2e99], [0.0, 5e-324], [5e-324, 1e99]),
]


@pytest.mark.parametrize("values", SPANS, ids=str)
def test_every_value_and_every_tick_lies_within_its_axis(values: list[float]) -> None:
    for may_be_log in (False, True):
        axis = axis_of(values, may_be_log, margin=0.05)
        places = [axis.place(value) for value in values] + [place for place, _ in axis.ticks]
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
        assert 2 <= len({text for _, text in axis.ticks}) == len(axis.ticks) <= 12


def test_a_chart_leaves_out_what_is_not_finite_and_keeps_the_ends_of_long_lines() -> None:
    long = [(float(step), float(step % 7)) for step in range(100_000)]
    chart = Chart("t", [Line("nothing", [(1.0, float("nan"))]), Line("long", [*long, (1e6, float("inf"))])])
    (line,) = chart.lines
    assert (line.points[0], line.points[-1]) == (long[0], long[-1])
    assert len(line.points) <= 400
    assert not re.search("nan|inf", chart.path(line))
    assert Chart("t", []).lines == []


def test_a_histogram_is_as_high_as_its_counts() -> None:
    chart = histogram("t", [0.0, 1.0, 3.0], [4.0, 8.0], "n", "x")
    found: list[Any] = chart.for_pointer()[0]["points"]  # type: ignore[assignment]
    assert [(x, y) for _, _, x, y in found] == [("0.5", "4"), ("2", "8")]
    heights = [place for _, place, _, _ in found]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.02)


@pytest.mark.slow
def test_sounds_have_a_page_with_plots_of_waves_and_no_pictures_of_codes(tmp_path: Path) -> None:
    own = [one for one in TINY if not one.startswith("model")]
    sounds = ["data=tones", "data.length=256", "model=patch", "report=true"]
    train_inside(*own, *SMALL_CODEBOOK, *sounds, f"run_dir={tmp_path / 'run'}")
    text = Parsed(tmp_path / "run" / "report.html").text
    assert "They are no images: what is compared here are plots of them." in text
    assert "Pictures of single codes are left out: these codes have no cell of an image." in text


# ---- in a browser


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_in_a_browser_charts_tell_values_pictures_are_compared_and_nothing_is_complained_about(
    stranger: Path, tmp_path: Path
) -> None:
    file = stranger / "run" / "report.html"
    try:
        browser = Browser(tmp_path / "profile")
    except OSError as error:
        pytest.skip(f"Chromium does not start: {error}")
    try:
        browser.open(file)
        browser.move_to("#curves .area", 0.9)
        assert "autoencoder/val/psnr_db" in browser.value("document.querySelector('#curves .tip').innerText")
        assert (
            browser.value("getComputedStyle(document.querySelector('#reconstructions .box')).getPropertyValue('--at')")
            == "50%"
        )
        browser.click("#reconstructions input[type=range]", 0.9)
        cut = browser.value("getComputedStyle(document.querySelector('#reconstructions .made')).clipPath")
        assert 80 < float(re.findall(r"([\d.]+)%", cut)[0]) < 100
        browser.click("#reconstructions [value=error] + span")
        assert (
            browser.value("getComputedStyle(document.querySelector('#reconstructions .made')).mixBlendMode")
            == "difference"
        )
        browser.move_to(".codes button:nth-child(2)", 0.5)
        named = browser.value("document.querySelector('.codes button:nth-child(2)').textContent")
        assert browser.value("document.querySelector('.detail p').textContent").startswith(f"Code {named}: used ")
        for width, dark in ((1200, True), (390, False)):
            browser.open(file, width, dark)
            assert browser.value("document.documentElement.scrollWidth") <= width
        assert (
            browser.value("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
            == 0
        )
        assert browser.problems == []
    finally:
        browser.close()
