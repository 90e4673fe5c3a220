"""Laws of the programs under torchrun: their output, which rank prints, and how they end when one rank fails."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_CODEBOOK, TINY, call_inside
from forked import Forks, as_ranks, codes_of
from two_processes import free_ports, under_torchrun

pytestmark = pytest.mark.cpu


def programs(base: Path, ports: list[int]) -> dict[str, str]:
    """Runs each program once, as torchrun starts it -> the text that this process printed."""
    printed = {}
    for name, port in zip(PROGRAMS, ports):
        os.environ["MASTER_PORT"] = str(port)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            call(name, base)
        printed[name] = out.getvalue() + err.getvalue()
    return printed


PROGRAMS = {
    "scripts.evaluate": ["split=train", "batch_size=40"],  # 96 images: three batches, the last of 16
    "scripts.encode": ["splits=[test]"],  # 20 images: rank 1 has none
    "sample": ["n=3"],
}


def call(name: str, base: Path) -> None:
    out = {"scripts.evaluate": [f"out={base / 'figures.json'}"], "sample": [f"out={base / 'samples'}"]}.get(name, [])
    call_inside(name, f"run_dir={base / 'run'}", *PROGRAMS[name], *out)


@pytest.mark.slow
def test_programs_give_under_torchrun_what_they_give_without_it_and_rank_0_alone_speaks(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        shutil.copytree(finished_run, tmp_path / name / "run")
    printed = under_torchrun(tmp_path, programs, tmp_path / "two", free_ports(len(PROGRAMS)))
    for name in PROGRAMS:
        capsys.readouterr()
        call(name, tmp_path / "one")
        assert printed[0][name] == capsys.readouterr().out.replace("/one/", "/two/")
        assert printed[1][name] == ""
    one, two = (json.loads((tmp_path / name / "figures.json").read_text()) for name in ("one", "two"))
    assert one["figures"].keys() == two["figures"].keys()
    for name, figure in one["figures"].items():
        assert two["figures"][name]["value"] == pytest.approx(figure["value"], rel=1e-12), name
    for file in ("codes_0.npy", "labels.npy", "header.json"):
        assert len({(tmp_path / name / "run/codes/test" / file).read_bytes() for name in ("one", "two")}) == 1
    first, second = (np.load(tmp_path / name / "samples/samples.npz") for name in ("one", "two"))
    assert all(np.array_equal(first[key], second[key]) for key in ("items", "codes_0", "labels"))


# ---- one rank fails alone

FAULTY = """
import errno, os
import train
from vqvae.storage import checkpoint
from vqvae.stages.autoencoder import AutoencoderStage

def fails(*arguments, **settings):
    raise OSError({number}, "trouble")

if rank == {rank}:
    {place} = fails
train.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "place", "number"),
    [
        (1, "AutoencoderStage.evaluate", errno.EIO),  # the other waits for its sums
        (0, "checkpoint.save_step", errno.ENOSPC),  # the other is a step ahead
        (0, "checkpoint.save", errno.ENOSPC),  # the other waits at the end of the stage
    ],
)
def test_a_rank_that_fails_alone_ends_all_and_says_why_once(
    rank: int, place: str, number: int, forks: Forks, tmp_path: Path
) -> None:
    small_batches = "trainer.eval_batch_size=8"  # so that both ranks have some
    arguments = [*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", small_batches, f"run_dir={tmp_path / 'run'}"]
    code = FAULTY.format(rank=rank, place=place, number=number)
    process = forks.start(*arguments, code=as_ranks(2, free_ports(1)[0], code))
    process.wait(90)
    assert 0 not in codes_of(process)
    assert process.err.read_text().count(f"error: [Errno {number}] trouble") == 1
    assert not list((tmp_path / "run" / "autoencoder").glob("weights-*.pt"))
