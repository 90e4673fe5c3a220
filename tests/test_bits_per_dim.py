"""Laws of the bits per dimension of a whole model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, run, train_inside
from torch import Tensor

from vqvae.losses.likelihood import LEVELS
from vqvae.run.evaluation import bits_per_dim, evaluate_run
from vqvae.run.folder import RunFolder
from vqvae.run.report import figures
from vqvae.run.run import Run
from vqvae.storage import checkpoint


class Known:
    """A run whose networks ignore their input: p(codes) and p(x | codes) are tables."""

    def __init__(self, path: Path) -> None:
        train_inside(*TINY, "quantizer.codebook.size=11", "loss=categorical", f"run_dir={path}")
        generator = torch.Generator().manual_seed(0)
        self.levels, self.codes = torch.randn(3, LEVELS, generator=generator), torch.randn(11, generator=generator)
        self.overwrite(path / "autoencoder", "model", self.levels.flatten())
        self.overwrite(path / "prior", "prior", self.codes)
        self.folder = RunFolder.load(path, [])

    def overwrite(self, folder: Path, network: str, bias: Tensor) -> None:
        """Zeroes the weights of the last layer (the only one with so many outputs), so that its bias alone counts."""
        (file,) = checkpoint.find(folder, "weights")
        state = checkpoint.load(file)
        tensors = state["networks"][network]
        (last,) = [name for name in tensors if name.endswith(".bias") and tensors[name].shape == bias.shape]
        tensors[last].copy_(bias)
        tensors[last.replace(".bias", ".weight")].zero_()
        checkpoint.save(folder, "weights", state)

    def measured(self) -> dict[str, Any]:
        for store in (self.folder.path / "codes").iterdir():  # made by the untouched autoencoder
            store.rename(self.folder.path / f"old_{store.name}")
        return evaluate_run(Run(self.folder), "val", batch_size=6, search=0)[0]


def test_bits_per_dim_of_a_model_that_is_two_tables_are_those_of_the_tables(tmp_path: Path) -> None:
    """From the pixels and the codes themselves, by counting, in numpy."""
    known = Known(tmp_path / "run")
    metrics = known.measured()
    split = Run(known.folder).split("val")
    images = np.stack([split.read(i).numpy() for i in range(len(split))])
    codes = np.load(known.folder.codes("val") / "codes_0.npy")
    bits = [-one.double().log_softmax(-1).numpy() / math.log(2) for one in (known.levels, known.codes)]
    reconstruction = np.mean([bits[0][c][images[:, c]] for c in range(3)])
    assert images.shape == (20, 3, 32, 32)
    assert metrics["model/bits_per_dim_reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert metrics["model/bits_per_dim_codes"] == pytest.approx(bits[1][codes].sum() / images.size, rel=1e-5)
    total = metrics["model/bits_per_dim_reconstruction"] + metrics["model/bits_per_dim_codes"]
    assert metrics["model/bits_per_dim"] == pytest.approx(total, rel=1e-12)


def test_the_summary_and_the_evaluation_of_a_run_agree_on_its_bits(tmp_path: Path) -> None:
    averaged = [f"{stage}trainer.weight_average_decay=0.5" for stage in ("", "prior.")]
    train_inside(*TINY, *SMALL_CODEBOOK, *averaged, "loss=logistic", f"run_dir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["figures"]
    measured = figures(evaluate_run(Run(RunFolder.load(tmp_path / "run", [])), "val", 20, search=0)[0])
    for name in ("model/bits_per_dim_reconstruction", "model/bits_per_dim_codes", "model/bits_per_dim"):
        assert summary[name]["value"] == pytest.approx(measured[name]["value"], rel=1e-5)
        assert summary[name]["protocol"] == measured[name]["protocol"]
    printed = run("scripts/evaluate.py", f"run_dir={tmp_path / 'run'}").stdout
    rows = dict(line.split()[:2] for line in printed.splitlines() if line.startswith("model/bits_per_dim"))
    terms = [float(rows[f"model/bits_per_dim{part}"]) for part in ("_reconstruction", "_codes", "")]
    assert terms[0] + terms[1] == pytest.approx(terms[2], abs=2e-3)


def test_bits_per_dim_are_left_out_where_a_part_is_missing(finished_run: Path) -> None:
    run = Run(RunFolder.load(finished_run, []))
    metrics = evaluate_run(run, "val", 20, search=0)[0]
    assert "prior/bits_per_item" in metrics
    assert not any(name.startswith("model/bits_per_dim") for name in metrics)
    assert bits_per_dim({"model/bits_per_dim_reconstruction": 4.0}, run.data) == {}


def test_the_bound_of_a_masked_prior_makes_a_bound_of_its_own_name(finished_run: Path) -> None:
    data = Run(RunFolder.load(finished_run, [])).data
    found = bits_per_dim({"model/bits_per_dim_reconstruction": 4.0, "prior/bits_per_item_bound": 3072.0}, data)
    assert found == {"model/bits_per_dim_codes_bound": 1.0, "model/bits_per_dim_bound": 5.0}
    assert set(figures(found)) == set(found)
