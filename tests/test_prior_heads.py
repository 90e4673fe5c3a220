"""Laws of heads: large softmaxes are the same as small ones, and codes in digits are what codes are."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, assert_same_result, error_of, run, stop_at, train_inside
from quantizer_cases import PRESETS, small_quantizer
from test_priors import LABELS, MAPS, prior_of, random_codes
from torch import Tensor

import vqvae
from vqvae.config.compose import choices
from vqvae.errors import UserError
from vqvae.priors import heads
from vqvae.priors.autoregressive import AutoregressivePrior
from vqvae.priors.digits import Factors, Flat
from vqvae.priors.heads import CodeSampler, Head
from vqvae.priors.sampling import Known, Sampling


def head_of(digits: list[int], width: int = 6, planes: bool = False) -> Head:
    torch.manual_seed(0)
    head = Head(width, digits, planes=planes)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


@pytest.fixture
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every softmax too large to be kept: of a few rows at a time."""
    monkeypatch.setattr(heads, "MOST_LOGITS", 0)
    monkeypatch.setattr(heads, "CHUNK_LOGITS", 40)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("grid", [(7,), (3, 5)])
def test_in_chunks_the_loss_and_its_gradients_are_those_of_cross_entropy(
    grid: tuple[int, ...], planes: bool, smoothing: float, in_chunks: None
) -> None:
    head = head_of([11], planes=planes)
    hidden, codes = torch.randn(2, 6, *grid, requires_grad=True), torch.randint(11, (2, *grid))
    logits = torch.einsum("bc...,kc->bk...", hidden, head.weight.flatten(1)) + head.bias.view(-1, *[1] * len(grid))
    wanted = F.cross_entropy(logits, codes, label_smoothing=smoothing)
    nats, losses = head.score(hidden, codes, smoothing)
    sources = [hidden, head.weight, head.bias]
    pairs = zip(torch.autograd.grad(losses.mean(), sources), torch.autograd.grad(wanted, sources))
    torch.testing.assert_close(losses.mean(), wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(nats, F.cross_entropy(logits, codes, reduction="none"), atol=1e-6, rtol=1e-6)
    assert all(torch.allclose(ours, theirs, atol=1e-6, rtol=1e-5) for ours, theirs in pairs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", choices("prior"))
def test_a_prior_scores_in_chunks_what_it_scores_at_once(
    name: str, training: bool, request: pytest.FixtureRequest
) -> None:
    shapes, sizes = MAPS["coarse and fine"]
    prior = prior_of(name, shapes, sizes).train(training)
    codes, labels = random_codes(shapes, sizes, 3), torch.tensor([0, 2, -1])
    results = []
    for fixture in (None, "in_chunks"):
        if fixture:
            request.getfixturevalue(fixture)
        torch.manual_seed(1)
        scored = prior(codes, labels, 0.1)
        gradients = torch.autograd.grad(scored.loss, [p for p in prior.parameters() if p.requires_grad])
        results.append([scored.loss, *scored.nats, *gradients])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_chunks_keep_no_logits_for_the_backward_pass(in_chunks: None) -> None:
    """What is kept is as large as the hidden states, of which there are fewer channels than codes."""
    head, hidden, codes = head_of([1000]), torch.randn(2, 6, 50, requires_grad=True), torch.randint(1000, (2, 50))
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * (tensor.data_ptr() != head.weight.data_ptr()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nats, _ = head.score(hidden, codes, 0.0)
    assert nats.requires_grad
    assert max(kept, default=0) <= 1000 < codes.numel() * 1000


# ---- digits

IN_DIGITS = {  # of (2, 2), or of two maps
    "one map": ([(2, 2)], [[2, 3]]),
    "one dim": ([(5,)], [[3, 2, 2]]),
    "coarse and fine": ([(1, 2), (2, 3)], [[2, 2], [3, 4]]),
}
AUTOREGRESSIVE = [
    name for name in choices("prior") if isinstance(prior_of(name, *MAPS["three equal maps"]), AutoregressivePrior)
]


def in_digits(name: str, maps: str) -> AutoregressivePrior:
    shapes, digits = IN_DIGITS[maps]
    prior = prior_of(name, shapes, [], digits=digits)
    assert isinstance(prior, AutoregressivePrior)
    return prior


@pytest.mark.parametrize("preset", PRESETS)
def test_the_factors_of_a_quantizer_multiply_to_its_codes(preset: str) -> None:
    quantizer = small_quantizer(preset)
    assert [math.prod(factors) for factors in quantizer.factors()] == quantizer.codebook_sizes


@pytest.mark.parametrize("preset", ["lfq", "bsq", "fsq", "fsq_symmetric", "latent"])
def test_each_factor_is_one_coordinate_of_the_codes(preset: str) -> None:
    quantizer = small_quantizer(preset).eval()
    factors, count = quantizer.factors()[0], len(quantizer.codebook_sizes)
    codes = torch.arange(math.prod(factors))[:, None].expand(-1, count)
    vectors = quantizer.lookup(codes)[:, : len(factors)]  # (K, d) of the first map
    moving, place = [], 1
    for size in factors:
        changed = vectors != vectors.roll(-place, 0)  # the digit up by one, where it is not the last of its values
        whole = codes[:, 0] // place % size < size - 1
        moving.append({tuple(row.nonzero()[:, 0].tolist()) for row in changed[whole]})
        place *= size
    assert all(len(ways) == 1 and len(next(iter(ways))) == 1 for ways in moving)
    assert len(set.union(*moving)) == len(factors)


def test_groups_of_factors_are_few_and_even() -> None:
    assert Factors().of(2**14, [2] * 14) == [128, 128]
    assert Factors(largest=16).of(2**9, [2] * 9) == [8, 8, 8]
    assert Factors(largest=64).of(64000, [8, 8, 8, 5, 5, 5]) == [64, 40, 25]
    assert Factors(largest=16).of(1000, [1000]) == [8, 5, 5, 5]
    assert Factors(largest=16).of(1009, [1009]) == [1009]  # a prime
    assert Factors([10, 100]).of(1000, [1000]) == [10, 100]
    assert Flat().of(1000, [10, 100]) == [1000]
    with pytest.raises(UserError, match=r"digits=\[10, 10\] make 100 codes, and a map has 1000"):
        Factors([10, 10]).of(1000, [1000])


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_one_digit_is_the_flat_head(name: str) -> None:
    """With the same weights, names and bits."""
    digits = [Factors([size]).of(size, [size]) for size in MAPS["coarse and fine"][1]]
    flat = prior_of(name, *MAPS["coarse and fine"])
    other = prior_of(name, MAPS["coarse and fine"][0], [], digits=digits)
    other.load_state_dict(flat.state_dict())
    codes, labels = random_codes(*MAPS["coarse and fine"], 3), torch.tensor(LABELS)
    assert all(torch.equal(a, b) for a, b in zip(flat(codes, labels).nats, other(codes, labels).nats))
    drawn = [prior.sample([0, 1, 2], labels, Sampling(guidance=2)) for prior in (flat, other)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn))


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
@torch.no_grad()
def test_probabilities_of_codes_in_digits_sum_to_one(name: str) -> None:
    prior = prior_of(name, [(1, 1), (1, 2)], [], digits=[[2, 3], [2, 2]])
    every = torch.tensor(list(itertools.product(range(6), range(4), range(4))))
    maps = [every[:, :1].view(-1, 1, 1), every[:, 1:].reshape(-1, 1, 2)]
    total = sum(one.flatten(1).sum(1) for one in prior(maps, torch.full((len(every),), 2)).nats)
    assert torch.exp(-total.double()).sum().item() == pytest.approx(1.0, abs=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("maps", IN_DIGITS)
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_all_ways_of_sampling_digits_draw_the_same_codes(name: str, maps: str) -> None:
    """In float64, guided, cut, and with codes that are known."""
    prior, labels = in_digits(name, maps).double(), torch.tensor(LABELS)
    shapes, digits = IN_DIGITS[maps]
    codes = random_codes(shapes, [math.prod(of_map) for of_map in digits], 3)
    known = Known(codes, [torch.rand(m.shape) < 0.3 for m in codes])
    for settings, kept in (({}, None), ({"guidance": 2.0, "top_p": 0.9}, None), ({"guidance": 0.5}, known)):
        drawn = [prior.sample([3, 4, 5], labels, Sampling(method=m, **settings), kept) for m in prior.methods]
        for other in drawn[1:]:
            assert all(torch.equal(a, b) for a, b in zip(drawn[0], other))
        if kept is not None:
            assert all(torch.equal(a[k], b[k]) for a, b, k in zip(drawn[0], codes, known.kept))


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_sample_i_in_digits_depends_on_seed_i_alone(name: str) -> None:
    prior = in_digits(name, "coarse and fine")
    count = prior.samples_at_a_time + 3
    many = prior.sample(list(range(count)), torch.ones(count, dtype=torch.int64), Sampling(temperature=4))
    for index in (0, 7, count - 1):
        alone = prior.sample([index], torch.ones(1, dtype=torch.int64), Sampling(temperature=4))
        assert all(torch.equal(a[0], b[index]) for a, b in zip(alone, many))


@torch.no_grad()
def test_samples_in_digits_follow_the_prior() -> None:
    prior = prior_of("pixelcnn", [(1, 1)], [], digits=[[2, 3]])
    labels, every = torch.zeros(6400, dtype=torch.int64), torch.arange(6).view(6, 1, 1)
    drawn = prior.sample(list(range(6400)), labels, Sampling())[0].flatten()
    wanted = torch.exp(-prior([every], labels[:6]).nats[0].flatten())
    share = torch.bincount(drawn, minlength=6) / len(drawn)
    assert torch.all((share - wanted).abs() < 4 * (wanted * (1 - wanted) / len(drawn)).sqrt())  # 4 standard errors


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.4}, {"top_k": 2}, {"top_p": 0.5}, {"guidance": 3.0}, {"temperature": 0.0}]
)
@torch.no_grad()
def test_settings_act_on_each_digit_given_those_before_it(settings: dict[str, float]) -> None:
    """p(code) is the product of what each digit's own distribution becomes by them."""
    head, count = head_of([3, 4]), 20_000
    states = torch.randn(2 if "guidance" in settings else 1, 6)
    drawing = Sampling(**settings).on(torch.device("cpu"))  # type: ignore[arg-type]

    def becomes(logits: Tensor) -> Tensor:
        if "guidance" in settings:
            logits = (logits[1] + 3 * (logits[0] - logits[1]))[None]
        p = logits[0].softmax(0)
        order = p.argsort(descending=True)
        if settings.get("temperature") == 0.0:
            kept = order[:1]
        elif "temperature" in settings:
            return (logits[0] / 0.4).softmax(0)
        elif "top_k" in settings:
            kept = order[:2]
        else:
            kept = order[: 1 + int((p[order].cumsum(0) < settings.get("top_p", 1.1)).sum())]
        return torch.zeros_like(p).index_copy(0, kept, p[kept]) / p[kept].sum()

    first, wanted = becomes(head.logits(states)), torch.zeros(12)
    for digit in range(3):
        state = head.later[0](states, torch.full((len(states),), digit))
        wanted[digit::3] = first[digit] * becomes(head.later[0].logits(state))
    noise = torch.rand(count, 1, 2, dtype=torch.float64)
    sampler = CodeSampler(drawing, noise, torch.zeros(1), torch.zeros(count, 1, dtype=torch.int64), None)
    codes = sampler(head, states.repeat_interleave(count, 0), slice(0, 1)).flatten()
    share = torch.bincount(codes, minlength=12) / count
    assert torch.all((share - wanted).abs() <= 4.5 * (wanted * (1 - wanted) / count).sqrt() + 1e-6)


@pytest.mark.skipif(importlib.util.find_spec("constriction") is None, reason="needs constriction")
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_codes_in_digits_come_back_from_an_archive_in_the_bits_of_the_prior(name: str) -> None:
    from vqvae.compression.coder import decode_codes, encode_codes, ideal_bits

    prior = in_digits(name, "coarse and fine")
    codes = prior.sample(list(range(70)), torch.full((70,), -1), Sampling())
    data = encode_codes(prior, codes, batch=32)
    assert all(torch.equal(ours, right) for ours, right in zip(decode_codes(prior, data, 70, batch=32), codes))
    ideal = ideal_bits(prior, codes)
    assert ideal <= 8 * len(data) <= 1.02 * ideal + 64


# ---- runs

DIGITS = [
    *TINY,
    "quantizer=lfq",
    "quantizer.bits=12",
    "quantizer.bits_per_map=12",
    "prior/head=factors",
    "prior.head.largest=16",
]


MASKED = [*DIGITS[:-2], "prior=maskgit", "prior/head=bits", "prior.network.width=16"]


@pytest.mark.parametrize(("overrides", "digits"), [(DIGITS, [16, 16, 16]), (MASKED, [64, 64])], ids=["factors", "bits"])
def test_a_run_in_digits_resumes_samples_is_evaluated_and_exported(
    overrides: list[str], digits: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_inside(*overrides, "prior.trainer.steps=6", f"run_dir={tmp_path / 'whole'}")
    with monkeypatch.context() as patched:
        stop_at(patched, "prior", 3)
        with pytest.raises(SystemExit):
            train_inside(*overrides, "prior.trainer.steps=6", f"run_dir={tmp_path / 'stopped'}")
    train_inside(*overrides, "prior.trainer.steps=6", f"run_dir={tmp_path / 'stopped'}")
    assert_same_result(tmp_path / "whole", tmp_path / "stopped")
    folder = f"run_dir={tmp_path / 'whole'}"
    run("sample.py", folder, "n=4", "class=all", "guidance=2")
    run("sample.py", folder, "mode=complete", "image=0", "mask=left_half", "n=2")
    assert "prior/bits_per_code" in run("scripts/evaluate.py", folder).stdout
    run("scripts/export.py", folder, f"out={tmp_path / 'export'}")
    one, other = vqvae.load(tmp_path / "whole"), vqvae.load(tmp_path / "export")
    assert one.prior is not None
    assert one.prior.digits == [digits]
    assert all(torch.equal(a, b) for a, b in zip(one.sample_codes([0, 1]), other.sample_codes([0, 1])))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["prior.head.digits=[16,16]"],
            "prior.head.digits=[16, 16] make 256 codes, and a map has 4096: null takes digits that fit",
        ),
        (["prior.head.digits=[1,4096]"], "prior.head.digits=[1, 4096] must have every value at least 2"),
        (
            ["prior=maskgit"],
            "a masked prior predicts codes whole, or in groups of as many bits: take prior/head=flat or bits",
        ),
        (
            ["prior/head=bits"],
            "prior/head=bits is for prior=maskgit, which hides groups of bits: take prior/head=factors",
        ),
        (["prior/head=bits", "prior.head.groups=5"], "groups=5 does not divide the 12 bits of a map's 4096 codes"),
        (["prior/head=bits", "prior.head.groups=1"], "prior.head.groups=1 must be at least 2"),
        (
            ["prior/head=bits", "quantizer=fsq", "quantizer.levels=[8,5,5,5]"],
            "prior/head=bits needs a power of 2 of codes, and a map has 1000: take prior/head=flat",
        ),
        (["prior/head=octal"], "prior/head=octal does not exist"),
    ],
)
def test_a_head_that_does_not_fit_is_one_sentence(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = ("prior.head.largest", *(["quantizer"] if "quantizer=fsq" in more else []))
    given = [one for one in DIGITS if "prior/head=bits" not in more or not one.startswith(left_out)]
    said = error_of(capsys, *given, *more, f"run_dir={tmp_path / 'run'}")
    assert message in said
    assert said.count("\n") == 1
