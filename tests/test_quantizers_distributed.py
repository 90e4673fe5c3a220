"""Laws of quantizers in training: how a batch is dealt to processes and micro-batches makes no difference."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from quantizer_cases import (
    BATCH,
    DIM,
    GRID,
    PRESETS,
    STATEFUL,
    Run,
    begin_run,
    latents,
    own_rows,
    small_config,
    small_quantizer,
)
from two_processes import in_a_group

from vqvae import distributed

pytestmark = pytest.mark.cpu

STEPS = 20
WHOLE = slice(0, BATCH)
Result = dict[str, Any]


def train(name: str, rows: slice, cfg: DictConfig | None = None, count: int = STEPS) -> Result:
    """`count` steps on this rank's rows of each batch."""
    quantizer = small_quantizer(name, cfg)
    begin_run(quantizer, own_rows(3 * BATCH))
    run = Run(quantizer)
    steps = [run.step(step, rows) for step in range(count)]
    return {
        "counts": [distributed.all_reduce_sum(counts) for counts, _ in steps],
        "gradients": torch.stack([gradient for _, gradient in steps]),  # (STEPS, B, D, *s)
        "state": {key: value.clone() for key, value in quantizer.state_dict().items()},
        "replaced": run.replaced,
    }


def both_ways(name: str, cfg: DictConfig) -> Result:
    """On half of the batch each, and with all of it on rank 0."""
    whole = WHOLE if distributed.is_main() else slice(0, 0)
    halves, empty = train(name, own_rows(BATCH), cfg), train(name, whole, cfg, 6)
    return {"halves": halves, "one_empty": empty, "evaluated": evaluate(name, 50 + distributed.rank(), cfg)}


def evaluate(name: str, step: int, cfg: DictConfig | None = None) -> dict[str, torch.Tensor]:
    """Losses and codes of one batch."""
    quantizer = small_quantizer(name, cfg).eval()
    with torch.no_grad():
        out = quantizer(latents(step))
    return {loss: one.value for loss, one in out.losses.items()} | {f"map{m}": one for m, one in enumerate(out.codes)}


def every_preset(configs: dict[str, DictConfig]) -> dict[str, Result]:
    results = {}
    for name, cfg in configs.items():
        try:
            results[name] = both_ways(name, cfg)
        except Exception:  # a preset's failure belongs to its own test, not to those of all others
            results[name] = {"error": traceback.format_exc()}
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    """What two processes made of every preset."""
    configs = {name: small_config(name) for name in STATEFUL}
    return in_a_group(tmp_path_factory.mktemp("ranks"), every_preset, configs)


def of_preset(ranks: list[dict[str, Result]], name: str) -> list[Result]:
    for results in ranks:
        assert "error" not in results[name], results[name]["error"]
    return [results[name] for results in ranks]


def assert_equal_states(states: list[dict[str, torch.Tensor]]) -> None:
    first, second = states
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("name", STATEFUL)
def test_two_processes_train_as_one_on_the_joint_batch(ranks: list[dict[str, Result]], name: str) -> None:
    one = train(name, WHOLE)
    two = [result["halves"] for result in of_preset(ranks, name)]
    for step in range(STEPS):
        for counts, joint in zip(one["counts"][step], two[0]["counts"][step]):
            assert torch.equal(counts, joint), step
    gradients = torch.cat([result["gradients"] for result in two], dim=1) / 2  # of the mean over ranks
    torch.testing.assert_close(gradients, one["gradients"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(two[0]["state"], one["state"], rtol=1e-4, atol=1e-5)
    assert two[0]["replaced"] == one["replaced"]


@pytest.mark.parametrize("name", STATEFUL)
def test_two_processes_end_with_the_same_bits(ranks: list[dict[str, Result]], name: str) -> None:
    assert_equal_states([result["halves"]["state"] for result in of_preset(ranks, name)])


@pytest.mark.parametrize("name", STATEFUL)
def test_a_rank_without_vectors_takes_part_in_every_step(ranks: list[dict[str, Result]], name: str) -> None:
    results = [result["one_empty"] for result in of_preset(ranks, name)]
    assert_equal_states([result["state"] for result in results])
    assert all(value.isfinite().all() for value in results[0]["state"].values())


@pytest.mark.parametrize("name", STATEFUL)
def test_a_rank_evaluates_its_batches_as_one_process_would(ranks: list[dict[str, Result]], name: str) -> None:
    """Ranks may have different numbers of batches, so no rank may wait for another's."""
    for rank, result in enumerate(of_preset(ranks, name)):
        assert_equal_states([result["evaluated"], evaluate(name, 50 + rank)])


@pytest.mark.parametrize("name", ["vq", "cosine", "cvq", "seeds", "diveq", "nsvq", "sync"])
def test_the_tests_above_did_replace_codes(ranks: list[dict[str, Result]], name: str) -> None:
    assert of_preset(ranks, name)[0]["halves"]["replaced"] > 0


# ---- one process, other shapes of a batch

ENTROPY = "the entropy is that of the mean over one forward"
PER_FORWARD = {
    "bsq": ENTROPY,
    "lfq": ENTROPY,
    "ibq": ENTROPY,
    "sf_diveq": "the points between codes are drawn anew in each forward",
}


@pytest.mark.parametrize("name", [name for name in STATEFUL if name not in PER_FORWARD])
def test_four_micro_batches_train_as_one_batch(name: str) -> None:
    steps = 4 if name == "multiscale" else 6  # its revival numbers the vectors of a forward scale by scale: none yet
    states = []
    for parts in (1, 4):
        quantizer = small_quantizer(name)
        begin_run(quantizer, slice(None))
        run = Run(quantizer)
        for step in range(steps):
            run.step(step, WHOLE, parts)
        states.append(quantizer.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_an_empty_batch_makes_no_codes_and_moves_none(name: str) -> None:
    """Except `seeds`, whose codes push each other away with or without images."""
    quantizer = small_quantizer(name)
    begin_run(quantizer, slice(None))
    codebooks = [None if codes is None else codes.clone() for codes in quantizer.codebooks()]
    run = Run(quantizer)
    for step in range(6):
        run.step(step, slice(0, 0))
    for training in (True, False):
        out = quantizer.train(training)(latents(0, 0))
        assert out.z_q.shape == (0, DIM, *GRID)
        assert [tuple(m.shape) for m in out.codes] == [(0, *shape) for shape in quantizer.code_shapes(GRID)]
        assert all(loss.value.isfinite() for loss in out.losses.values())
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    if name != "seeds":
        torch.testing.assert_close(quantizer.codebooks(), codebooks)


@pytest.mark.parametrize("name", PRESETS)
def test_fewer_vectors_than_codes_leave_all_finite_through_a_revival(name: str) -> None:
    quantizer = small_quantizer(name)  # codes as drawn, not from data, of which there would have to be more
    run = Run(quantizer)
    for step in range(6):
        run.step(step, slice(0, 1))
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_training_forward_without_gradient_finds_and_counts_the_same_codes(name: str) -> None:
    states = []
    for enabled in (True, False):
        quantizer = small_quantizer(name)
        begin_run(quantizer, slice(None))
        torch.manual_seed(3)
        quantizer.begin_step(4, 100)
        with torch.set_grad_enabled(enabled):
            out = quantizer(latents(0))
        quantizer.after_step(torch.tensor(True))
        states.append({**quantizer.state_dict(), "z_q": out.z_q.detach(), **dict(zip("abcdefgh", out.codes))})
    assert_equal_states(states)
