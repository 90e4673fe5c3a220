"""Laws of heads: what they cost, that they are distributions, and that large ones are the same as small ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_priors import MAPS, prior_of, random_codes

from vqvae.config.compose import choices
from vqvae.priors import heads
from vqvae.priors.heads import Head


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
