"""Laws of the parts that vector quantization is composed of."""

from __future__ import annotations

import pytest
import torch
from plain_parts import vector_quantizer

from vqvae.quantizers.codebook import (
    BridgeCodebook,
    EMACodebook,
    FrozenCodebook,
    GradientCodebook,
    SimVQCodebook,
)
from vqvae.quantizers.estimator import DiVeQ, Rotation
from vqvae.quantizers.init import DataSample
from vqvae.quantizers.lookup import CodebookPCA, Euclidean, Stochastic
from vqvae.quantizers.regularizers import CodebookLoss, Commitment, NearestCoulomb, Orthogonal
from vqvae.quantizers.revival import FarthestRevival, LeastRecentlyUsed, RandomRevival
from vqvae.quantizers.space import UnitSphere


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
    quantizer = vector_quantizer(EMACodebook(8, 4, 0.9, 1e-5), revival=RandomRevival(0.5, 0.9, 1.0, 1, 1.0))
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
        GradientCodebook(8, 4, 1.0), regularizers={"codebook": CodebookLoss(1.0), "commitment": Commitment(0.25)}
    )
    z_e = torch.randn(2, 4, 3, requires_grad=True)
    upstream = torch.randn(2, 4, 3)
    (quantizer(z_e).z_q * upstream).sum().backward()
    torch.testing.assert_close(z_e.grad, upstream)
    assert quantizer.codebook.weight.grad is None


def test_codebook_loss_moves_codes_only_and_commitment_moves_the_encoder_only() -> None:
    quantizer = vector_quantizer(
        GradientCodebook(8, 4, 1.0), regularizers={"codebook": CodebookLoss(1.0), "commitment": Commitment(0.25)}
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
    quantizer = vector_quantizer(
        codebook, revival=RandomRevival(threshold=0.5, decay=0.0, start_weight=0.0, every_steps=1, until=1.0)
    )
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
    with pytest.raises(ValueError, match="nothing draws the codes to the latents"):
        vector_quantizer(GradientCodebook(8, 4, 1.0))


# ---- what cannot go together


@pytest.mark.parametrize(
    ("parts", "way_out"),
    [
        ({"codebook": EMACodebook(8, 4, 0.9, 1e-5), "estimator": DiVeQ(0.0)}, "quantizer/codebook=gradient"),
        ({"codebook": FrozenCodebook(8, 4), "estimator": DiVeQ(0.0)}, "quantizer/codebook=gradient"),
        ({"codebook": FrozenCodebook(8, 4), "revival": RandomRevival(0.1, 0.9, 1.0, 5, 1.0)}, "quantizer/revival=none"),
        ({"codebook": SimVQCodebook(8, 4), "init": DataSample(2), "loss": True}, "quantizer/init=normal"),
        (
            {"codebook": BridgeCodebook(8, 4, 2.0, 2, 8, 1), "revival": LeastRecentlyUsed(1, 1, 1.0), "loss": True},
            "none",
        ),
        ({"codebook": FrozenCodebook(8, 4), "lookup": Stochastic(1.0), "estimator": Rotation()}, "straight_through"),
        ({"codebook": FrozenCodebook(8, 4), "lookup": CodebookPCA(Euclidean(), 5)}, "at most 4"),
        (
            {"codebook": GradientCodebook(8, 4, 1.0), "revival": FarthestRevival(9, 1, 1.0), "loss": True},
            "choose fewer",
        ),
        ({"codebook": GradientCodebook(8, 4, 1.0), "regularizers": {"codebook": CodebookLoss(0.0)}}, "codebook=ema"),
        ({"codebook": GradientCodebook(8, 4, 1.0), "regularizers": {"spread": Orthogonal(1.0, 8)}}, "codebook=ema"),
    ],
)
def test_parts_that_cannot_go_together_are_refused_naming_the_fix(parts: dict[str, object], way_out: str) -> None:
    if parts.pop("loss", False):
        parts["regularizers"] = {"codebook": CodebookLoss(1.0)}
    with pytest.raises(ValueError, match=way_out):
        vector_quantizer(**parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_not_above_zero_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be"):
        GradientCodebook(8, 4, speed)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_negative_or_nan_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be"):
        Commitment(weight)


def test_codes_that_many_others_pick_get_the_same_gradient_on_two_threads() -> None:
    """Two threads that add up one row's gradient at once would do so in any order."""
    codes = torch.nn.Parameter(torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)))
    loss = NearestCoulomb(weight=1.0, order=2, bound=100.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [torch.autograd.grad(loss(codes, codes, codes), codes)[0] for _ in range(8)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, gradients[0]) for one in gradients)
