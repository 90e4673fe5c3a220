"""Do samples show what was asked for? Judged by a classifier that has seen real pictures only."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import command
from torch import Tensor, nn

from vqvae.data.shapes import draw_shapes
from vqvae.images import normalise, to_uint8
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run

SAMPLES = 1000


def train(*overrides: str) -> None:
    """train.py with all cores, as a user has it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    subprocess.run(command("train.py", "logger=off", *overrides), check=True, capture_output=True, env=environment)


def classifier(images: Tensor, labels: Tensor) -> nn.Module:
    """A small convolutional network that has seen each of the pictures uint8 (n, 3, 32, 32) once."""
    torch.manual_seed(0)
    widths, layers = [3, 32, 64, 128], []
    for width_in, width in itertools.pairwise(widths):
        layers += [nn.Conv2d(width_in, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    batches = torch.randperm(len(images)).split(50)
    for step, chosen in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / len(batches))
        F.cross_entropy(model(normalise(images[chosen])), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def recognised(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Share of pictures uint8 (n, 3, 32, 32) that the classifier calls by their label."""
    return (model(normalise(pictures)).argmax(1) == labels).double().mean().item()


def share_recognised(model: nn.Module, folder: Path) -> tuple[float, float]:
    """-> of samples with a class asked for, and of the tokenizer's reconstructions of validation pictures."""
    run = Run(RunFolder.load(folder, []))
    trained = run.trained_model()
    labels = torch.arange(SAMPLES) % 10
    samples = to_uint8(trained.sample(range(SAMPLES), labels))
    images, real_labels = next(iter(run.loader("val").batches([torch.arange(SAMPLES)])))
    rebuilt = to_uint8(trained.decode(trained.encode(normalise(images))))
    return recognised(model, samples, labels), recognised(model, rebuilt, real_labels)


def seconds_of_prior(folder: Path) -> float:
    """Wall clock of stage 2's training steps."""
    return json.loads((folder / "summary.json").read_text())["figures"]["prior/seconds"]["value"]


@pytest.mark.alone
@pytest.mark.slow
def test_samples_of_the_quickstart_and_of_a_transformer_show_the_class_that_was_asked_for(tmp_path: Path) -> None:
    """At least 0.90 and 0.97 times as often as reconstructions of real pictures do, drawn as sample.py draws, after the same
    time: a short run tells how many steps of the transformer fit into it."""
    quickstart, short, other = (tmp_path / name for name in ("quickstart", "short", "transformer"))
    train(f"run_dir={quickstart}")
    seconds = seconds_of_prior(quickstart)
    transformer = [f"tokenizer={quickstart}", "prior=transformer"]
    train(*transformer, "prior.trainer.steps=150", f"run_dir={short}")
    steps = int(150 * seconds / seconds_of_prior(short))
    time = f"prior.trainer.max_time_minutes={seconds / 60}"
    train(*transformer, f"prior.trainer.steps={steps}", time, f"run_dir={other}")
    images, labels = draw_shapes(20_000, 32, seed=12345)  # not the run's own pictures
    model = classifier(images, labels)
    fresh, fresh_labels = draw_shapes(1000, 32, seed=54321)
    assert recognised(model, fresh, fresh_labels) > 0.95, "the judge itself must know the classes"
    for folder, share in ((quickstart, 0.90), (other, 0.97)):
        of_samples, of_reconstructions = share_recognised(model, folder)
        print(f"{folder.name}: {of_samples:.3f} of samples, {of_reconstructions:.3f} of reconstructions")
        assert of_samples >= share * of_reconstructions, folder.name
