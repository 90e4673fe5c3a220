"""The table of a run beside JPEG and WebP."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
import torch
from conftest import call_inside
from PIL import Image

from scripts import compare_codecs
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.shipped.runs import SHIPPED


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """40 of the embedded validation images."""
    return compare_codecs.validation_images(Run(RunFolder.load(SHIPPED / "shapes", [])), 40)


def test_a_sheet_holds_each_image_once_and_gives_it_back(images: torch.Tensor) -> None:
    sheet = compare_codecs.as_sheet(images)
    assert sheet.shape == (1, 3, 2 * 32, compare_codecs.COLUMNS * 32)
    assert torch.equal(sheet[0, :, 32:64, 64:96], images[compare_codecs.COLUMNS + 2])
    assert torch.equal(compare_codecs.from_sheet(sheet[0], images.shape), images)


@pytest.mark.parametrize("form", compare_codecs.SETTINGS)
def test_bytes_are_those_of_the_files_and_images_those_that_a_reader_sees(form: str, images: torch.Tensor) -> None:
    size, decoded = compare_codecs.through(form, images[:2], 50)
    files = [io.BytesIO(), io.BytesIO()]
    for file, image, seen in zip(files, images, decoded):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, form, quality=50, **compare_codecs.SETTINGS[form])
        assert list(Image.open(file).convert("RGB").getdata())[5] == tuple(seen[:, 0, 5].tolist())
    assert size == sum(len(file.getvalue()) for file in files)


@pytest.mark.parametrize("lowest", [0, 1, 57, 100, None])
def test_the_first_good_quality_is_found(lowest: int | None) -> None:
    assert compare_codecs.first(lambda quality: lowest is not None and quality >= lowest) == lowest


@pytest.mark.parametrize("sheet", [True, False])
@pytest.mark.parametrize("form", compare_codecs.SETTINGS)
def test_a_row_has_no_more_bytes_than_the_run_and_another_no_less_quality(
    form: str, sheet: bool, images: torch.Tensor
) -> None:
    at_bytes, at_psnr = compare_codecs.rows_of(form, images, sheet, (400.0, 30.0))
    assert "at these bytes" in at_bytes[0]
    assert at_bytes[1] <= 400
    assert compare_codecs.psnr_of(at_psnr[2], images) >= 30
    smallest, *rest = compare_codecs.rows_of(form, images, sheet, (1.0, 200.0))
    assert "the smallest there is (quality 0)" in smallest[0]
    assert not rest, "no quality has 200 dB"


@pytest.mark.skipif(importlib.util.find_spec("constriction") is None, reason="needs constriction")
def test_the_shipped_run_stands_beside_both_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call_inside("scripts.compare_codecs", "--images", "40", "--judge", "none", "run_dir=shapes")
    head, ours, *others = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "40 images"
    assert ours.startswith("this run ")
    size, psnr = float(ours.split()[2]), float(ours.split()[3])
    assert 20 < size < 64 + 1, "below a byte a code, which is 8 bits without a prior"
    assert psnr > 29
    assert {line.split(",")[0] for line in others} == {"JPEG", "WebP"}
    call_inside("scripts.compare_codecs", "run_dir=nothing")
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "run_dir=nothing" in said.err
