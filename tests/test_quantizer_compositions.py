"""Laws of quantizers made of quantizers."""

from __future__ import annotations

import itertools

import pytest
import torch
from plain_parts import vector_quantizer
from quantizer_cases import small_quantizer
from torch import Tensor

from vqvae.quantizers.base import Quantizer
from vqvae.quantizers.codebook import EMACodebook, FrozenCodebook, GradientCodebook
from vqvae.quantizers.compose import Product, Residual
from vqvae.quantizers.estimator import DiVeQ, Rotation
from vqvae.quantizers.identity import Identity
from vqvae.quantizers.init import FirstBatch, KMeans
from vqvae.quantizers.lookup import CosineVote
from vqvae.quantizers.multiscale import MultiScale
from vqvae.quantizers.rotated import Rotated
from vqvae.quantizers.scalar import FSQ
from vqvae.quantizers.vector import VectorQuantizer


def ema(dim: int = 4, size: int = 16) -> VectorQuantizer:
    return vector_quantizer(EMACodebook(size, dim, 0.9, 1e-5))


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def residual(inner: Quantizer | None = None, depth: int = 3, shared: bool = False, dropout: float = 0.0) -> Residual:
    torch.manual_seed(0)
    inner = inner or ema()
    return Residual(inner.dim, inner, depth, shared, None, dropout)


# ---- residual


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_output_is_the_sum_of_its_stages_codes(training: bool) -> None:
    quantizer = residual().train(training)
    out = quantizer(latents(2, 4, 6))
    torch.testing.assert_close(out.z_q, quantizer.decode(out.codes))
    parts = [stage.decode([codes]) for stage, codes in zip(quantizer.uses, out.codes)]
    torch.testing.assert_close(out.z_q, torch.stack(parts).sum(0))


def test_the_error_falls_with_every_stage_of_kmeans_codes() -> None:
    z, errors = latents(8, 4, 32), []
    for depth in (1, 2, 3, 4):
        quantizer = residual(vector_quantizer(EMACodebook(16, 4, 0.9, 1e-5), init=KMeans(4, 10)), depth).eval()
        quantizer.begin_run(z)
        errors.append(float((quantizer(z).z_q - z).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_output_gradient_passes_once_whatever_the_depth(depth: int) -> None:
    z = latents(2, 4, 6).requires_grad_()
    upstream = latents(2, 4, 6)
    (gradient,) = torch.autograd.grad((residual(depth=depth)(z).z_q * upstream).sum(), z)
    torch.testing.assert_close(gradient, upstream)


def test_commitment_is_cumulative_and_every_stage_sends_it_to_the_encoder() -> None:
    quantizer, z = residual(), latents(2, 4, 6).requires_grad_()
    out = quantizer(z)
    partial, expected = torch.zeros_like(z), []
    for stage, codes in zip(quantizer.uses, out.codes):
        partial = partial + stage.decode([codes])
        expected.append((z - partial).square().mean())
    loss = out.losses["commitment"].value
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    wanted = torch.autograd.grad(torch.stack(expected).mean(), z, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], wanted)


def test_a_shared_codebook_counts_all_stages_and_moves_once() -> None:
    quantizer = residual(shared=True)
    assert len(quantizer.parts) == 1
    z = latents(2, 4, 6)
    quantizer.begin_step(0, 10)
    out = quantizer(z)
    total = sum(torch.bincount(codes.flatten(), minlength=16) for codes in out.codes)
    assert torch.equal(quantizer.parts[0].counts.long(), total)


def test_stages_may_differ_in_size_and_start_differently() -> None:
    quantizer = Residual(4, ema(), 3, False, [32, 16, 8], 0.0)
    assert quantizer.codebook_sizes == [32, 16, 8]
    twins = residual(depth=2).codebooks()
    assert not torch.equal(twins[0], twins[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ibq", "gumbel", "random_projection", "cosine_knn", "product"])
def test_stages_of_any_kind_are_drawn_anew(name: str) -> None:
    torch.manual_seed(0)
    codebooks = Residual(8, small_quantizer(name), 2, False, None, 0.0).codebooks()
    assert not torch.equal(codebooks[0], codebooks[len(codebooks) // 2])  # type: ignore[arg-type]


def test_a_vote_without_labels_follows_the_sizes() -> None:
    inner = vector_quantizer(EMACodebook(16, 4, 0.9, 1e-5), lookup=CosineVote(3, None, False, 0.0))
    quantizer = Residual(4, inner, 2, False, [32, 8], 0.0).eval()
    assert [int(codes.max()) < size for codes, size in zip(quantizer(latents(2, 4, 6)).codes, [32, 8])] == [True, True]


def test_dropout_keeps_the_first_stages_of_whole_images_and_ends_with_training() -> None:
    torch.manual_seed(0)
    quantizer, z = residual(depth=4, dropout=1.0), latents(200, 4, 3)
    out = quantizer(z)
    partial = torch.stack([stage.decode([m]) for stage, m in zip(quantizer.uses, out.codes)]).cumsum(0)  # (4, B, D, s)
    distance = (partial - out.z_q).abs().amax((2, 3))  # (4, B)
    assert distance.amin(0).max() < 1e-5
    kept = distance.argmin(0).bincount(minlength=4)  # of 200 images
    assert torch.all(kept > 25)
    z_e = latents(2, 4, 6).requires_grad_()
    assert torch.equal(torch.autograd.grad(quantizer(z_e).z_q.sum(), z_e)[0], torch.ones_like(z_e))
    evaluated = quantizer.eval()(z)
    assert torch.equal(evaluated.z_q, quantizer.decode(evaluated.codes))


def test_a_residual_of_diveq_trains_every_stage_from_the_output() -> None:
    inner = vector_quantizer(GradientCodebook(16, 4, 1.0), estimator=DiVeQ(1e-3), regularizers={})
    quantizer, z = residual(inner), latents(2, 4, 6).requires_grad_()
    quantizer(z).z_q.square().sum().backward()
    assert z.grad is not None
    assert all(stage.codebook.weight.grad.abs().sum() > 0 for stage in quantizer.uses)


@pytest.mark.parametrize("outer", [2, 3])
def test_the_output_gradient_passes_once_through_residual_quantizers_of_residual_quantizers(outer: int) -> None:
    z, upstream = latents(2, 4, 6).requires_grad_(), latents(2, 4, 6)
    quantizer = residual(residual(depth=2), depth=outer)
    out = quantizer(z)
    (gradient,) = torch.autograd.grad((out.z_q * upstream).sum(), z)
    torch.testing.assert_close(gradient, upstream)
    torch.testing.assert_close(out.z_q, quantizer.decode(out.codes))


# ---- product


def test_pieces_are_quantized_by_one_shared_codebook_and_counted_together() -> None:
    """Splits 2; three vectors of two pieces each."""
    book = FrozenCodebook(5, 2)
    quantizer = Product(4, vector_quantizer(book), 2, True, None)
    book.start(torch.tensor([[1.1, 1], [2.1, 2.1], [5, 5], [6, 7], [-3, -3]]))
    z = torch.tensor([[1, 1, 4.5, 5], [2, 2, -5, -3], [2.2, 2.2, 1, 1]])
    out = quantizer(z[:, :, None])
    expected = torch.tensor([[1.1, 1, 5, 5], [2.1, 2.1, -3, -3], [2.1, 2.1, 1.1, 1]])
    torch.testing.assert_close(out.z_q[:, :, 0], expected)
    assert quantizer.parts[0].counts.tolist() == [2, 2, 1, 0, 1]


def test_separate_codebooks_each_see_their_own_piece() -> None:
    torch.manual_seed(0)
    quantizer = Product(8, ema(), 2, False, [16, 8]).eval()
    z = latents(2, 8, 5)
    out = quantizer(z)
    for part, piece, codes, z_q in zip(quantizer.uses, z.chunk(2, 1), out.codes, out.z_q.chunk(2, 1)):
        alone = part(piece)
        assert torch.equal(alone.codes[0], codes)
        assert torch.equal(alone.z_q, z_q)


# ---- rotation and scales


def test_a_rotation_leaves_lengths_alone_and_is_undone_behind_the_quantizer() -> None:
    torch.manual_seed(0)
    book = FrozenCodebook(16, 4)
    inner = vector_quantizer(book)
    quantizer = Rotated(4, inner).eval()
    torch.testing.assert_close(quantizer.rotation @ quantizer.rotation.t(), torch.eye(4))
    z = latents(1, 4, 1)
    book.start((z[:, :, 0] @ quantizer.rotation).expand(16, 4))
    torch.testing.assert_close(quantizer(z).z_q, z)


@pytest.mark.parametrize("grid", [(8,), (8, 6), (4, 6, 2)])
def test_scales_grow_to_the_whole_grid_and_later_ones_leave_a_smaller_error(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inner = vector_quantizer(EMACodebook(64, 4, 0.9, 1e-5), init=KMeans(4, 10))
    quantizer = MultiScale(4, inner, [0.25, 0.5, 1.0, 1.0], None, 2, 0.0).eval()
    z = latents(16, 4, *grid)
    quantizer.begin_run(z)
    shapes = quantizer.code_shapes(grid)
    assert shapes[-1] == grid
    assert all(a <= b for small, large in itertools.pairwise(shapes) for a, b in zip(small, large))
    out = quantizer(z)
    fewer = MultiScale(4, inner, [0.25, 0.5, 1.0], None, 2, 0.0).eval()(z)
    assert (out.z_q - z).square().mean() < (fewer.z_q - z).square().mean() < z.square().mean()


def test_scales_with_sizes_have_codebooks_of_their_own_that_start_from_what_coarser_ones_left_over() -> None:
    torch.manual_seed(0)
    inner = vector_quantizer(EMACodebook(8, 4, 0.9, 1e-5), init=FirstBatch())
    quantizer = MultiScale(4, inner, [0.5, 1.0], [8, 16], 1, 0.0).eval()
    z = latents(2, 4, 8)
    quantizer.begin_run(z)
    averaged = z.unflatten(2, (4, 2)).mean(
        3
    )  # (2, 4, 4): as many vectors as the coarse scale has codes, each its own code
    rest = z - torch.nn.functional.interpolate(averaged, 8, mode="linear")
    torch.testing.assert_close(quantizer.parts[0].codebook.codes(), averaged.movedim(1, 2).reshape(8, 4))
    torch.testing.assert_close(quantizer.parts[1].codebook.codes(), rest.movedim(1, 2).reshape(16, 4))


def test_a_scale_with_fewer_vectors_than_codes_starts_from_a_finer_one() -> None:
    torch.manual_seed(0)
    inner = vector_quantizer(EMACodebook(8, 4, 0.9, 1e-5), init=FirstBatch())
    quantizer = MultiScale(4, inner, [0.25, 0.5, 1.0], [8, 8, 16], 1, 0.0).eval()
    z = latents(2, 4, 8)
    quantizer.begin_run(z)
    halves = z.unflatten(2, (4, 2)).mean(3)  # (2, 4, 4)
    torch.testing.assert_close(quantizer.parts[0].codebook.codes(), halves.movedim(1, 2).reshape(8, 4))
    assert [out.max() < size for out, size in zip(quantizer(z).codes, [8, 8, 16])] == [True] * 3


def test_scales_share_one_codebook_that_moves_once_after_all_of_them() -> None:
    torch.manual_seed(0)
    quantizer = MultiScale(4, ema(), [0.5, 1.0], None, 1, 0.5)
    quantizer.begin_step(0, 10)
    out = quantizer(latents(2, 4, 4, 4))
    assert quantizer.parts[0].counts.sum() == sum(codes.numel() for codes in out.codes) == 2 * (4 + 16)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Residual(8, ema(), 2, False, None, 0.0), "set quantizer.inner.dim=8"),
        (lambda: Residual(4, ema(), 2, False, [16], 0.0), "one entry for each of the 2 parts"),
        (lambda: Residual(4, ema(), 2, True, [16, 16], 0.0), "exclude each other"),
        (lambda: Residual(4, FSQ(4, [8, 8]), 2, False, [64, 32], 0.0), "leave sizes=null"),
        (lambda: Residual(4, Identity(4), 2, False, None, 0.0), "identity has no codes"),
        (lambda: Product(9, ema(), 2, False, None), "does not divide"),
        (lambda: MultiScale(4, ema(), [0.5, 0.75], None, 1, 0.5), "must rise to 1"),
        (lambda: MultiScale(4, FSQ(4, [8, 8]), [0.5, 1.0], None, 1, 0.5), "estimator=straight_through"),
        (
            lambda: MultiScale(
                4, vector_quantizer(EMACodebook(8, 4, 0.9, 1e-5), estimator=Rotation()), [1.0], None, 1, 0.5
            ),
            "copies",
        ),
        (lambda: Residual(4, MultiScale(4, ema(), [1.0], None, 1, 0.5), 2, False, None, 0.0), "can only be outermost"),
        (
            lambda: Product(8, residual(dropout=0.5), 2, False, None),
            "leaves out stages of whole images: set its dropout=0",
        ),
        (lambda: Residual(4, ema(), 2, False, [0, 16], 0.0), "sizes must have every value at least 1"),
        (lambda: Residual(4, ema(), 0, False, None, 0.0), "depth must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(build: type[Quantizer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
