"""Laws of codebooks: how codes start, move and come back to life."""

from __future__ import annotations

import itertools

import pytest
import torch
from plain_parts import vector_quantizer
from torch import Tensor

from vqvae.quantizers.anchor import AnchorRevival
from vqvae.quantizers.codebook import (
    AffineCodebook,
    BridgeCodebook,
    Codebook,
    EMACodebook,
    FrozenCodebook,
    GradientCodebook,
    SimVQCodebook,
)
from vqvae.quantizers.init import FirstBatch, KMeans, Normal, Uniform
from vqvae.quantizers.lookup import L1
from vqvae.quantizers.nearest import nearest_code
from vqvae.quantizers.regularizers import CodebookLoss
from vqvae.quantizers.revival import FarthestRevival, LeastRecentlyUsed

# ---- codebooks


CODEBOOKS = [
    GradientCodebook(8, 4, 1.0),
    EMACodebook(8, 4, 0.9, 1e-5),
    FrozenCodebook(8, 4),
    AffineCodebook(8, 4, 2.0, 0.9),
    BridgeCodebook(8, 4, 2.0, 2, 8, 1),
]


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=lambda c: type(c).__name__)
def test_a_codebook_starts_at_the_vectors_it_is_given(codebook: Codebook) -> None:
    vectors = torch.randn(8, 4)
    codebook.start(vectors)
    torch.testing.assert_close(codebook.codes(), vectors)


@pytest.mark.parametrize("codebook", [c for c in CODEBOOKS if c.can_be_revived], ids=lambda c: type(c).__name__)
def test_replaced_rows_become_the_vectors_and_the_others_stay(codebook: Codebook) -> None:
    torch.manual_seed(0)
    codebook.start(torch.randn(8, 4))
    codebook.accumulate(torch.randn(20, 4) * 3 + 1, torch.randint(8, (20,)))
    codebook.update(torch.full((8,), 2.5), torch.tensor(True))
    before, vectors, rows = codebook.codes().detach().clone(), torch.randn(8, 4), torch.arange(8) % 3 == 0
    codebook.replace(rows, vectors)
    torch.testing.assert_close(codebook.codes(), torch.where(rows[:, None], vectors, before))


def test_ema_codes_move_as_those_of_vector_quantize_pytorch_from_the_same_state() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    from scripts.benchmarks.quantizers import our_quantizer, peer_quantizer

    torch.manual_seed(0)
    codes = torch.randn(32, 4)
    ours = our_quantizer(codes, ["quantizer.codebook.decay=0.8"])
    peer = peer_quantizer(codes, ours)
    for _ in range(5):
        z = torch.randn(1, 200, 4)
        ours.begin_step(0, 10)
        out = ours(z.movedim(2, 1))
        ours.after_step(torch.tensor(True))
        assert torch.equal(out.codes[0], peer(z)[1])
        torch.testing.assert_close(ours.codebook.codes(), peer._codebook.embed[0], rtol=1e-4, atol=1e-5)


def test_affine_codes_take_the_mean_and_spread_of_the_latents() -> None:
    torch.manual_seed(0)
    codebook = AffineCodebook(64, 3, 1.0, decay=0.0)
    codebook.start(torch.randn(64, 3))
    z = torch.randn(1000, 3) * torch.tensor([1.0, 5.0, 0.2]) + torch.tensor([0.0, 10.0, -300.0])
    for _ in range(2):  # the second step centers on the mean that the first has found
        codebook.begin_step()
        codebook.accumulate(z, torch.zeros(1000, dtype=torch.int64))
        codebook.update(torch.tensor([1000.0] + [0.0] * 63), torch.tensor(True))
    torch.testing.assert_close(codebook.codes().mean(0), z.mean(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(codebook.codes().std(0), z.std(0), atol=1e-3, rtol=1e-2)


def test_simvq_moves_every_code_through_one_map_and_leaves_its_basis_alone() -> None:
    codebook = SimVQCodebook(8, 4)
    basis = codebook.basis.clone()
    codebook.codes()[0].sum().backward()
    before = codebook.codes().detach().clone()
    torch.optim.SGD(codebook.parameters(), lr=0.1).step()
    assert torch.equal(codebook.basis, basis)
    assert torch.all((codebook.codes() != before).any(1))


# ---- init


def inertia(vectors: Tensor, codes: Tensor) -> float:
    return float((vectors - codes[nearest_code(vectors, codes)]).square().sum())


def test_kmeans_recovers_planted_clusters_and_never_gets_worse() -> None:
    torch.manual_seed(0)
    centers = torch.randn(12, 6) * 20
    vectors = (centers[torch.arange(600) % 12] + 0.1 * torch.randn(600, 6))[torch.randperm(600)]
    found_centers = KMeans(1, 10).choose(vectors, 12)
    assert torch.cdist(centers, found_centers).amin(1).amax() < 0.2
    errors = []
    for iterations in range(6):
        torch.manual_seed(1)
        errors.append(inertia(vectors, KMeans(1, iterations).choose(vectors, 30)))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(errors))


def test_ema_codes_from_kmeans_stay_where_they_are_under_slow_averaging() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(200, 4)
    codebook = EMACodebook(16, 4, decay=0.999999, epsilon=0.0)
    codes = KMeans(4, 20).choose(vectors, 16)
    codebook.start(codes)
    indices = nearest_code(vectors, codes)
    codebook.accumulate(vectors, indices)
    codebook.update(torch.bincount(indices, minlength=16).float(), torch.tensor(True))
    torch.testing.assert_close(codebook.codes(), codes, atol=1e-3, rtol=0)


def test_first_batch_init_takes_the_first_vectors_and_refuses_too_few() -> None:
    vectors = torch.randn(10, 3)
    assert torch.equal(FirstBatch().choose(vectors, 4), vectors[:4])
    with pytest.raises(ValueError, match="10 latent vectors cannot start 11 codes"):
        FirstBatch().choose(vectors, 11)


@pytest.mark.parametrize("init", [Uniform(3.0), Normal(3.0)])
def test_drawn_codes_have_the_scale_that_is_asked_for(init: Uniform | Normal) -> None:
    assert 8.5 < float(init.draw(4000, 16).square().sum(1).mean()) < 9.5


# ---- revival


def test_the_farthest_inputs_since_the_last_time_replace_the_least_used_codes() -> None:
    """Codes 0, 1, 2 on the diagonal, L1, one replaced: of .1, 1.1, 10 the last is farthest; a three-way tie goes to code 0."""
    codebook = GradientCodebook(3, 2, 1.0)
    quantizer = vector_quantizer(
        codebook, lookup=L1(), revival=FarthestRevival(1, 2, 1.0), regularizers={"codebook": CodebookLoss(1.0)}
    )
    codebook.start(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))
    for step, values in enumerate([[0.1, 1.1, 10.0], [0.2, 1.2, 2.1]]):
        quantizer.begin_step(step, 10)
        quantizer(torch.tensor(values)[None, None].expand(1, 2, 3))
        replaced = quantizer.after_step(torch.tensor(True))
    assert codebook.weight[:, 0].tolist() == [10.0, 1.0, 2.0]
    assert replaced[codebook.weight].tolist() == [True, False, False]
    quantizer.begin_step(2, 10)
    quantizer(torch.tensor([[[10.0, 10.0], [10.0, 10.0]]]))
    quantizer.after_step(torch.tensor(True))
    assert quantizer.revival.usage.tolist() == [2.0, 0.0, 0.0]  # counted anew


@pytest.mark.parametrize(("size", "batch"), [(4, 8), (16, 8), (4, 512)])
def test_least_recently_used_waits_for_the_same_number_of_vectors_per_code(size: int, batch: int) -> None:
    codebook = EMACodebook(size, 1, 0.9, 1e-5)
    quantizer = vector_quantizer(codebook, revival=LeastRecentlyUsed(patience=300, every_steps=1, until=1.0))
    codebook.start(torch.arange(size)[:, None] * 100.0)
    for step in range(10_000):
        quantizer.begin_step(step, 20_000)
        quantizer(torch.full((1, 1, batch), 0.1))
        quantizer.after_step(torch.tensor(True))
        if codebook.codes().max() < 1:
            break
    assert 300 < (step + 1) * batch / size <= 300 + batch / size


def test_anchors_move_unused_codes_to_their_nearest_vectors_and_leave_used_ones() -> None:
    codebook = GradientCodebook(3, 1, 1.0)
    quantizer = vector_quantizer(
        codebook, revival=AnchorRevival(10.0, 0.5, 1.0), regularizers={"codebook": CodebookLoss(1.0)}
    )
    codebook.start(torch.tensor([[0.0], [1.0], [50.0]]))
    for step in range(40):
        quantizer.begin_step(step, 100)
        quantizer(torch.tensor([[[0.1, 1.0, 1.4, 0.1]]]))
        quantizer.after_step(torch.tensor(True))
    torch.testing.assert_close(codebook.weight[:2, 0], torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)
    assert 1.2 < codebook.weight[2, 0].item() < 1.6  # near enough to be chosen, it stays
