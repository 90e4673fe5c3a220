"""Laws of lookups: which code is chosen."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from plain_parts import vector_quantizer
from torch import nn

from vqvae.metrics.codebook import count_codes
from vqvae.model import VQVAE
from vqvae.quantizers.codebook import (
    AffineCodebook,
    Codebook,
    EMACodebook,
    FrozenCodebook,
    GradientCodebook,
)
from vqvae.quantizers.compose import Product
from vqvae.quantizers.lookup import L1, BatchPCA, CodebookPCA, Cosine, CosineVote, Euclidean, LInf, Lookup, Stochastic
from vqvae.quantizers.nearest import nearest_code
from vqvae.quantizers.regularizers import CodebookLoss, Commitment

# ---- lookups


def found(lookup: Lookup, z: list[list[float]], codes: list[list[float]]) -> list[int]:
    lookup.check(len(codes), len(codes[0]))
    return lookup(torch.tensor(z), torch.tensor(codes)).indices.tolist()


def test_l1_l2_and_linf_choose_different_codes_where_they_should() -> None:
    codes = [[1.0, 0.5], [0.0, 0.0]]
    assert found(L1(), [[-0.5, 3.0], [3.0, -3.0]], codes) == [1, 0]
    assert found(Euclidean(), [[-0.5, 3.0], [3.0, -3.0]], codes) == [0, 0]
    assert found(LInf(), [[0.0, 5.0], [3.0, -3.0]], codes) == [0, 1]


def test_cosine_ignores_lengths_and_returns_the_code_unscaled() -> None:
    codes = [[1.0, 0.5, 0.5], [1.0, 1.0, 3.0], [1.0, 5.0, 1.0]]
    eye = torch.eye(3).tolist()
    assert found(Cosine(), eye, codes) == [0, 2, 1]
    expected = [1 - 1 / 1.5**0.5, 1 - 5 / 27**0.5, 1 - 3 / 11**0.5]
    distance = Cosine().distance(torch.eye(3), torch.tensor(codes)[[0, 2, 1]])
    torch.testing.assert_close(distance, torch.tensor(expected))
    book = GradientCodebook(3, 3, 1.0)
    quantizer = vector_quantizer(book, lookup=Cosine(), regularizers={"codebook": CodebookLoss(1.0)}).eval()
    book.start(torch.tensor(codes))
    assert torch.equal(quantizer(torch.eye(3)[:, :, None]).z_q[:, :, 0], torch.tensor(codes)[[0, 2, 1]])


# six codes with the labels 0, 1, 1, 2, 2, 3, and two vectors whose three nearest codes carry 0, 1, 1 and 1, 2, 2
VOTE_CODES = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.4], [1.0, 1.2], [1.0, 1.5], [0.0, 1.0]]), dim=1)
VOTE_LABELS = [0, 1, 1, 2, 2, 3]
VOTERS = torch.tensor([[1.0, 0.05], [1.0, 0.9]])


def vote(nearest_winner: bool = False, min_share: float = 0.0, neighbors: int = 3) -> CosineVote:
    lookup = CosineVote(neighbors, VOTE_LABELS, nearest_winner, min_share)
    lookup.check(6, 2)
    return lookup


def test_neighbors_vote_by_label_and_the_first_or_the_nearest_code_of_the_winner_is_chosen() -> None:
    assert vote()(VOTERS, VOTE_CODES).indices.tolist() == [1, 3]
    assert vote(nearest_winner=True)(torch.tensor([[1.0, 1.6]]), VOTE_CODES).indices.tolist() == [4]
    assert vote()(torch.tensor([[1.0, 1.6]]), VOTE_CODES).indices.tolist() == [3]


def test_a_tied_vote_goes_to_the_smallest_label() -> None:
    assert vote(neighbors=2)(torch.tensor([[1.0, 0.05]]), VOTE_CODES).indices.tolist() == [0]


def test_a_vote_below_its_share_passes_the_vector_on_and_is_counted_in_vectors() -> None:
    quantizer = vector_quantizer(FrozenCodebook(6, 2), lookup=vote(min_share=0.9, neighbors=2)).eval()
    quantizer.codebook.start(VOTE_CODES)
    z = torch.tensor([[1.0, 0.3], [1.0, 0.05]])  # neighbors 1, 2 of one label; 0, 1 of two
    out = quantizer(z[:, :, None])
    (passed,) = out.passed
    assert passed[:, 0].tolist() == [False, True]
    assert out.stats["identity_mapped"] == 0.5
    assert torch.equal(out.z_q[1, :, 0], z[1])
    assert torch.equal(out.z_q[0, :, 0], VOTE_CODES[1])


@pytest.mark.parametrize("parts", [1, 2])
def test_vectors_that_are_passed_on_are_no_uses_of_a_code(parts: int) -> None:
    inner = vector_quantizer(FrozenCodebook(6, 2), lookup=vote(min_share=0.9, neighbors=2))
    inner.codebook.start(VOTE_CODES)
    quantizer = (inner if parts == 1 else Product(4, inner, parts, True, None)).eval()
    z = torch.tensor([[1.0, 0.3], [1.0, 0.05]]).repeat(1, parts)
    out = VQVAE([nn.Identity()], [quantizer], [nn.Identity()])(z[:, :, None])
    for codes, passed in zip(out.codes, out.passed, strict=True):
        assert count_codes(codes, 6, passed).tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("book", [EMACodebook(6, 2, 0.5, 1e-5), AffineCodebook(6, 2, 1.0, 0.5)])
def test_vectors_that_are_passed_on_move_no_code_and_count_for_none(book: Codebook) -> None:
    used, passed = torch.tensor([[1.0, 0.3], [2.0, 0.7]]), torch.tensor([[1.0, 0.05], [9.0, 0.4]])
    regularizers = {"codebook": CodebookLoss(1.0)} if book.learns_by_gradient else {"commitment": Commitment(1.0)}
    quantizer = vector_quantizer(book, lookup=vote(min_share=0.9, neighbors=2), regularizers=regularizers)
    quantizer.codebook.start(VOTE_CODES)
    other, sums = copy.deepcopy(quantizer), []
    for one, z in ((quantizer, torch.cat([used, passed])), (other, used)):
        one.begin_step(0, 10)
        (loss,) = one(z[:, :, None]).losses.values()
        sums.append(loss.value * len(z))
        one.after_step(torch.tensor(True))
    torch.testing.assert_close(*sums)
    assert quantizer.counts.tolist() == other.counts.tolist() == [0, 2, 0, 0, 0, 0]
    torch.testing.assert_close(quantizer.codebook.codes(), other.codebook.codes())


def test_the_similarity_histogram_of_a_vote_is_of_the_largest_similarity_of_each_vector() -> None:
    quantizer = vector_quantizer(FrozenCodebook(6, 2), lookup=vote(min_share=0.5, neighbors=3)).eval()
    quantizer.codebook.start(VOTE_CODES)
    z = torch.tensor([[1.0, 0.05], [1.0, 0.9], [1.0, 4.0], [-1.0, 0.2]])  # of the third the labels 2, 2, 3 are near
    largest = F.cosine_similarity(z.double()[:, None], VOTE_CODES.double(), dim=2).amax(1)
    expected, _ = torch.histogram(largest, bins=40, range=(-1.0, 1.0))
    assert quantizer(z[:, :, None]).histograms["similarity"].tolist() == expected.tolist()


def test_a_vote_refuses_what_does_not_fit_the_codes() -> None:
    with pytest.raises(ValueError, match="6 labels for 7 codes"):
        vector_quantizer(FrozenCodebook(7, 2), lookup=CosineVote(3, VOTE_LABELS, False, 0.0))
    with pytest.raises(ValueError, match="neighbors=9"):
        vector_quantizer(FrozenCodebook(6, 2), lookup=CosineVote(9, None, False, 0.0))


def test_pca_finds_the_axes_of_an_svd_and_centers_vectors_and_codes_alike() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(200, 5) * torch.tensor([5.0, 0.1, 3.0, 0.1, 0.1]) + 100, torch.randn(30, 5) + 100
    for lookup, basis in ((CodebookPCA(Euclidean(), 2), codes), (BatchPCA(Euclidean(), 2), torch.cat([z, codes]))):
        lookup.check(30, 5)
        lookup.begin_run(z, codes)
        centered = basis - basis.mean(0)
        axes = torch.linalg.svd(centered, full_matrices=False).Vh[:2].t()  # (d, 2), up to sign
        torch.testing.assert_close(lookup.axes.abs(), axes.abs(), atol=1e-2, rtol=0)
        reduced = nearest_code((z - basis.mean(0)) @ axes, (codes - basis.mean(0)) @ axes)
        assert (lookup(z, codes).indices == reduced).float().mean() > 0.98  # rounding may decide near ties


def test_batch_pca_stores_the_moments_of_a_step_and_no_other_call_moves_them() -> None:
    torch.manual_seed(0)
    quantizer = vector_quantizer(EMACodebook(8, 4, 0.9, 1e-5), lookup=BatchPCA(Euclidean(), 2))
    z = torch.randn(2, 4, 16)
    start = quantizer.nearest.axes.clone()
    quantizer.begin_step(0, 10)
    quantizer(z)
    assert torch.equal(quantizer.nearest.axes, start)
    quantizer.after_step(torch.tensor(True))
    stored = quantizer.nearest.axes.clone()
    assert not torch.equal(stored, start)
    quantizer.eval()(z + 5)
    assert torch.equal(quantizer.nearest.axes, stored)


def test_stochastic_lookup_draws_by_the_softmax_of_distances_and_is_the_nearest_in_eval() -> None:
    torch.manual_seed(0)
    codes = torch.tensor([[0.0], [1.0], [2.0]])
    lookup = Stochastic(0.7)
    z = torch.full((20_000, 1), 0.4)
    drawn = torch.bincount(lookup(z, codes).indices, minlength=3) / 20_000
    expected = (-(z[0] - codes[:, 0]).square() / 0.7).softmax(0)
    torch.testing.assert_close(drawn, expected, atol=0.015, rtol=0)
    assert lookup.eval()(z, codes).indices.unique().tolist() == [0]


def test_a_pca_within_a_pca_is_refused() -> None:
    with pytest.raises(ValueError, match="a PCA within a PCA"):
        BatchPCA(CodebookPCA(Euclidean(), 2), 2)
