"""Laws of every quantizer, and of the parts of vector quantization."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vqvae.config import build, choices, compose, resolve
from vqvae.quantizers.base import Quantizer
from vqvae.quantizers.codebook import EMACodebook, GradientCodebook
from vqvae.quantizers.estimator import StraightThrough
from vqvae.quantizers.init import DataSample, Uniform
from vqvae.quantizers.lookup import Euclidean
from vqvae.quantizers.nearest import CPU_CHUNK_ELEMENTS, nearest_code
from vqvae.quantizers.regularizers import CodebookLoss, Commitment
from vqvae.quantizers.revival import NoRevival, RandomRevival
from vqvae.quantizers.scalar import FSQ
from vqvae.quantizers.space import Raw, UnitSphere
from vqvae.quantizers.vector import VectorQuantizer

GRIDS = [(7,), (3, 5), (2, 3, 4)]
CASES = list(itertools.product(choices("quantizer"), GRIDS))


def quantizer_of(name: str, *overrides: str) -> Quantizer:
    torch.manual_seed(0)
    cfg = resolve(compose("train", [f"quantizer={name}", *overrides]))
    quantizer = build(cfg.quantizer, "quantizer")
    quantizer.begin_step(0, 10)
    return quantizer


def latents(quantizer: Quantizer, grid: tuple[int, ...]) -> Tensor:
    return torch.randn(3, quantizer.dim, *grid, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_in_eval_decoded_codes_are_the_output_bit_for_bit(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name).eval()
    out = quantizer(latents(quantizer, grid))
    assert out.z_q.shape == (3, quantizer.dim, *grid)
    assert [tuple(m.shape[1:]) for m in out.codes] == quantizer.code_shapes(grid)
    if out.codes:
        assert torch.equal(quantizer.decode(out.codes), out.z_q)


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_codes_are_int64_and_below_the_codebook_size(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name)
    out = quantizer(latents(quantizer, grid))
    assert len(out.codes) == len(quantizer.codebook_sizes)
    for codes, size in zip(out.codes, quantizer.codebook_sizes):
        assert codes.dtype == torch.int64
        assert int(codes.min()) >= 0
        assert int(codes.max()) < size


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_the_output_gradient_reaches_the_encoder(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name)
    z_e = latents(quantizer, grid)
    quantizer(z_e).z_q.square().sum().backward()
    assert z_e.grad is not None
    assert torch.isfinite(z_e.grad).all()
    assert (z_e.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_eval_writes_no_buffer_and_training_forward_moves_no_code(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name).eval()
    z_e = latents(quantizer, grid)
    everything = {key: value.clone() for key, value in [*quantizer.named_buffers(), *quantizer.named_parameters()]}
    before = quantizer(z_e)
    assert all(torch.equal(everything[key], value) for key, value in [*quantizer.named_buffers()])
    quantizer.train()(z_e)
    after = quantizer.eval()(z_e)
    assert torch.equal(before.z_q, after.z_q)


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_autocast_changes_nothing_inside(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name).eval()
    z_e = latents(quantizer, grid)
    with torch.autocast("cpu", torch.bfloat16):
        low = quantizer(z_e)
    full = quantizer(z_e)
    assert low.z_q.dtype == torch.float32
    assert torch.equal(low.z_q, full.z_q)


@pytest.mark.parametrize("name", choices("quantizer"))
def test_losses_are_the_same_in_eval_as_in_training(name: str) -> None:
    quantizer = quantizer_of(name)
    z_e = latents(quantizer, (3, 5))
    trained, evaluated = quantizer(z_e).losses, quantizer.eval()(z_e).losses
    assert trained.keys() == evaluated.keys()
    assert all(torch.equal(trained[key].value, evaluated[key].value) for key in trained)


@pytest.mark.parametrize("name", choices("quantizer"))
def test_a_state_dict_restores_the_output(name: str) -> None:
    quantizer = quantizer_of(name)
    z_e = latents(quantizer, (4,))
    quantizer(z_e)
    quantizer.after_step(torch.tensor(True))
    torch.manual_seed(5)
    other = build(resolve(compose("train", [f"quantizer={name}"])).quantizer, "quantizer")
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert torch.equal(other.eval()(z_e).z_q, quantizer.eval()(z_e).z_q)


@pytest.mark.parametrize("name", ["ema", "vq"])
@pytest.mark.parametrize("part", ["space=sphere", "init=data", "revival=none"])
def test_parts_are_swapped_by_one_override(name: str, part: str) -> None:
    quantizer = quantizer_of(name, f"quantizer/{part}", "quantizer.codebook.size=8").eval()
    out = quantizer(latents(quantizer, (3, 5)))
    assert torch.equal(quantizer.decode(out.codes), out.z_q)


def test_a_narrow_code_width_projects_in_and_out() -> None:
    quantizer = quantizer_of("ema", "quantizer.codebook.dim=4").eval()
    z_e = latents(quantizer, (3, 5))
    out = quantizer(z_e)
    assert quantizer.code_dim == 4
    assert out.z_q.shape == z_e.shape
    assert torch.equal(quantizer.decode(out.codes), out.z_q)


# ---- nearest code


@pytest.mark.parametrize(
    ("n", "k", "d"), [(1, 2, 1), (37, 5, 3), (CPU_CHUNK_ELEMENTS // 64 + 3, 64, 8), (50, 300_000, 2)]
)
def test_nearest_code_agrees_with_brute_force_in_float64(n: int, k: int, d: int) -> None:
    torch.manual_seed(n)
    z, codes = torch.randn(n, d), torch.randn(k, d)
    chosen = nearest_code(z, codes)
    for rows in torch.arange(n).split(20):
        distance = torch.cdist(z[rows].double(), codes.double())
        best = distance.min(1).values
        assert torch.all(distance.gather(1, chosen[rows, None])[:, 0] <= best + 1e-5)


def test_nearest_code_takes_the_lowest_index_of_equal_codes_and_no_vectors() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert nearest_code(torch.tensor([[0.0, 2.0]]), codes).tolist() == [1]
    assert nearest_code(torch.empty(0, 2), codes).shape == (0,)


def test_nearest_code_is_exact_far_from_the_origin() -> None:
    codes = torch.tensor([[1000.0, 1000.0], [1000.25, 1000.0]])
    assert nearest_code(codes, codes).tolist() == [0, 1]


# ---- codebooks, estimator, revival


def vector_quantizer(codebook: EMACodebook | GradientCodebook, **parts: object) -> VectorQuantizer:
    chosen: dict[str, object] = {
        "space": Raw(),
        "lookup": Euclidean(),
        "estimator": StraightThrough(),
        "init": Uniform(1.0),
        "revival": NoRevival(),
        "regularizers": {"commitment": Commitment(0.25)},
    }
    return VectorQuantizer(dim=codebook.dim, codebook=codebook, **{**chosen, **parts})  # type: ignore[arg-type]


def test_ema_follows_the_recurrence_to_golden_values() -> None:
    """decay 0.9, codes (0,0), (1,1), (2,2), four vectors assigned 0, 1, 2, 0; values computed independently in NumPy."""
    codebook = EMACodebook(3, 2, decay=0.9, epsilon=1e-5)
    start = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    codebook.replace(torch.ones(3, dtype=torch.bool), start)
    z = torch.tensor([[0.1, 0.1], [1.1, 1.1], [10.0, 10.0], [0.2, 0.0]])
    expected = [
        [[0.0272727, 0.0090909], [1.0099997, 1.0099997], [2.7999991, 2.7999991]],
        [[0.0478992, 0.0159664], [1.0189994, 1.0189994], [3.5199979, 3.5199979]],
    ]
    for wanted in expected:
        codebook.begin_step()
        codebook.accumulate(z, torch.tensor([0, 1, 2, 0]))
        codebook.update(torch.tensor([2.0, 1.0, 1.0]), torch.tensor(True))
        torch.testing.assert_close(codebook.codes(), torch.tensor(wanted), atol=2e-6, rtol=0)


def test_an_ema_code_that_nothing_chooses_stays_where_it_is() -> None:
    codebook = EMACodebook(2, 2, decay=0.8, epsilon=1e-5)
    codebook.replace(torch.ones(2, dtype=torch.bool), torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
    for _ in range(300):
        codebook.begin_step()
        codebook.accumulate(torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
        codebook.update(torch.tensor([1.0, 0.0]), torch.tensor(True))
    torch.testing.assert_close(codebook.codes()[1], torch.tensor([5.0, 5.0]), rtol=2e-3, atol=0)


def test_a_skipped_step_changes_no_state_even_with_nan_inside() -> None:
    quantizer = vector_quantizer(EMACodebook(8, 4, 0.9, 1e-5), revival=RandomRevival(8, 0.5, 0.9, 1, 1.0))
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.begin_step(0, 10)
    quantizer(torch.full((2, 4, 3), float("nan")))
    quantizer.after_step(torch.tensor(False))
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


def test_accumulated_micro_batches_update_as_one_batch() -> None:
    torch.manual_seed(0)
    z = torch.randn(8, 4, 5)
    results = []
    for parts in (1, 4):
        torch.manual_seed(1)
        quantizer = vector_quantizer(EMACodebook(16, 4, 0.9, 1e-5))
        quantizer.begin_step(0, 10)
        for chunk in z.chunk(parts):
            quantizer(chunk)
        quantizer.after_step(torch.tensor(True))
        results.append(quantizer.codebook.codes())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_straight_through_copies_the_gradient_and_gives_none_to_the_codes() -> None:
    quantizer = vector_quantizer(
        GradientCodebook(8, 4), regularizers={"codebook": CodebookLoss(1.0), "commitment": Commitment(0.25)}
    )
    z_e = torch.randn(2, 4, 3, requires_grad=True)
    upstream = torch.randn(2, 4, 3)
    (quantizer(z_e).z_q * upstream).sum().backward()
    torch.testing.assert_close(z_e.grad, upstream)
    assert quantizer.codebook.weight.grad is None


def test_codebook_loss_moves_codes_only_and_commitment_moves_the_encoder_only() -> None:
    quantizer = vector_quantizer(
        GradientCodebook(8, 4), regularizers={"codebook": CodebookLoss(1.0), "commitment": Commitment(0.25)}
    )
    for name, encoder_moves in {"codebook": False, "commitment": True}.items():
        z_e = torch.randn(2, 4, 3, requires_grad=True)
        quantizer.zero_grad()
        quantizer(z_e).losses[name].value.backward()
        codes_moved = quantizer.codebook.weight.grad is not None and bool(quantizer.codebook.weight.grad.any())
        assert (z_e.grad is not None and bool(z_e.grad.any())) == encoder_moves
        assert codes_moved == (not encoder_moves)


def test_random_revival_replaces_exactly_the_codes_that_are_not_used() -> None:
    codebook = EMACodebook(4, 2, 0.5, 1e-5)
    quantizer = vector_quantizer(codebook, revival=RandomRevival(4, threshold=0.5, decay=0.0, every_steps=1, until=1.0))
    start = torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0], [60.0, 60.0]])
    codebook.replace(torch.ones(4, dtype=torch.bool), start)
    data = torch.tensor([[0.0, 0.1], [1.0, 0.9], [0.1, 0.0], [0.9, 1.0]])
    quantizer.begin_step(0, 10)
    quantizer(data.t()[None])
    quantizer.after_step(torch.tensor(True))
    revived = codebook.codes()[2:]
    assert all(any(torch.equal(code, vector) for vector in data) for code in revived)
    torch.testing.assert_close(codebook.mean_sum[2:], revived * codebook.mean_count[2:, None])
    assert torch.all(codebook.codes()[:2] < 2)


def test_data_init_takes_different_vectors_of_the_data_and_refuses_too_few() -> None:
    vectors = torch.randn(40, 3)
    codes = DataSample(4).choose(vectors, 10)
    assert len({tuple(code.tolist()) for code in codes}) == 10
    assert all(any(torch.equal(code, v) for v in vectors) for code in codes)
    with pytest.raises(ValueError, match="40 latent vectors cannot start 41 codes"):
        DataSample(4).choose(vectors, 41)


def test_the_unit_sphere_puts_output_and_codes_at_norm_one() -> None:
    quantizer = vector_quantizer(EMACodebook(8, 4, 0.9, 1e-5), space=UnitSphere()).eval()
    norms = quantizer(torch.randn(2, 4, 6)).z_q.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_parts_that_cannot_go_together_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"~quantizer.regularizers.codebook"):
        vector_quantizer(EMACodebook(8, 4, 0.9, 1e-5), regularizers={"codebook": CodebookLoss(1.0)})
    with pytest.raises(ValueError, match="nothing trains the codes"):
        vector_quantizer(GradientCodebook(8, 4))


# ---- FSQ


def test_fsq_indices_follow_the_paper() -> None:
    fsq = FSQ(4, [8, 5, 5, 5]).eval()
    assert fsq.basis.tolist() == [1, 8, 40, 200]
    assert fsq(torch.zeros(1, 4, 1)).codes[0].item() == 4 + 2 * 8 + 2 * 40 + 2 * 200
    assert fsq(torch.full((1, 4, 1), 50.0)).codes[0].item() == 999
    assert fsq(torch.full((1, 4, 1), -50.0)).codes[0].item() == 0


def test_every_fsq_code_decodes_to_a_different_vector_and_encodes_back() -> None:
    fsq = FSQ(4, [8, 5, 5, 5]).eval()
    codes = torch.arange(1000)[None]
    values = fsq.decode([codes])  # (1, 4, 1000)
    assert len({tuple(v) for v in values[0].t().tolist()}) == 1000
    bounded = values * (fsq.levels // 2)[:, None]
    inside = ((bounded + fsq.offset[:, None]) / fsq.half_range[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    z = torch.atanh(inside) - fsq.shift[:, None]
    assert torch.equal(fsq(z).codes[0], codes)


@pytest.mark.parametrize("levels", [[1], [8, 2], []])
def test_fsq_refuses_levels_below_three(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        FSQ(4, levels)
