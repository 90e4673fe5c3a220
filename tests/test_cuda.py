"""What only a GPU shows: real CUDA graphs against steps and draws that run, and the nearest-code kernel against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, train_inside
from test_graphs import ALL, CONV, PRIOR, SMALL, STEPS, Compared, compare
from torch import Tensor

from scripts.benchmarks.sampling import prior_of
from vqvae.config.compose import choices
from vqvae.devices.graphs import Graphs
from vqvae.priors.sampling import Known, Sampling
from vqvae.quantizers.nearest import nearest_code
from vqvae.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZES = [
    (65536, 1024, 64),
    (8192, 16384, 32),
    (8192, 16384, 64),
    (8192, 8192, 128),
    (8192, 8192, 256),
    (4096, 999, 200),
    (77, 5, 8),
]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes training compare captured steps with those that run, and end."""
    monkeypatch.setattr(Trainer, "fit", lambda self: compare(self, Graphs("training", self.train_step, self.drop_step)))


@pytest.mark.parametrize("quantizer", ["ema", "vq", "fsq", "residual", "gumbel", "cvq"])
def test_captured_steps_of_a_quantizer_equal_those_that_run(quantizer: str, compared: None, tmp_path: Path) -> None:
    more = [*CONV, f"quantizer={quantizer}", *ALL, f"trainer.steps={STEPS}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(Compared):
        train_inside(*SMALL, *more, "stages=[autoencoder]")


@pytest.mark.parametrize("prior", ["pixelcnn", "transformer"])
def test_captured_steps_of_a_prior_equal_those_that_run(
    prior: str, finished_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda self: compare(self, Graphs("training", self.train_step, self.drop_step)))
    more = [f"prior={prior}", *PRIOR, "prior.network.dropout=0.1", f"prior.trainer.steps={STEPS}"]
    with pytest.raises(Compared):
        train_inside("logger=off", "debug=fast", f"tokenizer={finished_run}", *more, f"run_dir={tmp_path / 'run'}")


@pytest.mark.parametrize("name", choices("prior"))
@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0, "top_k": 5}], ids=str)
def test_captured_draws_equal_those_that_run_and_depend_on_their_own_seed(name: str, settings: dict[str, Any]) -> None:
    prior = prior_of(name, (4, 3), []).cuda()
    size = prior.samples_at_a_time
    labels = (torch.arange(4 * size) % 10).cuda()
    codes = prior.sample(list(range(4 * size)), labels, Sampling(**settings))[-1]
    for start in (0, 3 * size):  # the first chunk was run, the last one replayed
        eager = prior.sample(
            list(range(start, start + size)),
            labels[start : start + size],
            Sampling(**settings),
            on_progress=lambda *_: None,
        )
        assert torch.equal(codes[start : start + size], eager[-1])
    few = prior.sample([3 * size + 5], labels[3 * size + 5 :][:1], Sampling(**settings))[-1]
    assert torch.equal(few[0], codes[3 * size + 5])


def test_captured_draws_keep_known_codes() -> None:
    prior = prior_of("pixelcnn", (4, 3), []).cuda()
    count = 4 * prior.samples_at_a_time
    known = Known([torch.randint(512, (count, 4, 3)).cuda()], [(torch.rand(count, 4, 3) < 0.5).cuda()])
    codes = prior.sample(list(range(count)), torch.full((count,), -1).cuda(), Sampling(), known)[0]
    assert torch.equal(codes[known.kept[0]], known.codes[0][known.kept[0]])


@pytest.mark.parametrize("trouble", ["float(x.sum())", "torch.cuda.synchronize()", "x[x > 0]"])
def test_what_cannot_be_captured_runs_as_it_is(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    """And draws the same numbers from the GPU's generator as before."""
    ran: list[Tensor] = []

    def step(kind: object, inputs: list[Tensor]) -> None:
        x = inputs[0] * 2
        eval(trouble, {"x": x, "torch": torch})
        ran.append(torch.rand(3, device="cuda") + x)

    def drop() -> None:
        torch.cuda.manual_seed(7)

    graphs = Graphs("all", step, drop)
    x = torch.ones(3, device="cuda")
    for _ in range(6):
        torch.cuda.manual_seed(7)
        graphs(None, [x])
    values = [value.cpu() for value in ran[:2] + ran[-3:]]
    assert all(torch.equal(value, values[0]) for value in values)
    assert not graphs.enabled
    assert len([r for r in caplog.records if "without CUDA graphs" in r.message]) == 1
    assert torch.zeros(1000, 1000, device="cuda").add(1).sum().item() == 1e6


def test_a_step_that_was_captured_draws_what_it_would_draw() -> None:
    seen = torch.zeros(8, 2, 4, device="cuda")
    place = torch.zeros(1, dtype=torch.int64, device="cuda")

    def step(kind: object, inputs: list[Tensor]) -> None:
        seen.index_copy_(0, place, torch.stack([torch.rand(4, device="cuda"), torch.randn(4, device="cuda")])[None])

    graphs = Graphs("all", step)
    for number in range(8):
        torch.manual_seed(number % 4)
        place.fill_(number)
        graphs(None, [place])
    assert torch.equal(seen[:4], seen[4:])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(("count", "size", "dim"), SIZES)
def test_the_kernel_finds_the_codes_that_float64_finds(count: int, size: int, dim: int) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(count, dim, device="cuda"), torch.randn(size, dim, device="cuda") + 1
    found = nearest_code(z, codes)
    for start in range(0, count, 4096):
        rows = slice(start, start + 4096)
        distance = torch.cdist(z[rows].double(), codes.double())  # (n, K)
        least, index = distance.min(1)
        own = distance.gather(1, found[rows, None])[:, 0]
        assert ((found[rows] == index) | (own <= least * (1 + 1e-6))).all()


def test_a_run_of_both_stages_is_captured_and_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_inside(*TINY, "trainer.steps=40", "prior.trainer.steps=40", f"run_dir={tmp_path / 'run'}")
    assert "without CUDA graphs" not in caplog.text
