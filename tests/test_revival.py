"""Laws of when codes are replaced."""

from __future__ import annotations

import pytest
import torch
from plain_parts import vector_quantizer

from vqvae.config.renames import rename_targets
from vqvae.quantizers.anchor import AnchorRevival
from vqvae.quantizers.codebook import EMACodebook
from vqvae.quantizers.revival import FarthestRevival, LeastRecentlyUsed, NoRevival, RandomRevival, Revival
from vqvae.quantizers.vector import VectorQuantizer

STEPS = 60


def with_unused_code(revival: Revival) -> VectorQuantizer:
    """Two codes, of which the second is farther away than any latent."""
    quantizer = vector_quantizer(EMACodebook(2, 2, 0.9, 1e-5), revival=revival)
    quantizer.codebook.start(torch.tensor([[0.0, 0.0], [1e3, 1e3]]))
    return quantizer


def steps_of_replacement(quantizer: VectorQuantizer) -> list[int]:
    """The steps, counted from 1, after which the second code was another, with the far one put back each time."""
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        quantizer.begin_step(step, STEPS)
        quantizer(torch.randn(1, 2, 8))
        quantizer.after_step(torch.tensor(True))
        if quantizer.codebook.codes()[1].norm() < 100:
            found.append(step + 1)
            quantizer.codebook.start(torch.tensor([[0.0, 0.0], [1e3, 1e3]]))
    return found


@pytest.mark.parametrize("every", [1, 5, 7])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("start_weight", [0.0, 0.01, 1.0])
def test_the_plan_of_a_run_names_the_first_step_that_replaces_an_unused_code(
    start_weight: float, decay: float, every: int
) -> None:
    revival = RandomRevival(0.3, decay, start_weight, every, until=0.5)
    steps = steps_of_replacement(with_unused_code(revival))
    assert revival.plan(STEPS).startswith(f"dead codes are replaced after step {steps[0]},")
    assert revival.plan(STEPS).endswith(f"every {every} up to step {30 // every * every}")
    assert steps[-1] <= 30


def test_use_is_the_weighted_mean_of_the_steps_so_far() -> None:
    """Weights decay^age, as float64 has them, without anything from before the first step."""
    torch.manual_seed(0)
    revival = RandomRevival(0.01, 0.9, 0.0, every_steps=1, until=1.0)
    quantizer = vector_quantizer(EMACodebook(4, 2, 0.9, 1e-5), revival=revival)
    quantizer.codebook.start(torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]))
    shares = []
    for step in range(6):
        quantizer.begin_step(step, 10)
        codes = quantizer(torch.randn(1, 2, 64)).codes[0]
        quantizer.after_step(torch.tensor(True))
        shares.append(torch.bincount(codes.flatten(), minlength=4).double() / 64)
        weights = 0.9 ** torch.arange(step, -1, -1, dtype=torch.float64)
        wanted = (torch.stack(shares) * weights[:, None]).sum(0) / weights.sum()
        torch.testing.assert_close((revival.usage / revival.weight).double(), wanted, rtol=1e-5, atol=1e-7)


def test_the_average_of_an_older_run_starts_at_uniform_use() -> None:
    """Then a code that nothing chooses is dead once decay^steps is below the threshold: 0.99^298 is above 0.05."""
    older = {
        "_target_": "vqvae.quantizers.revival.RandomRevival",
        "threshold": 0.05,
        "decay": 0.99,
        "every_steps": 1,
        "until": 0.8,
    }
    arguments = {key: value for key, value in rename_targets(older).items() if key != "_target_"}
    assert RandomRevival(**arguments).plan(1500) == (
        "dead codes are replaced after step 299, and every 1 up to step 1,200"
    )


@pytest.mark.parametrize(
    ("revival", "plan"),
    [
        (NoRevival(), None),
        (RandomRevival(0.05, 0.99, 0.0, 300, 0.8), "dead codes are replaced after step 300"),
        (LeastRecentlyUsed(20, 50, 0.8), "dead codes are replaced after step 50, and every 50 up to step 400"),
        (
            FarthestRevival(8, 100, 0.5),
            "the 8 least used codes are replaced after step 100, and every 100 up to step 200",
        ),
        (
            RandomRevival(0.05, 0.99, 0.0, 450, 0.8),
            "dead codes are never replaced: step 450 would be the first time, and 400 is the last step for it",
        ),
        (AnchorRevival(10.0, 0.99, 0.8), "codes move to latents after each of the first 400 steps"),
    ],
)
def test_a_plan_counts_steps_from_1(revival: Revival, plan: str | None) -> None:
    assert revival.plan(500) == plan
