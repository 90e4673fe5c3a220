"""The programs end to end, as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_CODEBOOK, TINY, call_inside, lines, run, train_inside
from PIL import Image

from vqvae.images import MARGIN, write_png
from vqvae.run.folder import RunFolder

RECONSTRUCTION = {f"autoencoder/{name}" for name in ("psnr_db", "psnr_mean_db", "ssim", "mse", "mse_over_variance")}
FIGURES = RECONSTRUCTION | {"prior/bits_per_code", "codebook/perplexity_0"}


def test_a_finished_run_holds_what_it_made(finished_run: Path) -> None:
    for name in ("config.yaml", "train.log", "summary.json", "codebook.png", "samples.png", "codes/train/header.json"):
        assert (finished_run / name).is_file(), name
    summary = json.loads((finished_run / "summary.json").read_text())["figures"]
    assert set(summary) >= FIGURES | {"autoencoder/seconds", "prior/items_per_second"}
    assert all(one["protocol"] for one in summary.values())
    assert Image.open(finished_run / "samples.png").size == (
        MARGIN + 8 * 66 + 2,
        10 * 66 + 2,
    )  # ten classes, eight each


def test_metrics_hold_every_term_plain_and_weighted_and_all_codebook_figures(finished_run: Path) -> None:
    train, val = lines(finished_run / "autoencoder" / "metrics.jsonl")[-2:]
    commitment, weighted = (train[f"autoencoder/train/commitment{kind}_0"] for kind in ("", "_weighted"))
    assert weighted == pytest.approx(0.25 * commitment, rel=1e-5)
    total = train["autoencoder/train/reconstruction_mse_weighted"] + weighted
    assert train["autoencoder/train/loss"] == pytest.approx(total, rel=1e-5)
    for name in ("batch_perplexity", "batch_usage", "window_perplexity", "window_usage", "window_dead_codes"):
        assert f"codebook/train/{name}_0" in train
    assert train["autoencoder/train/learning_rate"] > 0
    assert train["autoencoder/train/grad_norm"] > 0
    assert sum(val["codebook/val/count_histogram_0"]["counts"]) == 16
    timing = lines(finished_run / "autoencoder" / "timing.jsonl")[-1]
    assert {"timing/items_per_second", "timing/memory_mb", "timing/seconds"} <= set(timing)


def test_sample_i_is_the_same_whatever_is_asked_for_beside_it(finished_run: Path, tmp_path: Path) -> None:
    for name, n, seed in (("many", 5, 10), ("one", 1, 12)):
        call_inside(
            "sample", f"run_dir={finished_run}", f"n={n}", f"seed={seed}", f"out={tmp_path / name}", "singles=true"
        )
    many, one = (np.load(tmp_path / name / "samples.npz", allow_pickle=False) for name in ("many", "one"))
    for key in ("items", "codes_0", "labels"):
        assert np.array_equal(many[key][2], one[key][0])
    assert len(list((tmp_path / "many").glob("*.png"))) == 6


def test_classes_are_chosen_by_name_number_or_all(finished_run: Path, tmp_path: Path) -> None:
    for wanted, expected in {"star": [4] * 3, "4": [4] * 3, "all": [0, 1, 2]}.items():
        call_inside("sample", f"run_dir={finished_run}", "n=3", f"class={wanted}", f"out={tmp_path / wanted}")
        assert np.load(tmp_path / wanted / "samples.npz")["labels"].tolist() == expected


@pytest.mark.parametrize(
    ("program", "override", "expected"),
    [
        ("sample", "class=stra", "class=stra does not exist; did you mean star?"),
        ("sample", "top_p=2", "top_p must be at most 1, got 2"),
        ("sample", "n=0", "n=0 must be at least 1 or null"),
        ("sample", "temprature=1", "temprature is not a config key or group; did you mean temperature?"),
        ("sample", "n=many", "n=many is not an integer"),
        ("sample", "run_dir=/nowhere", "run_dir=/nowhere holds no run"),
    ],
)
def test_mistakes_are_one_sentence(
    program: str, override: str, expected: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call_inside(program, *([] if override.startswith("run_dir") else [f"run_dir={finished_run}"]), override)
    message = capsys.readouterr().err
    assert (stopped.value.code, message.count("\n")) == (2, 1)
    assert expected in message


def test_evaluate_gives_the_figures_of_training_with_their_protocol(finished_run: Path, tmp_path: Path) -> None:
    done = run("scripts/evaluate.py", f"run_dir={finished_run}", f"out={tmp_path / 'figures.json'}", cwd=tmp_path)
    report = json.loads((tmp_path / "figures.json").read_text())
    summary = json.loads((finished_run / "summary.json").read_text())["figures"]
    for name in FIGURES:
        assert report["figures"][name]["value"] == pytest.approx(summary[name]["value"], rel=1e-5)
        assert name in done.stdout
    assert (report["split"], report["items"], report["precision"]) == ("val", 20, "float32")


def test_encode_writes_stores_that_decode_to_the_reconstructions(finished_run: Path) -> None:
    done = run("scripts/encode.py", f"run_dir={finished_run}", "splits=[test]")
    assert "20 images, maps of [(8, 8)], codebooks of [16]" in done.stdout
    codes = np.load(finished_run / "codes" / "test" / "codes_0.npy")
    assert (codes.dtype, codes.shape) == (np.uint8, (20, 8, 8))


def test_a_store_of_another_tokenizer_is_refused(finished_run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished_run, tmp_path / "copy")
    header = tmp_path / "copy" / "codes" / "val" / "header.json"
    header.write_text(re.sub(r'"tokenizer": "\w+"', '"tokenizer": "0123"', header.read_text()))
    done = run("scripts/evaluate.py", f"run_dir={tmp_path / 'copy'}", check=False)
    assert done.returncode == 2
    assert "does not fit: tokenizer is 0123, not" in done.stderr


def test_a_folder_of_images_trains_both_stages_from_the_command_line(tmp_path: Path) -> None:
    """Gray images of odd sizes, without classes, one broken, in a folder with a space."""
    torch.manual_seed(0)
    for index in range(24):
        write_png(tmp_path / "my images" / f"{index}.png", torch.randint(256, (1, 20 + index, 31), dtype=torch.uint8))
    (tmp_path / "my images" / "broken.jpg").write_bytes(b"\xff\xd8")
    own = [a for a in TINY if not a.startswith("data.")]
    data = ["data=folder", "data.root=my images", "data.image_size=16", "data.channels=1", "data.flip=true"]
    done = run("train.py", *own, *SMALL_CODEBOOK, *data, "run_dir=run", cwd=tmp_path)
    assert "cannot decode my images/broken.jpg (1 so far)" in done.stdout
    assert (tmp_path / "run" / "samples.png").is_file()
    run("sample.py", "run_dir=run", "n=2", cwd=tmp_path)


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
@pytest.mark.parametrize("model", ["conv", "resnet"])
def test_other_quantizers_and_networks_run_both_stages(quantizer: str, model: str, tmp_path: Path) -> None:
    own = [a for a in TINY if not a.startswith("model")]
    small = {"conv": "model.encoders.0.widths=[8,8]", "resnet": "model.encoders.0.widths=[8,8,8]"}[model]
    arguments = [*own, f"quantizer={quantizer}", f"model={model}", small, f"run_dir={tmp_path / 'run'}", "loss=l1"]
    train_inside(*arguments)
    assert (tmp_path / "run" / "samples.png").is_file()


@pytest.mark.parametrize("prior", ["transformer", "maskgit", "pixelsnail", "wavenet"])
def test_other_priors_train_on_a_finished_tokenizer(prior: str, finished_run: Path, tmp_path: Path) -> None:
    small = [a for a in TINY if a.startswith(("logger", "debug"))] + ["prior.network.width=8", "prior.network.layers=1"]
    heads = [] if prior == "wavenet" else ["prior.network.heads=1"]
    train_inside(*small, *heads, f"prior={prior}", f"tokenizer={finished_run}", f"run_dir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "samples.png").is_file()


def test_identity_is_a_plain_autoencoder(tmp_path: Path) -> None:
    train_inside(*TINY, "quantizer=identity", "stages=[autoencoder]", f"run_dir={tmp_path / 'run'}")
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["figures"]
    assert "autoencoder/psnr_db" in figures
    assert not any(name.startswith("codebook") for name in figures)


def test_overfit_shows_that_the_networks_can_learn(tmp_path: Path) -> None:
    own = [a for a in TINY if not a.startswith(("debug", "model", "quantizer"))]
    train_inside(*own, "debug=overfit", "stages=[autoencoder]", "trainer.steps=60", f"run_dir={tmp_path / 'run'}")
    losses = [
        line["autoencoder/train/loss"]
        for line in lines(tmp_path / "run" / "autoencoder" / "metrics.jsonl")
        if "autoencoder/train/loss" in line
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_a_sweep_makes_a_folder_a_job_one_table_and_skips_what_is_finished(tmp_path: Path) -> None:
    own = [a for a in TINY if not a.startswith("quantizer.")]
    arguments = ["-m", *own, "quantizer=ema,fsq", "stages=[autoencoder]", f"run_dir={tmp_path / 'sweep'}"]
    first = run("train.py", *arguments)
    assert "2 finished jobs in" in first.stdout
    with (tmp_path / "sweep" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert {"quantizer=ema" in row["job"] for row in rows} == {True, False}
    assert all(float(row["autoencoder/psnr_db"]) > 0 for row in rows)
    second = run("train.py", *arguments)
    assert second.stdout.count("autoencoder: finished before") == 2


def test_a_failed_job_of_a_sweep_is_reported_and_the_others_are_kept(tmp_path: Path) -> None:
    own = [a for a in [*TINY, *SMALL_CODEBOOK] if not a.startswith("prior")]
    sweep = ["-m", *own, "stages=[autoencoder]", f"run_dir={tmp_path / 'sweep'}"]
    first = run("train.py", *sweep, "trainer.batch_size=500,8", check=False)
    assert first.returncode == 1
    assert "1 finished jobs and 1 failed in" in first.stdout
    reason = "trainer.batch_size=500 is larger than the training set; at most 96 fits"
    assert f"error: {reason}\n" in first.stderr
    with (tmp_path / "sweep" / "summary.csv").open() as file:
        good, bad = csv.DictReader(file)
    assert (good["error"], bad["error"]) == ("", reason)
    assert float(good["autoencoder/psnr_db"]) > 0
    table = first.stdout[first.stdout.index("1 finished jobs") :].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["trainer.batch_size=8", "trainer.batch_size=500"]
    second = run("train.py", *sweep, "trainer.batch_size=8")
    assert "autoencoder: finished before" in second.stdout
    assert "1 finished jobs in" in second.stdout


def test_an_offline_wandb_run_is_read_back_by_leet(tmp_path: Path) -> None:
    own = [a for a in TINY if not a.startswith("logger")]
    run("train.py", *own, *SMALL_CODEBOOK, "logger.mode=offline", "run_dir=run", cwd=tmp_path)
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2  # one a stage
    names: set[str] = set()
    for folder in folders:
        (file,) = folder.glob("*.wandb")
        wandb = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(file)]
        done = subprocess.run(wandb, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        names |= set(re.findall(r'"((?:autoencoder|codebook|prior)/[^"]+)"', done.stdout))
    assert {"autoencoder/train/loss", "prior/train/loss", "autoencoder/val/psnr_db"} <= names
    assert {"codebook/val/perplexity_0", "prior/val/bits_per_code", "autoencoder/timing/items_per_second"} <= names
    assert {"autoencoder/images/reconstructions", "prior/samples"} <= names
    assert RunFolder.load(tmp_path / "run", []).weights_file("prior"), (
        "wandb's links do not make it a stranger's folder"
    )
    ids = [(tmp_path / "run" / stage / "wandb_id").read_text() for stage in ("autoencoder", "prior")]
    assert len(set(ids)) == 2


@pytest.mark.parametrize("own", [None, "7"])
def test_how_long_threads_wait_awake_is_set_before_torch_is_imported_and_a_value_of_the_users_stays(
    own: str | None,
) -> None:
    """OpenMP reads it once, when torch loads it."""
    code = "import os, sys, train, sample; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {} if own is None else {"GOMP_SPINCOUNT": own}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert said.stdout.split() == ["False", own or "10000"]


def test_the_package_is_importable_without_hydra_and_wandb() -> None:
    """For people who want the layers alone."""
    code = "import vqvae.model, vqvae.quantizers.vector, vqvae.priors.pixelcnn, vqvae.networks.resnet, sys\n"
    code += "assert not {'hydra', 'omegaconf', 'wandb'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
