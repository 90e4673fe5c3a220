"""Laws of what sample.py measures: PSNR of anyone's images, and the nearest training images of samples."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import call_inside
from PIL import Image
from test_sample import mistake, opened, sample

from vqvae.data.items import center_crop
from vqvae.images import LINE, MARGIN, normalize, write_png
from vqvae.sampling.nearest import Queries, by_codes, by_pixels, smallest, verdict

pytestmark = pytest.mark.cpu


def test_psnr_is_that_computed_by_hand_and_broken_files_are_named(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_ = opened(finished_run)
    images = [run_.split("val").read(i) for i in range(3)]
    for i, image in enumerate(images):
        write_png(tmp_path / "mine" / "sub" / f"{i}.png", image)
    (tmp_path / "mine" / "broken.png").write_bytes(b"no image")
    out = sample(finished_run, tmp_path / "out", "mode=reconstruct", f"folder={tmp_path / 'mine'}")
    printed = capsys.readouterr().out
    assert "skipped broken.png: UnidentifiedImageError" in printed
    with (out / "psnr.csv").open() as file:
        rows = list(csv.DictReader(file))
    tokenizer = run_.tokenizer()
    for row, image in zip(rows, images, strict=True):
        x = normalize(image[None])
        mse = float((((tokenizer.decode(tokenizer.encode(x)) - x) / 2) ** 2).mean())
        assert float(row["psnr_db"]) == pytest.approx(-10 * math.log10(mse), abs=1e-3)
        assert row["image"] in printed
    mean = sum(float(row["psnr_db"]) for row in rows) / 3
    assert f"mean PSNR of 3 images: {mean:.2f} dB, 1 file skipped" in printed


def test_reconstruct_takes_the_first_validation_images(finished_run: Path, tmp_path: Path) -> None:
    tables = []
    for n in (2, 5):
        out = sample(finished_run, tmp_path / str(n), "mode=reconstruct", f"n={n}", "columns=4")
        tables.append((out / "psnr.csv").read_text().splitlines())
    assert tables[1][:3] == tables[0]
    assert len(tables[1]) == 6
    assert Image.open(out / "reconstructions.png").size == (4 * 66 + 2, 3 * (66 + LINE) + 2 + LINE)


def test_a_folder_that_holds_no_image_is_one_sentence(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no files" in mistake(capsys, finished_run, "mode=reconstruct", f"folder={tmp_path}")
    (tmp_path / "note.txt").write_text("no image")
    message = mistake(capsys, finished_run, "mode=reconstruct", f"folder={tmp_path}")
    assert "holds no files that can be read" in message
    assert "1 .txt file (note.txt)" in message
    assert "note.txt cannot be read" in mistake(capsys, finished_run, "mode=complete", f"image={tmp_path / 'note.txt'}")


# ---- nearest


@pytest.mark.parametrize("flips", [[False], [False, True]])
def test_an_exact_copy_of_a_training_image_is_found(flips: list[bool], finished_run: Path) -> None:
    run_ = opened(finished_run)
    tokenizer, loader = run_.tokenizer(), run_.loader("train")
    wanted = torch.tensor([17, 95, 0])
    images, _ = next(iter(loader.batches([wanted])))
    images = center_crop(images, run_.data.size).cpu()
    images = images.flip(-1) if flips[-1] else images
    expected = wanted + len(loader) * flips[-1]
    found = by_pixels(run_, images, flips)
    assert torch.equal(found.numbers[:, 0], expected)
    assert (found.distances[:, 0] == 0).all()
    assert (found.distances[:, 1] > 0).all()
    codes = run_.code_store(tokenizer, "train", flipped=flips[-1]).codes(wanted)
    found = by_codes(run_, tokenizer, codes, flips)
    assert (found.distances[:, 0] == 0).all()
    assert (found.numbers == expected[:, None]).any(1).all()


def test_distances_are_those_of_all_pairs(finished_run: Path) -> None:
    run_ = opened(finished_run)
    tokenizer, train = run_.tokenizer(), run_.split("train")
    queries = Queries(
        torch.stack([run_.split("val").read(i) for i in range(4)]),
        run_.code_store(tokenizer, "val").codes(torch.arange(4)),
    )
    every = torch.stack([train.read(i) for i in range(len(train))]).double()
    rmse = (queries.items[:, None].double() - every).square().flatten(2).mean(2).sqrt()
    expected, order = rmse.sort(1)
    found = by_pixels(run_, queries.items, [False])
    assert torch.equal(found.numbers, order[:, :3])
    assert torch.allclose(found.distances, expected[:, :3])
    codes = run_.code_store(tokenizer, "train").codes(torch.arange(len(train)))[0]
    differing = (queries.codes[0][:, None] != codes).flatten(2).sum(2)
    assert torch.equal(by_codes(run_, tokenizer, queries.codes, [False]).distances, differing.sort(1)[0][:, :3])


def test_the_smallest_of_chunks_are_the_smallest_of_all_and_ties_go_to_the_first() -> None:
    distances = torch.randint(6, (5, 40), generator=torch.Generator().manual_seed(0))
    ranked, order = distances.sort(dim=1, stable=True)
    for chunk in (1, 7, 40):
        found = smallest(distances.split(chunk, dim=1))
        assert torch.equal(found.distances, ranked[:, :3])
        assert torch.equal(found.numbers, order[:, :3])


def test_the_verdict_states_the_medians() -> None:
    sentence = verdict("codes", torch.tensor([0, 1, 2, 10, 20]), samples=3, noun="image")
    assert "samples lie closer to their nearest training images than held-out images do" in sentence
    assert "medians 1 of 3 samples, 15 of 2 held-out" in sentence
    assert "in 100% of all pairs" in sentence
    assert "1 samples are exact copies" in sentence
    same = verdict("codes", torch.tensor([1, 3, 1, 3]), samples=2, noun="image")
    assert "as close to their nearest training images as held-out images do" in same
    assert "in 50% of all pairs" in same
    assert "0 samples" in same


def test_nearest_writes_rows_of_seven(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sample(finished_run, tmp_path, "mode=nearest", "n=2")
    assert Image.open(out / "nearest.png").size == (MARGIN + 7 * 66 + 2, 2 * 66 + 2 + 2 * LINE)
    assert len(re.findall(r"samples lie (closer to|farther from|as close to) their", capsys.readouterr().out)) == 2


def test_inputs_of_equal_names_have_outputs_of_their_own(finished_run: Path, tmp_path: Path) -> None:
    """Beside the run, where no `out` is given: images of equal names in two folders, and of two formats in one."""
    folder = finished_run / "samples"
    before = set(folder.glob("complete*"))
    for name in ("one", "two"):
        write_png(tmp_path / name / "my.png", torch.randint(256, (3, 32, 32), dtype=torch.uint8))
        for _ in range(2):  # the same command writes to the same place
            call_inside(
                "sample", f"run_dir={finished_run}", "mode=complete", "n=1", f"image={tmp_path / name / 'my.png'}"
            )
    made = set(folder.glob("complete*")) - before
    assert len(made) == 2
    assert len({(path / "completions.png").read_bytes() for path in made}) == 2
    for other in ("my.bmp", "my.webp"):
        Image.open(tmp_path / "one" / "my.png").rotate(90).save(tmp_path / "one" / other)
    out = sample(finished_run, tmp_path / "out", "mode=reconstruct", f"folder={tmp_path / 'one'}", "size=original")
    assert len(list(out.glob("my*.png"))) == 3
