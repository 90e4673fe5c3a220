"""Any command runs or says in one sentence why not: 500 random ones, the same in each run of this test."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from forked import Forks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vqvae.config.compose import check_train, choices, compose, resolve
from vqvae.config.messages import flatten as flat_keys
from vqvae.config.messages import user_message
from vqvae.config.program import one_line
from vqvae.run.checks import check_run
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.run.train import train_autoencoder, train_prior
from vqvae.training.stop import StopRequest

SECONDS = 10  # of CPU time: those of the clock depend on what else the machine does
MEMORY = 2 * 2**30  # the most that a command may allocate: networks that need more must end in a sentence, too
SMALL = {
    "model=conv": [
        "model.encoders.0.widths=[8,8]",
        "model.encoders.0.residual_width=4",
        "model.encoders.0.residual_blocks=1",
    ],
    "model=conv_2level": [
        "model.encoders.0.widths=[8,8]",
        "model.encoders.1.widths=[8]",
        *(f"model.encoders.{level}.residual_{key}" for level in (0, 1) for key in ("width=4", "blocks=1")),
    ],
    "model=vit": ["model.encoders.0.transformer.width=16", "model.encoders.0.transformer.heads=2"],
    "model=tokens": ["model.encoders.0.transformer.width=16", "model.encoders.0.transformer.heads=2"],
    "model=patch": [f"model.{coders}.0.{key}=8" for coders in ("encoders", "decoders") for key in ("width", "hidden")],
    "model=resnet": ["model.encoders.0.widths=[8,8,8]"],
    "prior=pixelcnn": ["prior.network.width=8", "prior.network.layers=2"],
    "prior=pixelsnail": ["prior.network.width=8", "prior.network.layers=1", "prior.network.blocks=1"],
    "prior=wavenet": ["prior.network.width=8", "prior.network.layers=2"],
    "prior=transformer": ["prior.network.width=8", "prior.network.layers=1"],
    "prior=next_scale": ["prior.network.width=8", "prior.network.layers=1"],
    "prior=maskgit": ["prior.network.width=8", "prior.network.layers=1", "prior.network.steps=2"],
    "data=shapes": ["data.train_count=24", "data.val_count=9", "data.image_size=16"],
    "data=tones": ["data.train_count=24", "data.val_count=9", "data.length=256"],
}
DEFAULTS = ("data=shapes", "model=conv", "prior=pixelcnn")
GROUPS = ["data", "model", "quantizer", "loss", "optimizer", "schedule", "trainer", "prior", "logger"]
DRAWN = ["shapes", "tones"]  # data sets that need no files
ODD = re.split(
    r"\s+",
    """null true false abc ü '日本' "" '' "it's" 'unclosed a,b a=b / .. ~nobody ???
[] [1,2] [nan] [-1,0] [null] [abc] [[1]] {} {a:1} {_target_:os.system} ${seed} ${nope} ${oc.env:HOME}
0 1 2 3 5 7 -1 0.5 1.5 -0.0 nan inf -inf 1e400 1e-400 1e-9 1e9 0x10 1_000""",
)
HUGE = ["999999999999", "9223372036854775807", "-9223372036854775808", "99999999999999999999"]


@functools.cache
def keys_of(choice: str) -> list[str]:
    """The keys of a group's choice, dotted."""
    group = choice.split("=")[0]
    return [f"{group}.{key}" for key in flat_keys(OmegaConf.to_container(compose("train", [choice])[group]))]


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """Choices of some groups, at a small size, then up to three mistakes, or a few valid overrides."""
    varied = draw(st.lists(st.sampled_from(GROUPS), max_size=3, unique=True))
    chosen = [f"{g}={draw(st.sampled_from(DRAWN if g == 'data' else choices(g)))}" for g in varied]
    chosen += [one for one in DEFAULTS if one.split("=")[0] not in varied]
    small = [override for one in chosen for override in SMALL.get(one, [])]
    keys = ["seed", "run_dir", "stages", "tokenizer", "init_from", "allow_targets"]
    for one in [
        *chosen,
        *(f"{g}={d}" for g, d in (("quantizer", "ema"), ("trainer", "autoencoder")) if g not in varied),
    ]:
        keys += keys_of(one)
    typed = []
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(keys))
        value = draw(st.sampled_from(ODD + HUGE))
        kind = draw(st.sampled_from(["key"] * 7 + ["misspelled", "added", "deleted", "group", "free"]))
        if kind == "misspelled":
            key = key[:-1] + draw(st.sampled_from(["x", "", "ß", key[-1] * 2]))
        if kind == "free":
            value = draw(st.text(max_size=8).filter(lambda text: "\0" not in text))
        if kind == "group":
            typed.append(f"{key.split('.')[0]}={value}")
        else:
            typed.append(f"~{key}" if kind == "deleted" else f"{'+' * (kind == 'added')}{key}={value}")
    return ["logger=off", "debug=fast", *chosen, *small, *typed]


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def two_steps(overrides: list[str], folder: Path) -> None:
    """train.py without its logging: checks, then two steps of each stage that is asked for."""
    cfg = compose("train", overrides)
    check_train(resolve(cfg))
    cfg = resolve(cfg)
    if cfg.run_dir is None or not str(cfg.run_dir).startswith(str(folder)):
        cfg.run_dir = str(folder / "run")  # a name like any other, but one that leaves no files
    run = Run(RunFolder.prepare(cfg))
    check_run(run)
    run.folder.path.mkdir(parents=True)
    for node in (cfg, cfg.prior):
        node.trainer.steps, node.trainer.epochs = 2, None
    if "autoencoder" in cfg.stages:
        train_autoencoder(run, StopRequest())
    if "prior" in cfg.stages:
        train_prior(run, run.tokenizer(), StopRequest())


def cpu_seconds() -> float:
    """What this process and its ended children have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def fault(overrides: list[str]) -> str | None:
    """The traceback of a command that neither runs nor says what is wrong with it, or None."""
    folder = Path(tempfile.mkdtemp())
    started = cpu_seconds()
    try:
        with little_memory():
            two_steps(overrides, folder)
    except Exception as error:
        said = user_message(error, "train")
        if said is None:
            return f"{overrides}\n{traceback.format_exc()}"
        if not one_line(said) or len(said) > 2000 or "Traceback" in said:
            return f"{overrides}\nsays {said!r}"
    finally:
        shutil.rmtree(folder)
    seconds = cpu_seconds() - started
    return f"{overrides}\n{seconds:.0f} seconds" if seconds > SECONDS else None


@pytest.mark.slow
@pytest.mark.longest
@settings(max_examples=500, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(commands())
def test_a_random_command_runs_or_ends_in_one_sentence(overrides: list[str]) -> None:
    assert fault(overrides) is None


WHOLE = {
    "trainer.steps=${oc.env:HOME}": "is not an integer or null",
    "quantizer.codebook.size=9223372036854775807": "quantizer.codebook.size=9223372036854775807 must be at most 262144",
    "model.encoders.0.widths=[999999999,8]": "model.encoders.0: this does not fit in memory: 178.8 GiB were asked for at once",
    "logger.project='日本": "logger.project='日本 cannot be read as key=value",
    "trainer=[-1,0]": "cannot be used: a group takes the name of one choice",
    "~model": "is not a config key or group; did you mean",
    "+quantizer.codebook.sise=nan": "did you mean quantizer.codebook.size?",
    "optimizer.lr=1e400": "the loss was not finite in",
    "prior.network.layers=999999999999": "prior.network.layers=999999999999 must be at most 10000",
}


IN_FOLDER = """
import os, resource, train
os.chdir({folder!r})
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))  # the system ends who uses more
train.main()
"""


def run_whole(forks: Forks, overrides: list[str], folder: Path) -> tuple[int, str]:
    """train.py as a shell runs it in `folder`: exit code and stderr."""
    process = forks.start(*overrides, code=IN_FOLDER.format(folder=str(folder), memory=8 * 2**30, seconds=SECONDS))
    return process.wait(120), process.err.read_text()


def assert_one_sentence(code: int, error: str) -> None:
    assert code == 2, error or code
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert str(ROOT) not in error


@pytest.mark.slow
@pytest.mark.parametrize("override", WHOLE)
def test_what_is_wrong_with_a_whole_command_is_one_sentence(override: str, forks: Forks, tmp_path: Path) -> None:
    own = ["logger=off", "debug=fast", *DEFAULTS, *(o for one in DEFAULTS for o in SMALL[one]), "run_dir=run", override]
    code, error = run_whole(forks, own, tmp_path)
    assert_one_sentence(code, error)
    assert WHOLE[override] in error


@pytest.mark.slow
def test_random_whole_commands_run_or_end_in_one_sentence(forks: Forks, tmp_path: Path) -> None:
    outcomes = []

    @settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(commands())
    def try_one(overrides: list[str]) -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        code, error = run_whole(forks, [*overrides, "trainer.steps=2", "prior.trainer.steps=2"], folder)
        outcomes.append(code)
        if code:
            assert_one_sentence(code, error)

    try_one()
    assert {0, 2} <= set(outcomes)
