"""Laws of disks that are full, files that are damaged and runs that are long."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    SMALL_CODEBOOK,
    TINY,
    assert_same_result,
    call_inside,
    command,
    error_of,
    train_inside,
)

from vqvae.data import arrays
from vqvae.data.code_store import CodeStore
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.storage import checkpoint
from vqvae.storage.files import WriteError, write_bytes
from vqvae.storage.forms import Keys
from vqvae.training.logger import read_lines

pytestmark = pytest.mark.cpu

RUN = [
    *TINY,
    *SMALL_CODEBOOK,
    "trainer.weight_average_decay=0.9",
    "quantizer.revival.every_steps=2",
    "quantizer/init=data",
    "trainer.batch_size=24",
]

# ---- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leaves `left` bytes free."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return ballast


def test_a_file_that_does_not_fit_on_the_disk_leaves_the_old_one_and_says_what_it_needs(small_disk: Path) -> None:
    write_bytes(small_disk / "file", b"old")
    fill(small_disk, 100_000)
    with pytest.raises(WriteError, match=r"cannot write .*file: No space left on device \(it needs 1\.0 MiB, .*free\)"):
        write_bytes(small_disk / "file", bytes(2**20))
    assert (small_disk / "file").read_bytes() == b"old"
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast", "file"]


def test_a_code_store_that_does_not_fit_on_the_disk_is_refused_before_it_is_mapped(small_disk: Path) -> None:
    """A memory map of a file without room would end the process by a signal."""
    header = {"code_shapes": [[64, 64]], "codebook_sizes": [512], "tokenizer": "t", "data": "d"}
    with pytest.raises(WriteError, match=r"codes_0\.npy: No space left on device \(it needs 7\.8 MiB"):
        CodeStore.write(small_disk / "codes" / "train", header, 1000, iter([]))
    with pytest.raises(ValueError, match="holds no code store"):
        CodeStore(small_disk / "codes" / "train")


def test_disk_space_is_allocated_when_an_array_is_created(small_disk: Path) -> None:
    free = shutil.disk_usage(small_disk).free
    array = arrays.create(small_disk / "array.npy", np.dtype(np.uint8), (2**20,))
    assert shutil.disk_usage(small_disk).free <= free - 2**20
    assert not array.any()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that always had room."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train_inside(*RUN, f"run_dir={run_dir}")
    return run_dir


@pytest.mark.parametrize("moment", ["autoencoder", "codes", "prior", "images"])
def test_a_full_disk_ends_a_run_in_one_line_and_the_same_command_continues_when_there_is_room(
    moment: str, whole: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up while the run is at work; bit-identical in the end."""
    import vqvae.run.encoding
    import vqvae.run.report
    from vqvae.training.trainer import Trainer

    ballast: list[Path] = []

    def filling(place: object, name: str, when: Callable[..., bool]) -> None:
        original = getattr(place, name)

        def fills(*args: object, **kwargs: object) -> object:
            if not ballast and when(*args):
                ballast.append(fill(small_disk, 2_000))
            return original(*args, **kwargs)

        monkeypatch.setattr(place, name, fills)

    if moment in ("autoencoder", "prior"):
        filling(Trainer, "begin_step", lambda self, at: self.logger.stage == moment and at == 2)
    else:
        place, name = {"codes": (CodeStore, "write"), "images": (vqvae.run.report, "plot_curves")}[moment]
        filling(place, name, lambda *_: True)
    message = error_of(capsys, *RUN, f"run_dir={small_disk / 'run'}")
    assert f"error: cannot write {small_disk / 'run'}" in message
    assert re.search(r"No space left on device \(it needs [\d.]+ MiB, [\d.]+ MiB are free\)", message)
    assert message.count("\n") == 1
    ballast[0].unlink()
    train_inside(*RUN, f"run_dir={small_disk / 'run'}")
    assert_same_result(whole, small_disk / "run")
    assert (small_disk / "run" / "samples.png").is_file()


def test_a_run_folder_that_cannot_be_written_is_one_clear_line(
    finished_run: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, small_disk / "run", ignore=shutil.ignore_patterns("checkpoints"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    message = error_of(capsys, *TINY, *SMALL_CODEBOOK, f"run_dir={small_disk / 'run'}")
    assert "Read-only file system" in message
    with pytest.raises(SystemExit):
        call_inside("sample", f"run_dir={small_disk / 'run'}", "n=1")
    message = capsys.readouterr().err
    assert f"error: cannot write {small_disk / 'run'}" in message
    call_inside("sample", f"run_dir={small_disk / 'run'}", "n=1", f"out={small_disk.parent / 'out'}")


# ---- damage


def damages(data: bytes, count: int) -> Iterator[bytes]:
    """Cut off at any byte, and with any byte changed."""
    choose = random.Random(0)
    for place in (0, 1, len(data) - 1, *(choose.randrange(len(data)) for _ in range(count))):
        yield data[:place]
        yield data[:place] + bytes([data[place] ^ (1 << choose.randrange(8))]) + data[place + 1 :]


def test_a_damaged_file_of_weights_is_refused_wherever_the_damage_is(finished_run: Path, tmp_path: Path) -> None:
    (file,) = (finished_run / "prior").glob("weights-*.pt")
    for data in damages(file.read_bytes(), 150):
        (tmp_path / file.name).write_bytes(data)
        with pytest.raises(ValueError, match="is damaged"):
            checkpoint.load(tmp_path / file.name)


@pytest.mark.slow
def test_damage_anywhere_in_a_run_folder_is_one_sentence_or_skipped(finished_run: Path, tmp_path: Path) -> None:
    """Every file, cut off and with bits flipped: continuing and sampling work as before, or end in one line."""
    from vqvae.config.messages import user_message

    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in (".png", ".log")]
    assert len(files) > 12
    for path in files:
        whole = path.read_bytes()
        for data in damages(whole, 3):
            path.write_bytes(data)
            for use in (continue_it, draw_from_it):
                try:
                    use(folder)
                except Exception as error:  # a user would see a traceback of any other exception
                    if user_message(error, "train") is None:
                        raise
        path.write_bytes(whole)


def continue_it(folder: Path) -> None:
    found = RunFolder.load(folder, [])
    for stage in ("autoencoder", "prior"):
        read_lines(found.stage(stage) / "metrics.jsonl")
        checkpoint.load_newest(found.stage(stage) / "checkpoints", Keys({"step": int}, more=True))


def draw_from_it(folder: Path) -> None:
    used = Run(RunFolder.load(folder, []))
    tokenizer = used.tokenizer()
    used.code_store(tokenizer, "val")
    used.prior(tokenizer.model).sample([0], torch.zeros(1, dtype=torch.int64), used.sampling())


def test_a_damaged_code_store_is_refused_wherever_the_damage_is(finished_run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished_run / "codes" / "val", store)
    for name in ("codes_0.npy", "labels.npy"):
        whole = (store / name).read_bytes()
        for data in damages(whole, 100):
            (store / name).write_bytes(data)
            with pytest.raises(ValueError, match=str(store)):
                CodeStore(store)
        (store / name).write_bytes(whole)
    header = json.loads((store / "header.json").read_text())
    (store / "header.json").write_text(json.dumps({**header, "count": header["count"] + 1}))
    with pytest.raises(ValueError, match="header says"):
        CodeStore(store)


# ---- long runs


@pytest.mark.slow
@pytest.mark.longest
def test_two_thousand_steps_of_each_stage_do_not_grow_memory(tmp_path: Path) -> None:
    """Memory grows by less than 2 % after the first 200 steps, with logging on."""
    code = (
        "import vqvae.training.trainer as t\n"
        "original, sizes = t.Trainer.log, {}\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1])\n"
        "def log(self, step, *rest):\n"
        "    original(self, step, *rest)\n"
        "    sizes.setdefault(self.logger.stage, {})[step] = resident()\n"
        "t.Trainer.log = log\n"
        "import train\ntrain.main()\n"
        "for stage, of in sizes.items():\n"
        "    print('GROWTH', stage, max(v for s, v in of.items() if s > 1800) / of[200])\n"
    )
    long = ["trainer.steps=2000", "prior.trainer.steps=2000", "trainer.log_every_steps=10", "logger=wandb"]
    quiet = ["trainer.checkpoint_every_steps=500", "prior.trainer.checkpoint_every_steps=500", "logger.mode=offline"]
    every = ["trainer.eval_every_steps=100", "prior.trainer.eval_every_steps=100", "prior.trainer.log_every_steps=10"]
    own = [*(a for a in RUN if not a.startswith("logger")), "data.image_size=8"]
    done = subprocess.run(
        [command("train.py")[0], "-c", code, *own, *long, *quiet, *every, f"run_dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
        cwd=Path(command("train.py")[1]).parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    growth = {line.split()[1]: float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("GROWTH")}
    assert set(growth) == {"autoencoder", "prior"}
    assert max(growth.values()) < 1.02, growth


def test_an_error_of_the_operating_system_is_reported_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match=r"cannot write .*: Not a directory") as refused:
        write_bytes(tmp_path / "file" / "below" / "it", b"x")
    assert refused.value.errno == errno.ENOTDIR
    assert os.listdir(tmp_path) == ["file"]
