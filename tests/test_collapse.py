"""When codes are called collapsed, and what is advised then."""

from __future__ import annotations

from typing import Any

import pytest

from vqvae.config.build import build
from vqvae.config.compose import compose, resolve
from vqvae.model import VQVAE
from vqvae.stages.collapse import collapse_warnings


def model_of(*overrides: str) -> VQVAE:
    model: VQVAE = build(resolve(compose("train", ["model.encoders.0.width=8", *overrides])).model, "model")
    return model


def said(model: VQVAE, perplexity: float, vectors: int, done: int = 1000) -> dict[str, str]:
    metrics: dict[str, Any] = {"codebook/perplexity_0": perplexity, "codebook/dead_codes_0": 1}
    return collapse_warnings(model, metrics, [vectors], done, 1500)


def test_few_vectors_are_no_collapse() -> None:
    model = model_of("quantizer.codebook.size=65536", "quantizer.codebook.dim=8")
    assert said(model, perplexity=366, vectors=512) == {}
    assert said(model, perplexity=366, vectors=100_000).keys() == {"codebook 0 has collapsed"}
    assert said(model, perplexity=20, vectors=512).keys() == {"codebook 0 has collapsed"}


@pytest.mark.parametrize(("done", "warns"), [(100, False), (300, False), (301, True), (1500, True)])
def test_dead_codes_are_first_given_their_chance(done: int, warns: bool) -> None:
    assert bool(said(model_of(), perplexity=3, vectors=10_000, done=done)) is warns
    assert bool(said(model_of("quantizer/revival=none"), perplexity=3, vectors=10_000, done=done)) is (done > 100)


ADVICE = {  # overrides: what is said, and what is not
    (): (["codebook.dim=8", "lower learning rate"], ["revival=random", "init=data"]),
    ("quantizer/revival=none", "quantizer/init=normal"): (["revival=random", "init=data"], []),
    ("quantizer.codebook.dim=8",): (["a smaller quantizer.codebook.size"], ["dim=8", "revival"]),
    ("quantizer=fsq",): (["a lower learning rate, or fewer codes"], ["revival", "codebook"]),
    ("quantizer=simvq",): (["a lower learning rate"], []),
}


@pytest.mark.parametrize("overrides", ADVICE, ids=str)
def test_only_what_is_not_there_yet_is_advised(overrides: tuple[str, ...]) -> None:
    (text,) = said(model_of(*overrides), perplexity=1, vectors=10_000).values()
    advised, not_advised = ADVICE[overrides]
    text = text.partition("Try ")[2]
    assert all(one in text for one in advised), text
    assert not any(one in text for one in not_advised), text
