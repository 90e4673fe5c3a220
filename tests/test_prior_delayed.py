"""Laws of the prior over maps side by side, each a step behind the one before: what sees what, its cache, and its runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCALES, TINY, error_of, train_inside
from test_prior_next_scale import assert_all_programs_take, assert_cache_is_exact
from test_priors import prior_of, random_codes
from torch import Tensor, nn

import vqvae
from vqvae.errors import UserError
from vqvae.priors.delayed import Delayed
from vqvae.priors.sampling import Sampling

MAPS: dict[str, tuple[list[tuple[int, ...]], list[int]]] = {
    "one map": ([(5,)], [5]),
    "sounds": ([(6,)] * 4, [5, 7, 6, 5]),
    "images": ([(2, 3)] * 2, [4, 4]),
    "more maps than codes": ([(2,)] * 5, [3] * 5),
    "three dims": ([(1, 2, 2)] * 2, [4, 5]),
}
RESIDUAL = ["quantizer=residual", "quantizer.inner.codebook.size=16", "quantizer.depth=3", "prior=delayed"]


def delayed(maps: str, **more: Any) -> Delayed:
    prior = prior_of("delayed", *MAPS[maps], **more)
    assert isinstance(prior, Delayed)
    return prior


@pytest.mark.parametrize("maps", MAPS)
@torch.no_grad()
def test_a_code_changes_what_is_known_of_all_later_steps_and_of_no_other(maps: str) -> None:
    """Code n of map m belongs to step n + m."""
    prior, codes, labels = delayed(maps).double(), random_codes(*MAPS[maps]), torch.tensor([1])
    before, steps = prior.hidden(codes, labels), torch.arange(prior.codes_per_map)
    for (m, size), place in itertools.product(enumerate(MAPS[maps][1]), range(prior.codes_per_map)):
        changed = [one.clone() for one in codes]
        changed[m].view(-1)[place] = (changed[m].view(-1)[place] + 1) % size
        for other, (a, b) in enumerate(zip(before, prior.hidden(changed, labels))):
            differs = ((a - b).abs() > 1e-12).any(1).flatten()
            assert torch.equal(differs, steps + other > place + m)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_cache_draws_what_the_whole_transformer_draws(maps: str, guidance: float) -> None:
    assert_cache_is_exact(delayed(maps), random_codes(*MAPS[maps], 3), guidance)


@torch.no_grad()
def test_sampling_takes_a_pass_a_step_over_one_position() -> None:
    prior, rows = delayed("sounds"), []
    prior.blocks[0].qkv.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    prior.sample([0, 1], torch.tensor([0, 1]), Sampling())
    assert rows == [1] * (6 + 3)


def test_probabilities_of_all_codes_sum_to_one_in_digits_too() -> None:
    prior = prior_of("delayed", [(2,), (2,)], [], digits=[[2], [3, 2]]).double()
    every = torch.cartesian_prod(*[torch.arange(size) for size in (2, 2, 6, 6)])  # (144, 4)
    nats = prior([every[:, :2], every[:, 2:]], torch.zeros(len(every)).long()).nats
    assert torch.exp(-(nats[0] + nats[1]).sum(1)).sum().item() == pytest.approx(1, abs=1e-5)


def test_it_learns_what_a_map_says_of_the_next_one() -> None:
    """Map 2 repeats map 1, and map 1 is a run of equal codes: nothing is left to say but the first code."""
    torch.manual_seed(0)
    prior = Delayed([(6,), (6,)], [[8], [8]], 0, width=32, layers=2, heads=2, dropout=0.0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)

    def batch() -> list[Tensor]:
        return [torch.randint(8, (64, 1)).expand(64, 6)] * 2

    nowhere = torch.full((64,), -1)
    for _ in range(150):
        optimizer.zero_grad()
        prior(batch(), nowhere).loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    first, second = (nats.mean(0) for nats in prior(batch(), nowhere).nats)
    assert first[0].item() == pytest.approx(np.log(8), abs=0.2)
    assert max(first[1:].max(), second.max()) < 0.1


def test_maps_of_several_sizes_and_steps_are_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(capsys, *TINY, *SCALES, "prior=delayed", f"run_dir={tmp_path / 'run'}")
    assert "delayed predicts maps of one size side by side, such as those of quantizer=residual" in said
    assert said.count("\n") == 1


def test_a_run_resumes_samples_completes_is_evaluated_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    train_inside(*TINY, *RESIDUAL, f"run_dir={whole}")
    with pytest.raises(
        UserError, match="steps=3 is for masked priors: this one draws one step of all maps after another"
    ):
        vqvae.load(whole).sample_codes([0], steps=3)
    assert_all_programs_take(whole, [*TINY, *RESIDUAL], tmp_path, monkeypatch)
