"""Runs of the real program, small enough for seconds."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forks

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("WANDB_SILENT", "true")

TINY = [
    "logger=off",
    "debug=fast",
    "report=false",
    "data.train_count=96",
    "data.val_count=20",
    "model=conv",
    "model.encoders.0.widths=[8,8]",
    "model.encoders.0.residual_width=4",
    "model.encoders.0.residual_blocks=1",
    "quantizer.dim=8",
    "prior.network.width=8",
    "prior.network.layers=2",
]
SMALL_CODEBOOK = ["quantizer.codebook.size=16"]
SCALES = ["quantizer=multiscale", "quantizer.inner.codebook.size=16", "quantizer.shares=[0.25,0.5,1.0]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


def command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / program), *arguments]


def run(program: str, *arguments: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A program of the project as a user's shell runs it, but in this process: importing torch takes seconds."""
    out, err, code, before = io.StringIO(), io.StringIO(), 0, os.getcwd()
    os.chdir(cwd or before)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            call_inside(program.removesuffix(".py").replace("/", "."), *arguments)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    finally:
        os.chdir(before)
    done = subprocess.CompletedProcess([program, *arguments], code, out.getvalue(), err.getvalue())
    if check and code:
        raise AssertionError(f"{program} {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def train_inside(*overrides: str) -> None:
    """train.py in this process: without the seconds that importing torch takes."""
    call_inside("train", *overrides)


def call_inside(module: str, *overrides: str) -> None:
    import importlib

    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    before, environment = sys.argv, {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    sys.argv = [module, *overrides]
    try:
        importlib.import_module(module).main()
    finally:
        sys.argv = before
        for name, value in environment.items():  # set for the processes that a program starts
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def error_of(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """The message of train.py when it refuses to start."""
    with pytest.raises(SystemExit) as stopped:
        train_inside(*overrides)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def stop_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """Makes the next run receive a SIGTERM while it does `step` of `stage`."""
    from vqvae.training.trainer import Trainer

    original = Trainer.begin_step

    def begin_step(self: Trainer, at: int) -> object:
        if self.logger.stage == stage and at == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self, at)

    monkeypatch.setattr(Trainer, "begin_step", begin_step)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(run_dir: Path, stage: str) -> dict[str, torch.Tensor]:
    (file,) = (run_dir / stage).glob("weights-*.pt")
    networks = torch.load(file, weights_only=True)["networks"]
    return {f"{name}/{key}": value for name, state in networks.items() for key, value in state.items()}


def assert_same_result(a: Path, b: Path) -> None:
    """Both stages of two run folders ended with the same weights, codes and metrics, bit for bit."""
    for stage in ("autoencoder", "prior"):
        first, second = weights(a, stage), weights(b, stage)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert (a / stage / "metrics.jsonl").read_text() == (b / stage / "metrics.jsonl").read_text()
    stores = [{p.relative_to(one): p.read_bytes() for p in (one / "codes").rglob("*") if p.is_file()} for one in (a, b)]
    assert stores[0] == stores[1] != {}


@pytest.fixture(scope="module", autouse=True)
def without_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hides the GPU from modules that are marked with cpu, and from the processes that they start."""
    with pytest.MonkeyPatch.context() as patched:
        if request.node.get_closest_marker("cpu"):
            patched.setattr(torch.cuda, "is_available", lambda: False)
            patched.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="session", autouse=True)
def deterministic_gpu() -> None:
    """Sums on a GPU without atomic additions, whose order differs from run to run."""
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True


@pytest.fixture(scope="session", autouse=True)
def quick_programs() -> Iterator[None]:
    """Leaves out what takes half of a tiny run in this process and is the same in each of them."""
    from hydra._internal.hydra import Hydra

    from vqvae.export import write
    from vqvae.run import plots, report

    mode_of = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        """Hydra composes the whole config only to read hydra.mode, which no config of ours sets."""
        return mode_of(self, config_name, overrides) if any("hydra.mode" in one for one in overrides) else None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Hydra, "get_mode", get_mode)
        patched.setattr(report, "plot_curves", drawn_once(plots.plot_curves, kind_of_curves))
        patched.setattr(report, "plot_codes", drawn_once(plots.plot_codes, kind_of_codes))
        patched.setattr(write, "missing_packages", lambda: list(write.ONNX_PACKAGES))
        yield


def drawn_once(plot: Callable[..., None], kind_of: Callable[..., object]) -> Callable[..., None]:
    """`plot`, which draws the first of each kind, and writes its file again for the others of that kind."""
    from vqvae.storage.files import write_bytes

    files: dict[str, bytes] = {}

    def draw(*arguments: Any) -> None:
        *shown, path = arguments
        kind = repr(kind_of(*shown))
        if kind in files:
            write_bytes(path, files[kind])
        else:
            plot(*shown, path)
            files[kind] = path.read_bytes()

    return draw


def kind_of_curves(metrics: list[dict[str, Any]]) -> object:
    """{name: whether it has one point, several, or so many that they get no markers, and whether all are finite}."""
    values: dict[str, list[float]] = {}
    for line in metrics:
        for name, value in line.items():
            if not isinstance(value, dict):
                values.setdefault(name, []).append(value)
    return {name: (len(of) > 1, len(of) < 20, all(map(math.isfinite, of))) for name, of in sorted(values.items())}


def kind_of_codes(counts: list[torch.Tensor], histograms: dict[str, dict[str, list[float]]], passed: float) -> object:
    """The size of each codebook, whether any code was used, and the names and sizes of the histograms."""
    sizes = {name: len(bins["counts"]) for name, bins in histograms.items()}
    return [(len(uses), bool(uses.any())) for uses in counts], sizes, passed > 0


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts train.py in a second: see forked.py."""
    forks = Forks(tmp_path_factory.mktemp("forks"), ROOT)
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def scales_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both stages on code maps from coarse to fine, a whole scale at a time."""
    path = tmp_path_factory.mktemp("scales") / "run"
    train_inside(*TINY, *SCALES, "prior=next_scale", f"run_dir={path}")
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both stages."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train_inside(*TINY, *SMALL_CODEBOOK, f"run_dir={path}")
    return path
