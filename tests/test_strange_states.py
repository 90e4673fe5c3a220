"""Laws of weights and checkpoints with the right checksum and wrong insides: one sentence, or stepped over, never used."""

from __future__ import annotations

import copy
import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import error_of
from torch import nn

from vqvae.config.sweep import read_jobs
from vqvae.errors import UserError
from vqvae.run.folder import RunFolder
from vqvae.run.plots import plot_codes, plot_curves
from vqvae.run.report import stage_figures
from vqvae.run.run import Run
from vqvae.storage import checkpoint
from vqvae.storage.files import write_bytes
from vqvae.storage.forms import Dense, Each, Keys, form_of, mistake, size_of
from vqvae.training.checkpoint_form import moments_form
from vqvae.training.logger import read_lines
from vqvae.training.metric_window import MetricWindow
from vqvae.training.optimizers import Muon, load_moments, parameter_groups

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": partial(torch.optim.Adam, lr=0.1, fused=True),
    "amsgrad": partial(torch.optim.AdamW, lr=0.1, amsgrad=True, fused=True),
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.5),
    "adafactor": torch.optim.Adafactor,
    "muon": partial(Muon, lr=0.1, betas=(0.9, 0.99), momentum=0.9, weight_decay=0.1),
}


def trained(new: Callable[..., Any]) -> tuple[nn.Module, Any]:
    """A small network and its optimizer after two steps."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[1].weight.hidden_matrix = True  # type: ignore[assignment]
    optimizer = new(parameter_groups(network))
    for _ in range(2):
        network(torch.ones(5, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network, optimizer


def moments_in(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The moments of every parameter, wherever an optimizer's state has them."""
    parts = [state] if "state" in state else state.values()
    return [moments for part in parts for moments in part["state"].values()]


def largest(moments: dict[str, Any]) -> str:
    return max((key for key in moments if key != "step"), key=lambda key: moments[key].numel())


def replace(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def spoil(state: dict[str, Any]) -> None:
        moments = moments_in(state)[0]
        moments[largest(moments)] = change(moments[largest(moments)])

    return spoil


SPOILT_MOMENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "smaller": replace(lambda m: torch.ones(1)),
    "larger": replace(lambda m: torch.ones(*m.shape, 9)),
    "of another shape": replace(lambda m: m[None].clone()),
    "one value for all": replace(lambda m: torch.ones(1).expand(m.shape)),
    "of another type": replace(lambda m: m.double()),
    "integers": replace(lambda m: m.long()),
    "sparse": replace(lambda m: m.to_sparse()),
    "without values": replace(lambda m: m.to("meta")),
    "NaN": replace(lambda m: torch.full_like(m, torch.nan)),
    "a text": replace(lambda m: "x"),
    "nothing": replace(lambda m: None),
    "missing": lambda state: moments_in(state)[0].pop(largest(moments_in(state)[0])),
    "one too many": lambda state: moments_in(state)[0].update(more=torch.ones(1)),
    "no moments": lambda state: moments_in(state)[0].clear(),
    "of another parameter": lambda state: (state if "state" in state else state["adamw"])["state"].update(
        {99: moments_in(state)[0]}
    ),
    "no groups": lambda state: (state if "state" in state else state["adamw"]).update(param_groups=[]),
    "other groups": lambda state: (state if "state" in state else state["adamw"])["param_groups"][0].update(params=[7]),
    "no state": lambda state: state.clear(),
}


@pytest.mark.parametrize("spoilt", SPOILT_MOMENTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_that_are_not_those_of_the_optimizer_and_its_weights_are_found(name: str, spoilt: str) -> None:
    _, optimizer = trained(OPTIMIZERS[name])
    form, state = moments_form(optimizer, OPTIMIZERS[name]), copy.deepcopy(optimizer.state_dict())
    assert mistake(state, form) is None
    SPOILT_MOMENTS[spoilt](state)
    assert mistake(state, form)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_with_the_moments_of_a_checkpoint_and_its_own_settings(name: str) -> None:
    network, optimizer = trained(OPTIMIZERS[name])
    state = copy.deepcopy(optimizer.state_dict())
    for part in [state] if "state" in state else state.values():
        part["param_groups"][0].update(fused=False, lr=1e9, maximize=True)
    other = copy.deepcopy(network)
    other[1].weight.hidden_matrix = True  # type: ignore[index]
    again = OPTIMIZERS[name](parameter_groups(other))
    load_moments(again, state)
    for one, its in ((network, optimizer), (other, again)):
        one(torch.ones(5, 3)).square().mean().backward()
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("value", "form", "said"),
    [
        ({"a": 1}, {"a": int, "b": int}, "there is no b"),
        ({"a": 1, "b": 2}, {"a": int}, "b does not belong there"),
        ({"a": True}, {"a": int}, "a is of type bool, not int"),
        ({"a": [1, "x"]}, {"a": Each(int, list)}, "a/1 is of type str, not int"),
        ({1: 2}, Each(int, dict), "is not a set of names"),
        ([], {"a": int}, "it is of type list"),
        ({"a": None}, {"a": float}, "a is missing, not float"),
        ({"a": 1}, Keys({"a": float, "b": int}, missing=True), None),
        ({"a": 1, "c": 1}, Keys({"a": float}, more=True), None),
        ([torch.ones(2)], [Dense(torch.float32, (3,))], "0 is float32 (2,), not float32 (3,)"),
        ([torch.ones(2)], [Dense(None, None), Dense(None, None)], "is not a list of 2"),
    ],
)
def test_a_form_says_where_a_value_differs(value: Any, form: Any, said: str | None) -> None:
    found = mistake(value, form)
    assert found is None if said is None else said in str(found)


def test_a_value_that_holds_itself_is_looked_at_as_deep_as_its_form() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    assert mistake(endless, {"a": {"a": int}}) == "a/a is of type dict, not int"


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["x"], "sums": torch.ones(2)},
        {"names": [1], "sums": torch.ones(1)},
        {"sums": torch.ones(())},
        {"counted": 3},
        {"steps": "x"},
    ],
    ids=str,
)
def test_a_window_of_metrics_is_checked(change: dict[str, Any]) -> None:
    good = MetricWindow(torch.device("cpu")).state_dict()
    assert MetricWindow.mistake_in(good) is None
    assert MetricWindow.mistake_in({**good, **change})


# ---- files


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def put(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.pt"
    file.write_bytes(data)
    return file


def packed_again(data: bytes, compression: int, replaced: dict[str, bytes] | None = None) -> bytes:
    """The same archive with some parts replaced, by the end of their names."""
    source, packed = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, (replaced or {}).get(name.split("/")[-1], source.read(name)))
    return packed.getvalue()


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one whose parts lie over each other: both may unpack to a thousand times their size."""
    data = saved({"w": torch.zeros(2**18)})
    file = put(tmp_path, "weights", packed_again(data, zipfile.ZIP_DEFLATED))
    assert file.stat().st_size < len(data) / 100
    unpacked: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *arguments, **more: unpacked.append(arguments))
    with pytest.raises(UserError, match="does not hold tensors and plain values"):
        checkpoint.load(file)
    twice = zipfile.ZipFile(io.BytesIO(data))
    twice.filelist.append(twice.getinfo(next(name for name in twice.namelist() if name.endswith("data/0"))))
    monkeypatch.setattr(zipfile, "ZipFile", lambda opened: twice)
    with pytest.raises(UserError, match="does not hold tensors and plain values"):
        checkpoint.load(put(tmp_path, "weights", data))
    assert unpacked == []


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


START = b"\x80\x02"
PICKLES: dict[str, dict[str, bytes]] = {
    "byte order": {"byteorder": b"nope"},
    "alignment": {".storage_alignment": b"\xff"},
    "a number for a storage": {"data.pkl": START + b"K\x01Q."},
    "half a storage": {"data.pkl": START + b"X\x07\0\0\0storage\x85Q."},
    "undecodable": {"data.pkl": START + b"X\x02\0\0\0\xff\xfe."},
    "a negative size": {"data.pkl": START + named("builtins", "bytearray") + b"J\xff\xff\xff\xff\x85R."},
    "a huge size": {"data.pkl": START + named("builtins", "bytearray") + b"\x8a\x06\0\0\0\0\0\x01\x85R."},
    "without values": {"data.pkl": START + named("torch._utils", "_rebuild_meta_tensor_no_storage") + b")R."},
    "a set": {"data.pkl": START + named("builtins", "set") + b")R."},
    "later opcodes": {"data.pkl": b"\x80\x04X\x02\0\0\0osX\x06\0\0\0system\x93."},
    "itself": {"data.pkl": START + b"}q\0X\x01\0\0\0ah\0s."},
    "cut off": {"data.pkl": START + b"}q"},
    "nothing": {"data.pkl": b""},
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_file_that_torch_would_not_write_is_one_sentence(name: str, tmp_path: Path) -> None:
    file = put(tmp_path, "weights", packed_again(saved({"w": torch.ones(3)}), zipfile.ZIP_STORED, PICKLES[name]))
    try:
        said = mistake(checkpoint.load(file), {"w": Dense(torch.float32, (3,))})
    except UserError as error:
        said = str(error)
    assert said


def test_the_newest_checkpoint_of_the_right_form_is_taken_and_without_any_nothing_is_begun_anew(tmp_path: Path) -> None:
    form = {"step": int, "w": Dense(torch.float32, (3,))}
    put(tmp_path, "step-000000001", saved({"step": 1, "w": torch.ones(3)}))
    put(tmp_path, "step-000000002", saved({"step": 2, "w": torch.ones(4)}))
    put(tmp_path, "step-000000003", b"damaged")
    found = checkpoint.load_newest(tmp_path, form)
    assert found is not None
    assert found["step"] == 1
    next(tmp_path.glob("step-000000001*")).unlink()
    with pytest.raises(UserError, match=r"step-000000002.* w is float32 \(4,\), not float32 \(3,\); remove it"):
        checkpoint.load_newest(tmp_path, form)
    next(tmp_path.glob("step-000000002*")).unlink()
    assert checkpoint.load_newest(tmp_path, form) is None


def test_a_file_far_larger_than_what_is_needed_of_it_is_not_read(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (file,) = (run_dir / "autoencoder").glob("weights-*")
    with file.open("r+b") as opened:
        opened.truncate(3 * 2**30)  # with holes: it takes no room
    read, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))  # type: ignore[func-returns-value]
    with pytest.raises(UserError, match=r"has 3,221,225,472 bytes, and what is needed of it fits into"):
        Run(RunFolder.load(run_dir, [])).tokenizer()
    assert file not in read
    form = {"a": Dense(torch.float32, (2, 3)), "b": [Dense(torch.int64, ())], "c": Keys({"d": Dense(None, None)})}
    assert size_of({**form, "e": int, "f": Each(Dense(torch.bool, (9,)), list)}) == 24 + 8


@pytest.mark.parametrize("change", [{"step": torch.ones(3)}, {"networks": {}}], ids=str)
def test_best_weights_with_wrong_insides_are_one_sentence(
    change: dict[str, Any], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    next((folder / "prior").glob("weights-*")).unlink()
    (file,) = (folder / "prior" / "checkpoints").glob("best-*")
    state = torch.load(file, weights_only=True)
    file.unlink()
    spoilt = put(file.parent, "best", saved({**state, **change}))
    assert f"{spoilt} does not hold this run's best weights" in error_of(capsys, f"run_dir={folder}", "logger=off")


def test_records_of_a_sweep_that_the_program_did_not_write_are_left_alone(tmp_path: Path) -> None:
    for number, text in enumerate(["{", "[1]", "{}", "[" * 10**5, '{"overrides": [1], "error": "x"}', "\x00"]):
        (tmp_path / f"{number}.job.json").write_text(text)
    (tmp_path / "own.job.json").write_text('{"overrides": ["seed=1"], "error": "x"}')
    assert [job.name for job in read_jobs(tmp_path)] == ["own"]


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step": lambda s: s.update(step=-1),
    "more steps than there are": lambda s: s.update(step=10**9, steps=10**9),
    "todo": lambda s: s.update(todo=["fit"]),
    "networks": lambda s: s.update(networks={}),
    "optimizers": lambda s: s.update(optimizers={}),
    "average": lambda s: s.update(average="x"),
    "meters": lambda s: s.update(meters={"x": torch.ones(1)}),
    "window": lambda s: s.update(window={}),
    "window/sums": lambda s: s.update(window={**s["window"], "names": ["x"], "sums": torch.ones(1)}),
    "skipped": lambda s: s.update(skipped={"count": torch.ones(()), "steps": torch.ones(3)}),
    "best": lambda s: s.update(best={"step": 1, "prior/bits_per_code": "x"}),
    "best/step": lambda s: s.update(best={"prior/bits_per_code": 1.0}),
    "alerted": lambda s: s.update(alerted=[1]),
    "seconds": lambda s: s.update(seconds=None),
    "steps": lambda s: s.update(steps="x"),
    "a key": lambda s: s.pop("meters"),
    "one more": lambda s: s.update(more=1),
}


@pytest.fixture(scope="module")
def unfinished(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second stage has one checkpoint, of a step in the middle."""
    folder = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("unfinished") / "run"))
    for file in (*(folder / "prior").glob("weights-*"), *(folder / "prior" / "checkpoints").glob("best-*")):
        file.unlink()
    for file in sorted((folder / "prior" / "checkpoints").glob("step-*"))[1:]:
        file.unlink()
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_with_wrong_insides_is_one_sentence_that_names_the_file(
    name: str, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(unfinished, tmp_path / "run"))
    (file,) = (folder / "prior" / "checkpoints").glob("step-*")
    state = torch.load(file, weights_only=True)
    file.unlink()
    CHECKPOINTS[name](state)
    spoilt = put(file.parent, "step-000000002", saved(state))
    said = error_of(capsys, f"run_dir={folder}", "logger=off")
    assert str(spoilt) in said or (name == "window/sums" and "other metrics" in said)
    assert said.strip().splitlines()[-1].startswith("error: ")


def test_the_form_of_a_state_is_that_of_the_state() -> None:
    state = {"a": torch.ones(3), "b": [1, 2.0, "x"], "c": {"d": torch.full((), torch.inf)}}
    assert mistake(state, form_of(state)) == "c/d has values that are not finite numbers"
    assert mistake(state, form_of(state, finite=False)) is None


# ---- logs

LINES = {
    "a list": '{"step": 4, "val/psnr_db": [1, 2]}',
    "nested": '{"step": 4, "val/psnr_db": [1, [3]]}',
    "a dict": '{"step": 4, "val/psnr_db": {"a": 1}}',
    "a histogram for a number": '{"step": 4, "val/psnr_db": {"edges": [0, 1], "counts": [1]}}',
    "a number for a histogram": '{"step": 4, "val/codebook/count_histogram_0": 3}',
    "a text for a histogram": '{"step": 4, "val/codebook/count_histogram_0": "x"}',
    "edges without counts": '{"step": 4, "val/codebook/count_histogram_0": {"edges": [0, 1]}}',
    "too few edges": '{"step": 4, "val/codebook/count_histogram_0": {"edges": [0], "counts": [1]}}',
    "edges that are no numbers": '{"step": 4, "val/codebook/count_histogram_0": {"edges": [0, NaN], "counts": [1]}}',
    "a large integer": '{"step": 4, "val/psnr_db": 1' + "0" * 400 + "}",
    "a text": '{"step": 4, "val/psnr_db": "x"}',
    "true": '{"step": 4, "val/psnr_db": true}',
    "no step": '{"val/psnr_db": 1}',
    "a text for the step": '{"step": "4"}',
    "a number near the largest": '{"step": 4, "val/psnr_db": 1e308}',
    "deep": '{"step": 4, "x": ' + "[" * 100_000,
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_a_log_that_the_program_would_not_write_is_one_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / "autoencoder" / "metrics.jsonl"
    write_bytes(file, f"{LINES[name]}\n".encode())
    with pytest.raises(UserError, match=r"line 1 of .*metrics.jsonl is damaged"):
        read_lines(file)


def test_every_number_of_a_log_can_be_plotted(tmp_path: Path) -> None:
    values = [1, -9e99, 9e99, float("inf"), float("nan"), 5e-324, 2**62]
    edges = [-9e99, 0.0, 0.0, 9e99]
    plot_curves([], tmp_path / "curves.png")
    plot_curves([{"step": 1, "train/autoencoder/loss": value} for value in values], tmp_path / "curves.png")
    plot_codes(
        [], {"codebook/count_histogram_0": {"edges": edges, "counts": [1, 2**62, -1]}}, 0.0, tmp_path / "codes.png"
    )
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "codes.png"))


def test_times_without_their_figures_are_one_sentence(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    with (folder / "prior" / "timing.jsonl").open("a") as file:
        file.write('{"step": 4}\n')
    run = Run(RunFolder.load(folder, []))
    with pytest.raises(UserError, match=r"timing.jsonl is damaged: it has no timing/seconds at step 4"):
        stage_figures(run, "prior")
