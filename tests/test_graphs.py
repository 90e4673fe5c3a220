"""Steps that are replayed do what steps do: on the CPU by a recorder, which does what a CUDA graph does."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, train_inside
from test_backbones import needs_lite
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from scripts.benchmarks.sampling import prior_of
from vqvae.config.compose import choices
from vqvae.devices import graphs
from vqvae.devices.graphs import MAX_KINDS, Graphs
from vqvae.priors import autoregressive, base, maskgit
from vqvae.priors.base import Prior, graphs_of
from vqvae.priors.sampling import Known, Sampling, philox, philox_uniform
from vqvae.training import optimizers, step
from vqvae.training.trainer import Trainer

pytestmark = pytest.mark.cpu

STEPS = 10
SMALL = [word for word in TINY if not word.startswith(("model", "quantizer"))]
CONV = [word for word in TINY if word.startswith("model")]
ALL = ["trainer.accumulation=2", "trainer.weight_average_decay=0.9", "trainer.clip_grad_norm=0.1"]
PRIOR = ["prior.network.width=16", "prior.trainer.accumulation=2", "prior.trainer.weight_average_decay=0.9"]


class Recorder(TorchDispatchMode):
    """Takes down the operations of a step, and repeats them on the same storages."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any, list[bool]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert "_local_scalar_dense" not in str(func), "the host reads a value, which a graph cannot"
        known = {storage(t) for t in tensors((args, kwargs))}
        given = tree_map(view_of, (args, kwargs))  # before the operation, which may turn a tensor's dims
        out = func(*args, **kwargs)
        fresh = [storage(t) not in known for t in tensors(out)]
        if any(fresh) or func._schema.is_mutable:
            self.calls.append((func, *given, tree_map(view_of, out), fresh))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out, fresh in self.calls:
            for kept, new, is_fresh in zip(tensors(out), tensors(func(*args, **kwargs)), fresh):
                if is_fresh:
                    kept.copy_(new)


def view_of(value: Any) -> Any:
    """A tensor with the same memory, whose dims stay as they are."""
    return torch.ops.aten.alias.default(value) if isinstance(value, Tensor) else value


class Recorded(Graphs):
    """Graphs on the CPU."""

    def capture(self, kind: Hashable, inputs: Any) -> tuple[Callable[[], None], Any, Any]:
        recorder, done = Recorder(), False
        kept = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)
        with recorder:
            outputs = self.function(kind, kept)

        def replay() -> None:
            nonlocal done
            if done:  # the recording has run the step once
                recorder.replay()
            done = True

        return replay, kept, outputs


class Compared(Exception):
    """Ends a run when its steps were compared."""


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def no_gpu() -> Iterator[list[str]]:
    yield []


def state_after(self: Trainer, steps: Graphs | None) -> dict[str, Any]:
    inputs = self.examples.train.inputs_from(0, self.config.accumulation)
    for number in range(STEPS):
        kind = self.begin_step(number)
        self.train_step(kind, next(inputs)) if steps is None else steps(kind, next(inputs))
    return copy.deepcopy(self.state(STEPS, []))


def compare(trainer: Trainer, steps: Graphs) -> None:
    """Train twice from one state, as it is and by `steps`; raise Compared where all tensors are equal in the end."""
    trainer.begin(0, [])
    start = copy.deepcopy(trainer.state(0, []))
    eager = state_after(trainer, None)
    trainer.load(start)
    replayed = state_after(trainer, steps)
    assert steps.enabled
    assert steps.replays
    pairs = list(zip(tree_leaves(eager), tree_leaves(replayed), strict=True))
    assert len(pairs) > 20
    for one, other in pairs:
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    raise Compared


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Makes training compare its steps with replayed ones, as if this were a GPU, and end."""
    seen: list[Recorded] = []

    def fit(self: Trainer) -> None:
        seen.append(Recorded("training", self.train_step, self.drop_step))
        compare(self, seen[0])

    for module in (step, optimizers):
        monkeypatch.setattr(module, "captures_on", lambda device: True)
    monkeypatch.setattr(graphs, "noticing_waits", no_gpu)
    monkeypatch.setattr(Trainer, "fit", fit)
    return seen


@pytest.mark.parametrize("quantizer", choices("quantizer"))
def test_replayed_steps_of_a_quantizer_equal_those_that_run(
    quantizer: str, compared: list[Recorded], tmp_path: Path
) -> None:
    """With accumulation, an average of the weights, clipping, and a learning rate that changes."""
    more = [*CONV, f"quantizer={quantizer}", *ALL, f"trainer.steps={STEPS}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(Compared):
        train_inside(*SMALL, *more, "stages=[autoencoder]")


@pytest.mark.parametrize("revival", ["random", "lru", "farthest", "anchor"])
def test_replayed_steps_know_when_a_revival_is_due(revival: str, compared: list[Recorded], tmp_path: Path) -> None:
    every = [] if revival == "anchor" else ["quantizer.revival.every_steps=2"]
    more = [*SMALL_CODEBOOK, f"quantizer/revival={revival}", *every, "quantizer.revival.until=0.7"]
    with pytest.raises(Compared):
        train_inside(*TINY, *more, f"trainer.steps={STEPS}", f"run_dir={tmp_path / 'run'}")
    assert len(compared[0].replays) >= 2


@pytest.mark.parametrize(
    "prior", [*choices("prior"), "transformer prior/head=factors prior.head.largest=4", "maskgit prior/head=bits"]
)
def test_replayed_steps_of_a_prior_equal_those_that_run(
    prior: str, compared: list[Recorded], finished_run: Path, scales_run: Path, tmp_path: Path
) -> None:
    tokenizer = scales_run if prior == "next_scale" else finished_run
    more = [*f"prior={prior}".split(), *PRIOR, f"prior.trainer.steps={STEPS}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(Compared):
        train_inside("logger=off", "debug=fast", f"tokenizer={tokenizer}", *more)


@pytest.mark.parametrize(
    "own",
    [
        "data.flip=true",
        "loss=logistic",
        "optimizer=muon",
        "trainer.precision=fp16",
        *[
            pytest.param(f"+loss/term@loss.terms.more={name}", marks=needs_lite if name == "perceptual" else ())
            for name in choices("loss/term")
        ],
    ],
)
def test_replayed_steps_with_other_parts_equal_those_that_run(
    own: str, compared: list[Recorded], tmp_path: Path
) -> None:
    with pytest.raises(Compared):
        train_inside(*SMALL, *CONV, *SMALL_CODEBOOK, own, f"trainer.steps={STEPS}", f"run_dir={tmp_path / 'run'}")


def test_replayed_steps_with_an_adversary_equal_those_that_run(compared: list[Recorded], tmp_path: Path) -> None:
    """Of three kinds: before it begins, and with and without a term that is due every second step."""
    own = ["adversary=patch", "adversary.network.widths=[8,8]", "adversary.start_step=3", "trainer.accumulation=2"]
    own += ["+adversary/term@adversary.terms.r1=r1", "adversary.terms.r1.every=2"]
    own += ["+adversary/term@adversary.terms.lecam=lecam", "adversary.augment=[color,translation,cutout]"]
    more = [*CONV, *SMALL_CODEBOOK, *own, f"trainer.steps={STEPS}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(Compared):
        train_inside(*SMALL, *more)
    assert len(compared[0].replays) == 3


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[Prior], Recorded]:
    """Makes priors draw by recordings, as if this were a GPU; the function turns it on, for one prior."""

    def turn_on(prior: Prior) -> Recorded:
        recorded = Recorded("sampling", lambda kind, inputs: kind[0](prior, kind[1], inputs))
        monkeypatch.setattr(graphs, "noticing_waits", no_gpu)
        for module in (base, autoregressive, maskgit):
            monkeypatch.setattr(module, "captures_on", lambda device: True)
        for module in (base, autoregressive):
            monkeypatch.setattr(module, "graphs_of", lambda prior: recorded)
        return recorded

    return turn_on


IN_DIGITS = [f"{name} prior/head=factors prior.head.largest=32" for name in ("pixelcnn", "transformer")]
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # of one way
    ({}, {"temperature": 0.3}),
    ({"guidance": 2.0, "temperature": 0.5}, {"guidance": 0.5}),
    ({"top_k": 3, "top_p": 0.9}, {"top_k": 2}),
]


@pytest.mark.parametrize("name", [*choices("prior"), *IN_DIGITS, "maskgit prior/head=bits prior.head.groups=3"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("with_known", [False, True])
def test_replayed_draws_equal_those_that_run_whatever_the_numbers_were_that_were_recorded(
    name: str, settings: tuple[dict[str, Any], ...], with_known: bool, draws: Callable[[Prior], Recorded]
) -> None:
    name, *head = name.split()
    prior, count = prior_of(name, (3, 2), ["prior.network.width=8", *head]), 16
    known = None
    if with_known:
        shapes = [(4 * count, *shape) for shape in prior.code_shapes]
        known = Known([torch.randint(5, shape) for shape in shapes], [torch.rand(shape) < 0.5 for shape in shapes])
    recorded, other = (Sampling(**one, chunk=count) for one in settings)
    seeds, labels = list(range(4 * count)), torch.arange(4 * count) % 3
    eager = [prior.sample(seeds, labels, sampling, known)[-1] for sampling in (recorded, other)]
    assert not torch.equal(*eager)
    drawn = draws(prior)
    replayed = [prior.sample(seeds, labels, sampling, known)[-1] for sampling in (recorded, other)]
    assert all(torch.equal(one, again) for one, again in zip(eager, replayed))
    assert (drawn.enabled, len(drawn.replays)) == (True, 1)


@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize(
    "name", [*(name for name in choices("prior") if name not in ("maskgit", "next_scale", "delayed")), *IN_DIGITS]
)
def test_replayed_guesses_of_jacobi_end_with_the_codes_of_those_that_run(
    name: str, with_known: bool, draws: Callable[[Prior], Recorded]
) -> None:
    """Several guesses are one graph there, so that some are made when all codes are final."""
    name, *head = name.split()
    prior, count = prior_of(name, (4, 3), ["prior.network.width=8", *head]), 8
    known = Known([torch.randint(5, (4 * count, 4, 3))], [torch.rand(4 * count, 4, 3) < 0.5]) if with_known else None
    seeds, labels = list(range(4 * count)), torch.arange(4 * count) % 3
    ways = [Sampling(method="jacobi", temperature=temperature, chunk=count) for temperature in (1.0, 0.5)]
    eager = [prior.sample(seeds, labels, way, known)[0] for way in ways]
    drawn, done = draws(prior), []
    for way, expected in zip(ways, eager):
        codes = prior.sample(
            seeds, labels, way, known, lambda codes, masks: done.append(float(masks[0].double().mean()))
        )
        assert torch.equal(codes[0], expected)
    assert done[-1] == 1
    assert (drawn.enabled, len(drawn.replays)) == (True, 1)


def test_the_graphs_of_a_prior_are_made_anew_when_its_weights_have_moved() -> None:
    prior = prior_of("pixelcnn", (2, 2), ["prior.network.width=8"])
    first = graphs_of(prior)
    assert graphs_of(prior) is first
    weight = next(prior.parameters())
    weight.data = weight.data.clone()
    assert graphs_of(prior) is not first


# ---- numbers of the GPU's generator


def test_philox_gives_its_published_numbers() -> None:
    """Random123's known answer for a counter and a key of zeros."""
    zeros = philox(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert [f"{int(word):08x}" for word in zeros] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_uniform_numbers_depend_on_their_own_seed_alone_and_fill_the_interval() -> None:
    seeds = torch.tensor([0, 1, 2**40, 2**63 - 1])
    noise = philox_uniform(seeds, 10_001)
    assert noise.shape == (4, 10_001)
    assert torch.equal(philox_uniform(seeds[2:3], 77)[0], noise[2, :77])
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.histc(noise.flatten(), 20, 0, 1)
    assert ((counts - 2000).abs() < 200).all()  # 4.6 standard deviations
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.04


# ---- what is recorded, and when


class Counting(Graphs):
    """Counts what it runs, records and replays."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(
            "all", lambda kind, inputs: self.ran.append(float(inputs[0])), lambda: self.ran.append("clean")
        )
        self.ran: list[Any] = []
        self.fails = fails

    def capture(self, kind: Hashable, inputs: Any) -> tuple[Callable[[], None], Any, Any]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        kept = [inputs[0].clone(), None]
        return lambda: self.ran.append(f"replayed {float(kept[0]):g}"), kept, None

    def after(self, *kinds: Hashable) -> list[Any]:
        for number, kind in enumerate(kinds):
            self(kind, [torch.tensor(float(number)), None])
        return self.ran


def test_the_third_step_of_a_kind_is_the_first_that_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "noticing_waits", no_gpu)
    assert Counting().after(*"aabababb") == [0, 1, 2, "replayed 3", 4, "replayed 5", "replayed 6", "replayed 7"]


def test_a_step_in_which_the_host_waits_is_never_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "noticing_waits", lambda: contextlib.nullcontext(["mine.py:7"]))
    assert Counting().after(*"aaaa") == [0, 1, 2, 3]
    assert [r.message for r in caplog.records] == [
        "all goes on without CUDA graphs, and slower, because the host waits for the GPU at mine.py:7"
    ]


def test_a_recording_that_fails_costs_a_warning_and_the_step_is_run_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "noticing_waits", no_gpu)
    assert Counting(fails=True).after(*"aaaa") == [0, 1, "clean", 2, 3]
    assert "because operation not permitted when stream is capturing" in caplog.text
    assert len(caplog.records) == 1


def test_kinds_without_end_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "noticing_waits", no_gpu)
    counting = Counting()
    counting.after(*[kind for kind in range(MAX_KINDS + 2) for _ in range(4)])
    assert len(counting.replays) == MAX_KINDS
    assert counting.ran[-4:] == [counting.ran[-4] + i for i in range(4)]


def test_inputs_of_another_shape_are_replayed_by_a_graph_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the batches of data.buckets."""
    monkeypatch.setattr(graphs, "noticing_waits", no_gpu)
    recorded = Recorded("all", lambda kind, inputs: inputs[0] + 1)
    for number, length in enumerate([2, 3, 2, 2, 3, 3, 2, 3, 1]):
        assert recorded(None, [torch.full((length,), float(number))]).tolist() == [number + 1] * length
    assert len(recorded.replays) == 2
