"""Laws of the search for better codes: it never makes an image worse, it finds known optima, and runs report its gain."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, call_inside, train_inside
from quantizer_cases import PRESETS, small_config
from torch import Tensor, nn
from two_processes import free_ports, under_torchrun

import vqvae
from vqvae.config.build import build
from vqvae.inference.search import around, cells, propose, search
from vqvae.inference.trained_model import DataInfo, TrainedModel
from vqvae.losses.heads import Pixels
from vqvae.losses.likelihood import Logistic
from vqvae.model import VQVAE
from vqvae.networks import patch, resnet
from vqvae.networks.blocks import Encoder
from vqvae.quantizers.scalar import FSQ

pytestmark = pytest.mark.cpu

SIZES = {"patch": 2, "width": 8, "hidden": 8, "depth": 1}
WITH_PLACES = [name for name in PRESETS if name not in ("identity", "multiscale")]


def same(x: Tensor) -> Tensor:
    return x


def model_of(ndim: int, quantizer: nn.Module) -> VQVAE:
    encoder, decoder = patch.Encoder(ndim, 3, quantizer.dim, **SIZES), patch.Decoder(ndim, 3, quantizer.dim, **SIZES)
    return VQVAE([encoder], [quantizer], [decoder])


def errors(model: VQVAE, x: Tensor, codes: list[Tensor]) -> Tensor:
    """-> (B,)."""
    return (model.decode(codes) - x).square().flatten(1).sum(1)


@pytest.mark.parametrize("name", WITH_PLACES)
@torch.no_grad()
def test_every_quantizers_codes_get_better_and_no_image_worse(name: str) -> None:
    torch.manual_seed(0)
    model = model_of(2, build(small_config(name), "quantizer"))
    x = torch.randn(64, 3, 8, 8)
    model.begin_run([x] * 40)
    model.eval()
    codes = model.encode(x)
    found = search(model, same, x, codes, sweeps=1)
    before, after = errors(model, x, codes), errors(model, x, found)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    for old, new, size in zip(codes, found, model.codebook_sizes):
        assert new.shape == old.shape
        assert new.dtype == old.dtype
        assert 0 <= new.min() <= new.max() < size


DATA = DataInfo("Noise", 3, (6, 10), [])


@pytest.mark.parametrize("size", [(14,), (6, 10), (4, 8, 6)])
@torch.no_grad()
def test_data_of_every_number_of_dims(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = model_of(len(size), FSQ(4, [5, 5, 4])).eval(), torch.randn(6, 3, *size)
    codes = model.encode(x)
    once, twice = (search(model, same, x, codes, sweeps) for sweeps in (1, 2))
    assert errors(model, x, twice).sum() < errors(model, x, once).sum() < errors(model, x, codes).sum()


@torch.no_grad()
def test_more_sweeps_are_never_worse_where_a_code_reaches_the_whole_image() -> None:
    torch.manual_seed(0)
    sizes = {"widths": [8, 16], "depth": 1, "attention_strides": [2]}
    encoder, decoder = resnet.Encoder(2, 3, 4, **sizes), resnet.Decoder(2, 3, 4, **sizes)
    model, x = VQVAE([encoder], [FSQ(4, [5, 5, 4])], [decoder]).eval(), torch.randn(8, 3, 12, 12)
    codes = model.encode(x)
    results = [errors(model, x, search(model, same, x, codes, sweeps)) for sweeps in range(1, 6)]
    assert all((more <= fewer * (1 + 1e-5)).all() for fewer, more in itertools.pairwise(results))
    assert results[-1].sum() < results[0].sum()


@torch.no_grad()
def test_an_images_codes_depend_on_no_other_image(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = model_of(2, FSQ(4, [5, 5, 4])).eval(), torch.randn(7, 3, 6, 10)
    codes = model.encode(x)
    (together,) = search(model, same, x, codes, sweeps=1)
    monkeypatch.setattr("vqvae.inference.search.POSITIONS_AT_A_TIME", 2 * 6 * 10)  # two at a time
    (apart,) = search(model, same, x, codes, sweeps=1)
    assert (together == apart).float().mean() > 0.99  # but for rounding


def test_inference_mode_around_it_changes_nothing() -> None:
    torch.manual_seed(0)
    model, x = model_of(2, FSQ(4, [5, 5, 4])).eval(), torch.rand(4, 3, 6, 10) * 2 - 1
    trained = TrainedModel(model, Pixels(1.0), DATA, "")
    (expected,) = trained.encode(x, search=1)
    assert not torch.equal(expected, trained.encode(x)[0])
    with torch.inference_mode():
        (found,) = trained.encode(x + 0, search=1)
    assert torch.equal(found, expected)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_likelihood_is_not_searched_with() -> None:
    torch.manual_seed(0)
    model = model_of(2, FSQ(4, [5, 5, 4])).eval()
    trained = TrainedModel(model, Logistic(weight=1.0, variance=1.0, mixtures=2), DATA, "")
    with pytest.raises(ValueError, match="loss=logistic is a likelihood"):
        trained.encode(torch.rand(1, 3, 6, 10), search=1)


@torch.no_grad()
def test_both_levels_of_a_hierarchy_are_searched() -> None:
    torch.manual_seed(0)
    lower = patch.Decoder(2, 3, 8, **SIZES)
    model = VQVAE(
        [patch.Encoder(2, 3, 4, **SIZES), patch.Encoder(2, 4, 4, **SIZES)],
        [FSQ(4, [5, 5, 4]), FSQ(4, [5, 5, 4])],
        [lower, patch.Decoder(2, 4, 4, **SIZES)],
    ).eval()
    x = torch.randn(8, 3, 16, 16)
    codes = model.encode(x)
    found = search(model, same, x, codes, sweeps=1)
    assert errors(model, x, found).sum() < errors(model, x, codes).sum()
    assert all(not torch.equal(a, b) for a, b in zip(codes, found))


class Itself(Encoder):
    """An encoder or decoder that does nothing: the best code of a place is the nearest to it."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # a model asks its parameters where it is

    def forward(self, x: Tensor) -> Tensor:
        return x


@torch.no_grad()
def test_where_the_best_codes_are_known_they_are_found_from_any_others() -> None:
    torch.manual_seed(0)
    quantizer = FSQ(3, [5, 5, 5])
    quantizer.project_in = quantizer.project_out = nn.Identity()
    model = VQVAE([Itself()], [quantizer], [Itself()]).eval()  # type: ignore[list-item]
    (vectors,) = model.code_vectors((6, 6))
    x = vectors[torch.randint(125, (4, 6, 6))].movedim(-1, 1) + 0.05 * torch.randn(4, 3, 6, 6)
    best = torch.cdist(x.movedim(1, -1).flatten(0, -2), vectors).argmin(1).view(4, 6, 6)
    assert torch.equal(search(model, same, x, [best], sweeps=1)[0], best)
    (found,) = search(model, same, x, [torch.randint(125, (4, 6, 6))], sweeps=30)
    assert (found == best).float().mean() > 0.95  # it may get stuck


def test_a_proposal_is_the_code_nearest_to_where_the_step_leads_and_never_the_present_one() -> None:
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    gradient = torch.tensor([[[-7.0, 0.0], [0.0, -7.0], [7.0, 0.1]]])  # down the gradient: right, up and left
    assert propose(vectors, torch.zeros(1, 3, dtype=torch.int64), gradient).tolist() == [[1, 2, 3]]
    assert propose(vectors[:2], torch.tensor([[0, 1]]), torch.zeros(1, 2, 2)).tolist() == [[1, 0]]


def test_proposals_in_chunks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vectors, codes, gradient = torch.randn(20, 4), torch.randint(20, (7, 2, 3)), torch.randn(7, 2, 3, 4)
    whole = propose(vectors, codes, gradient)
    monkeypatch.setattr("vqvae.inference.search.DISTANCES_AT_A_TIME", 2 * 6 * 20)
    assert torch.equal(propose(vectors, codes, gradient), whole)


def test_errors_are_summed_over_cells_and_over_what_is_beside_them() -> None:
    errors = torch.arange(24.0).view(1, 4, 6)
    summed = cells(errors, torch.Size([2, 3]))
    assert summed.tolist() == [[[14.0, 22.0, 30.0], [62.0, 70.0, 78.0]]]
    assert around(summed).tolist() == [[[168.0, 276.0, 200.0], [168.0, 276.0, 200.0]]]


def test_a_runs_codes_are_searched_for_and_its_figures_say_so(tmp_path: Path) -> None:
    plain, searched = tmp_path / "plain", tmp_path / "searched"
    few = [*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", "trainer.steps=60"]
    train_inside(*few, f"run_dir={plain}")
    train_inside(*few, f"run_dir={searched}", "search_sweeps=2")
    before, after = (json.loads((one / "summary.json").read_text())["figures"] for one in (plain, searched))
    assert after["autoencoder/psnr_db"] == before["autoencoder/psnr_db"]  # the encoder's own
    assert after["autoencoder/searched_psnr_db"]["value"] > after["autoencoder/psnr_db"]["value"] + 0.01
    assert not [name for name in before if name.startswith("searched")]
    stores = [np.load(one / "codes" / "val" / "codes_0.npy") for one in (plain, searched)]
    assert (stores[0] == stores[1]).all()  # priors learn the encoder's

    call_inside("scripts.evaluate", f"run_dir={searched}", f"out={tmp_path / 'figures.json'}")
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["autoencoder/searched_psnr_db"]["value"] == pytest.approx(
        after["autoencoder/searched_psnr_db"]["value"], abs=1e-4
    )
    call_inside("sample", f"run_dir={searched}", "mode=reconstruct", "n=20", f"out={tmp_path / 'reconstructed'}")
    rows = (tmp_path / "reconstructed" / "psnr.csv").read_text().splitlines()[1:]
    mean = sum(float(row.split(",")[-1]) for row in rows) / 20
    of_floats = after["autoencoder/searched_psnr_mean_db"]["value"]  # sample.py measures rounded images
    assert mean == pytest.approx(of_floats, abs=0.02)


def test_a_finished_tokenizer_can_be_searched_with(finished_run: Path, tmp_path: Path) -> None:
    path, small = tmp_path / "run", [a for a in TINY if a.startswith(("prior", "logger", "debug"))]
    train_inside(*small, f"tokenizer={finished_run}", "search_sweeps=1", f"run_dir={path}")
    figures = json.loads((path / "summary.json").read_text())["figures"]
    assert figures["autoencoder/searched_psnr_db"]["value"] >= figures["autoencoder/psnr_db"]["value"]

    call_inside("scripts.export", f"run_dir={path}", f"out={tmp_path / 'export'}")
    exported = vqvae.load(tmp_path / "export")
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    squared = [(exported.decode(exported.encode(x, sweeps)) - x).square().sum() for sweeps in (0, 1)]
    assert squared[1] < squared[0]


def train(path: Path, port: int = 0) -> None:
    os.environ["MASTER_PORT"] = str(port)
    train_inside(*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", "search_sweeps=1", f"run_dir={path}")


def test_two_processes_search_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "0")  # so that it is as before when this ends
    train(tmp_path / "one")
    under_torchrun(tmp_path, train, tmp_path / "two", *free_ports(1))
    one, two = (json.loads((tmp_path / name / "summary.json").read_text())["figures"] for name in ("one", "two"))
    assert two["autoencoder/searched_psnr_db"]["value"] == pytest.approx(
        one["autoencoder/searched_psnr_db"]["value"], abs=0.02
    )
