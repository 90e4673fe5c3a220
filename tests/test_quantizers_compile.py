"""Laws of quantizers under torch.compile: one graph, the same numbers, and no compiling once it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from quantizer_cases import (
    BATCH,
    PRESETS,
    Run,
    begin_run,
    latents,
    needs_compiler,
    own_rows,
    small_config,
    small_quantizer,
)
from two_processes import in_a_group

# Made of pieces that the other presets have too, or slow to compile: their turn comes among the slow tests.
REPEATS = ["cosine", "ema_l2", "frozen", "fvq", "kmeans_ema", "l1", "lfq", "linf"]
REPEATS += ["multiscale", "nsvq", "product", "residual_fsq", "sync", "vq"]
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in REPEATS else name for name in PRESETS]


def eager_and_compiled(name: str, backend: str, cfg: DictConfig | None = None) -> tuple[Run, Run]:
    """The same quantizer twice: as it is, and as one graph."""
    torch._dynamo.reset()
    quantizers = [small_quantizer(name, cfg) for _ in range(2)]
    for quantizer in quantizers:
        begin_run(quantizer, own_rows(3 * BATCH))
    forward = torch.compile(quantizers[1], fullgraph=True, backend=backend)
    return Run(quantizers[0]), Run(quantizers[1], forward)


def assert_same_training(eager: Run, compiled: Run, steps: int) -> None:
    rows = own_rows(BATCH)
    for step in range(steps):
        (counts, gradient), (compiled_counts, compiled_gradient) = eager.step(step, rows), compiled.step(step, rows)
        assert all(torch.equal(a, b) for a, b in zip(counts, compiled_counts)), step
        torch.testing.assert_close(compiled_gradient, gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(compiled.quantizer.state_dict(), eager.quantizer.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_one_graph_trains_as_eager_code_and_is_compiled_no_more_after_the_first_revival(name: str) -> None:
    eager, compiled = eager_and_compiled(name, "aot_eager")
    assert_same_training(eager, compiled, 6)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(6, 11):
            compiled.quantizer.begin_step(step, 100)
            for _ in range(4):  # micro-batches, of which the steps above had one each
                compiled.forward(latents(step).requires_grad_())
            compiled.quantizer.after_step(torch.tensor(True))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["ema", "rotation", "residual", "fsq"])
def test_generated_code_trains_as_eager_code(name: str) -> None:
    assert_same_training(*eager_and_compiled(name, "inductor"), 6)


def assert_all_train_as_eager_code(configs: dict[str, DictConfig]) -> None:
    for name, cfg in configs.items():
        assert_same_training(*eager_and_compiled(name, "aot_eager", cfg), 6)


@pytest.mark.slow
def test_one_graph_holds_the_collectives_of_two_processes(tmp_path: Path) -> None:
    configs = {name: small_config(name) for name in ["ema", "lfq", "ibq", "gumbel", "cvq"]}
    in_a_group(tmp_path, assert_all_train_as_eager_code, configs)
