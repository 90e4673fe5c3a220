"""Laws of the prior that predicts a scale at a time: what sees what, its cache, and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCALES, SMALL_CODEBOOK, TINY, assert_same_result, error_of, run, stop_at, train_inside
from test_priors import LABELS, prior_of, random_codes
from torch import Tensor, nn

import vqvae
from vqvae.compression.coder import coding_prior
from vqvae.errors import UserError
from vqvae.priors.base import Prior
from vqvae.priors.next_scale import NextScale
from vqvae.priors.sampling import Known, Sampling

MAPS: dict[str, tuple[list[tuple[int, ...]], list[int]]] = {
    "two dims": ([(1, 1), (2, 3), (4, 5)], [5, 7, 6]),
    "one dim": ([(2,), (3,), (7,)], [5, 5, 5]),
    "three dims": ([(1, 1, 2), (2, 2, 4)], [4, 4]),
    "equal maps": ([(2, 2)] * 3, [4, 4, 4]),
    "a coarser one last": ([(4, 4), (2, 2)], [4, 4]),
}


def next_scale(maps: str, **more: Any) -> NextScale:
    prior = prior_of("next_scale", *MAPS[maps], **more)
    assert isinstance(prior, NextScale)
    return prior


@pytest.mark.parametrize("maps", MAPS)
@torch.no_grad()
def test_a_code_changes_what_is_known_of_all_finer_maps_and_of_no_other(maps: str) -> None:
    """Everywhere in the maps after its own; nowhere in its own, or before."""
    prior, codes, labels = next_scale(maps), random_codes(*MAPS[maps]), torch.tensor([1])
    before = prior.hidden(codes, labels)
    for m, size in enumerate(MAPS[maps][1]):
        changed = [one.clone() for one in codes]
        changed[m].view(-1)[-1] = (changed[m].view(-1)[-1] + 1) % size
        differs = [(a != b).any(1) for a, b in zip(before, prior.hidden(changed, labels))]
        assert not any(one.any() for one in differs[: m + 1])
        assert all(one.all() for one in differs[m + 1 :])


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_cache_draws_what_the_whole_transformer_draws(maps: str, guidance: float) -> None:
    assert_cache_is_exact(next_scale(maps), random_codes(*MAPS[maps], 3), guidance)


def assert_cache_is_exact(prior: Prior, codes: list[Tensor], guidance: float) -> None:
    """In float64, with codes that are known and without."""
    prior, labels = prior.double(), torch.tensor(LABELS)
    known = Known(codes, [torch.rand(m.shape) < 0.4 for m in codes])
    for kept in (None, known):
        settings = {"guidance": guidance, "guidance_schedule": "linear", "top_p": 0.9}
        cached, uncached = (
            prior.sample([3, 4, 5], labels, Sampling(method=method, **settings), kept)  # type: ignore[arg-type]
            for method in ("cached", "uncached")
        )
        assert all(torch.equal(a, b) for a, b in zip(cached, uncached))
        if kept is not None:
            assert all(torch.equal(a[k], b[k]) for a, b, k in zip(cached, codes, known.kept))


@torch.no_grad()
def test_sampling_takes_one_pass_a_scale_over_its_own_codes_alone() -> None:
    prior, rows = next_scale("two dims"), []
    prior.blocks[0].qkv.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    prior.sample([0, 1], torch.tensor([0, 1]), Sampling())
    assert rows == [1, 6, 20]


def test_codes_in_digits_sum_to_one_and_are_drawn_alike_from_the_cache() -> None:
    digits = [[2, 2], [3, 2]]
    prior = prior_of("next_scale", [(1, 1), (1, 1)], [], digits=digits).double()
    coarse, fine = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    maps = [one.reshape(-1, 1, 1) for one in (coarse, fine)]
    nats = prior(maps, torch.zeros(24).long()).nats
    assert torch.exp(-(nats[0] + nats[1])).sum().item() == pytest.approx(1, abs=1e-5)
    cached, uncached = (
        prior.sample([0, 1, 2], torch.tensor(LABELS), Sampling(method=method)) for method in prior.methods
    )
    assert all(torch.equal(a, b) for a, b in zip(cached, uncached))


@torch.no_grad()
def test_known_codes_lead_finer_maps_and_no_other_code_of_their_own() -> None:
    prior, labels = next_scale("two dims"), torch.tensor([0, 1, 2])
    free = prior.sample([0, 1, 2], labels, Sampling())
    codes, kept = [m.clone() for m in free], [torch.zeros_like(m, dtype=torch.bool) for m in free]
    kept[1][:, 0, 0] = True
    codes[1][:, 0, 0] = (codes[1][:, 0, 0] + 1) % 7
    led = prior.sample([0, 1, 2], labels, Sampling(), Known(codes, kept))
    assert torch.equal(led[0], free[0])
    assert torch.equal(led[1], codes[1])
    assert not torch.equal(led[2], free[2])


def test_places_of_all_scales_lie_on_one_plane() -> None:
    """The angle of a coarse place is the mean of those that it covers."""
    prior = NextScale([(1, 1), (2, 2), (4, 4)], [[4]] * 3, 0, width=16, layers=1, heads=1, dropout=0.0)
    coarse, middle, fine = (
        part.unflatten(0, shape) for part, shape in zip(prior.angles.split([1, 4, 16]), prior.code_shapes)
    )
    torch.testing.assert_close(middle[0, 1], fine[:2, 2:].mean((0, 1)))
    torch.testing.assert_close(coarse[0, 0], fine.mean((0, 1)))


def test_it_learns_what_a_coarse_map_says_of_a_fine_one() -> None:
    """Each fine code repeats the coarse one above it: soon nothing is left to say, but the coarse ones."""
    torch.manual_seed(0)
    prior = NextScale([(2, 2), (4, 4)], [[8], [8]], 0, width=32, layers=2, heads=2, dropout=0.0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)

    def batch() -> list[Tensor]:
        coarse = torch.randint(8, (64, 2, 2))
        return [coarse, coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)]

    nowhere = torch.full((64,), -1)
    for _ in range(150):
        optimizer.zero_grad()
        prior(batch(), nowhere).loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    coarse, fine = (nats.mean().item() for nats in prior(batch(), nowhere).nats)
    assert fine < 0.1
    assert coarse == pytest.approx(np.log(8), abs=0.1)


def test_one_map_and_an_archive_are_refused_in_a_sentence(
    scales_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(capsys, *TINY, *SMALL_CODEBOOK, "prior=next_scale", f"run_dir={tmp_path / 'run'}")
    assert "there is one map alone: take quantizer=multiscale, or another prior" in said
    assert said.count("\n") == 1
    model = vqvae.load(scales_run)
    pytest.importorskip("constriction")
    with pytest.raises(UserError, match="NextScale cannot give the probability of one code after another"):
        coding_prior(model)
    with pytest.raises(UserError, match="steps=3 is for masked priors: this one draws one scale after another"):
        model.sample_codes([0], steps=3)


def test_a_run_resumes_samples_completes_is_evaluated_and_exported(
    scales_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_all_programs_take(scales_run, [*TINY, *SCALES, "prior=next_scale"], tmp_path, monkeypatch)


def assert_all_programs_take(
    finished: Path, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of the same overrides that is stopped ends as the finished one, and is sampled, evaluated and exported."""
    with monkeypatch.context() as patched:
        stop_at(patched, "prior", 1)
        with pytest.raises(SystemExit):
            train_inside(*overrides, f"run_dir={tmp_path / 'stopped'}")
    train_inside(*overrides, f"run_dir={tmp_path / 'stopped'}")
    assert_same_result(finished, tmp_path / "stopped")
    folder = f"run_dir={tmp_path / 'stopped'}"
    run("sample.py", folder, "n=4", "class=all", "guidance=2", "gif=true")
    out = tmp_path / "completed"
    run("sample.py", folder, "mode=complete", "image=0", "mask=left_half", "n=2", f"out={out}")
    arrays = np.load(out / "completions.npz")
    for m in range(3):
        kept, given, codes = (arrays[f"{name}_{m}"] for name in ("kept", "given", "codes"))
        assert (codes[:, kept] == given[kept]).all()
    assert arrays["kept_2"].any()
    assert "prior/bits_per_code" in run("scripts/evaluate.py", folder).stdout
    run("scripts/export.py", folder, f"out={tmp_path / 'export'}")
    one, other = vqvae.load(tmp_path / "stopped"), vqvae.load(tmp_path / "export")
    assert all(torch.equal(a, b) for a, b in zip(one.sample_codes([0, 1]), other.sample_codes([0, 1])))
