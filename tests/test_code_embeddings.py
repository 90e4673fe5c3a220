"""Laws of how a prior's embeddings start, and of the optimizer for its matrices."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from quantizer_cases import DIM, PRESETS, small_quantizer
from test_priors import MAPS, prior_of
from torch import nn

from vqvae.config.compose import choices
from vqvae.model import VQVAE
from vqvae.networks import patch
from vqvae.training.optimizers import Muon, parameter_groups, reset_rows

SETTINGS = {"lr": 1e-2, "betas": [0.9, 0.95], "momentum": 0.95, "weight_decay": 0.01}


def model_with(name: str) -> VQVAE:
    torch.manual_seed(0)
    sizes = {"patch": 4, "width": 8, "hidden": 8, "depth": 1}
    return VQVAE(
        [patch.Encoder(2, 3, DIM, **sizes)], [small_quantizer(name)], [patch.Decoder(2, 3, DIM, **sizes)]
    ).eval()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "identity"])
def test_a_code_vector_is_what_a_grid_full_of_the_code_decodes_to(name: str) -> None:
    model = model_with(name)
    vectors, shapes = model.code_vectors((8, 8), positions=12), model.code_shapes((8, 8))
    assert [tuple(v.shape) for v in vectors] == [(size, DIM) for size in model.codebook_sizes]
    maps = [torch.zeros(1, *shape, dtype=torch.int64) for shape in shapes]
    maps[-1] += model.codebook_sizes[-1] - 1
    expected = model.quantizers[0].decode(maps).flatten(2).mean(2)[0]
    torch.testing.assert_close(vectors[-1][-1], expected)


@pytest.mark.parametrize(("name", "maps"), itertools.product(choices("prior"), ["one map", "coarse and fine"]))
def test_codes_with_the_same_vector_start_with_the_same_embedding_and_others_differ(name: str, maps: str) -> None:
    shapes, sizes = MAPS[maps]
    prior = prior_of(name, shapes, sizes)
    before = {key: value.clone() for key, value in prior.state_dict().items()}
    vectors = [torch.randn(size, 64) for size in sizes]
    for one in vectors:
        one[1] = one[0]
    prior.start_embeddings(vectors)
    embeddings = [m for key, m in prior.named_modules() if isinstance(m, nn.Embedding) and key != "classes"]
    assert len(embeddings) == (1 if len(sizes) == 1 or name == "next_scale" else 3)
    for embedding in embeddings:
        rows = embedding.weight[: max(size for size in sizes if size <= len(embedding.weight))]
        assert torch.equal(rows[0], rows[1])
        assert torch.unique(rows, dim=0).shape[0] == len(rows) - 1
        assert 0.3 < rows.square().mean() < 3
    changed = {key for key, value in prior.state_dict().items() if not torch.equal(value, before[key])}
    assert all("embedding" in key for key in changed)
    assert len(changed) == len(embeddings)
    for key in changed & {key for key in before if name == "maskgit" and key.startswith("networks")}:
        assert torch.equal(prior.state_dict()[key][-1], before[key][-1]), "the mask stands for no code"


def test_codes_that_all_have_the_same_vector_keep_their_random_embeddings() -> None:
    prior = prior_of("pixelcnn", [(2, 2)], [5])
    before = prior.networks[0].embedding.weight.clone()  # type: ignore[operator, union-attr]
    prior.start_embeddings([torch.ones(5, 3)])
    assert torch.equal(prior.networks[0].embedding.weight, before)  # type: ignore[arg-type]


def small_network(hidden: bool) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 5))
    if hidden:
        network[1].weight.hidden_matrix = True
    return network


def step(network: nn.Sequential, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    network(torch.randint(5, (64,))).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_without_hidden_matrices_muon_is_adamw() -> None:
    first, second = small_network(False), small_network(False)
    adamw = torch.optim.AdamW(parameter_groups(first), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    muon = Muon(parameter_groups(second), **SETTINGS)
    for seed in range(3):
        step(first, adamw, seed)
        step(second, muon, seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_muon_moves_a_hidden_matrix_by_an_orthogonal_one_as_far_as_adamw_would() -> None:
    network = small_network(True)
    before = network[1].weight.detach().clone()
    step(network, Muon(parameter_groups(network), **{**SETTINGS, "weight_decay": 0.0}), seed=0)
    move = (before - network[1].weight).detach() / (1e-2 * 0.2 * 8**0.5)
    values = torch.linalg.svdvals(move)
    assert 0.5 < values[:4].min() < values.max() < 1.3, "all directions of the gradient alike"


@pytest.mark.parametrize("steps", [0, 2])
def test_a_skipped_step_of_muon_changes_neither_weights_nor_moments(steps: int) -> None:
    """Not even with gradients that are not finite, and without the host reading a value."""
    network = small_network(True)
    optimizer = Muon(parameter_groups(network), **SETTINGS)
    for seed in range(steps):
        step(network, optimizer, seed)
    weights = copy.deepcopy(network.state_dict())
    moments = {p: copy.deepcopy(of) for p, of in optimizer.state.items()}
    (network(torch.randint(5, (64,))).square().sum() * float("nan")).backward()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    for parameter, of in optimizer.state.items():
        for name, value in of.items():
            assert torch.equal(value, moments.get(parameter, {}).get(name, torch.zeros_like(value))), name
    optimizer.found_inf = torch.zeros(())
    optimizer.zero_grad()
    step(network, optimizer, 5)
    assert not torch.equal(network[1].weight, weights["1.weight"])


def test_muon_restored_from_its_state_continues_as_if_it_had_not_stopped() -> None:
    first, second = small_network(True), small_network(True)
    one, other = Muon(parameter_groups(first), **SETTINGS), Muon(parameter_groups(second), **SETTINGS)
    for seed in range(2):
        step(first, one, seed)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for optimizer in (one, other):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
    step(first, one, 2)
    step(second, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first[1].weight, small_network(True)[1].weight)


def test_rows_that_were_replaced_lose_their_moments_in_muon_too() -> None:
    network = small_network(True)
    optimizer = Muon(parameter_groups(network), **SETTINGS)
    step(network, optimizer, 0)
    for index, size in ((0, 5), (1, 8)):
        reset_rows([optimizer], {network[index].weight: torch.arange(size) == 0})
        moments = [m for m in optimizer.state[network[index].weight].values() if m.ndim == 2]
        assert moments
        assert all(bool((m[0] == 0).all()) and bool((m != 0).any()) for m in moments)
