"""Laws of priors with more conditions than a class: columns of a table and vectors, from the listing to the samples."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCALES, assert_same_result, call_inside, error_of, run, stop_at, train_inside
from PIL import Image
from test_graphs import Compared, Recorded, compared, draws  # noqa: F401  # fixtures
from torch import Tensor
from two_processes import in_a_group

import vqvae
from scripts.benchmarks.sampling import prior_of
from vqvae import distributed
from vqvae.config.compose import choices
from vqvae.data.attributes import Attribute, read_vectors
from vqvae.data.code_store import CodeStore
from vqvae.errors import UserError
from vqvae.priors.base import Prior
from vqvae.priors.conditions import MOST_VALUES, Condition, Conditions, labels_of
from vqvae.priors.sampling import Sampling
from vqvae.run.conditions import find
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.stages.prior import PriorStage

pytestmark = pytest.mark.cpu

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
COUNT = 120
MODEL = [
    *("logger=off", "debug=fast", "data.image_size=16", "data.workers=0", "model=patch", "quantizer=fsq"),
    *(
        "quantizer.dim=16",
        "quantizer.levels=[5,5,5]",
        "optimizer.lr=5e-3",
        "trainer.steps=160",
        "trainer.batch_size=16",
    ),
    *("prior.network.width=16", "prior.network.layers=2", "prior.trainer.steps=120", "prior.trainer.batch_size=16"),
    *("trainer.eval_every_steps=80", "prior.trainer.eval_every_steps=60"),
]
ALL = "prior.conditions={class: 0.3, colour: 0.3, size: 0.3, vector: 0.3}"
EACH = Conditions(
    (
        Condition("class", "category", ("a", "b", "c")),
        Condition("colour", "category", ("red", "green")),
        Condition("size", "number", (), (2.0,), 0.5),
        Condition("vector", "vector", (), (0.0, 1.0, 2.0), 2.0),
    )
)


def make(folder: Path, kind: str = "csv") -> Path:
    """A table of plain images whose color its column says, and not its class; a vector says it too. Some values are missing."""
    rng = np.random.default_rng(0)
    rows, vectors = [], np.zeros((COUNT, 4), np.float16)
    for i in range(COUNT):
        colour, label = list(COLORS)[i % 3], ["cat", "dog"][i // 3 % 2]
        pixels = np.clip(np.array(COLORS[colour]) + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{COUNT - i:03d}.png")  # the table's order is not that of the names
        own = "" if i % 20 == 19 else colour
        size = "" if i % 30 == 7 else i % 5 + 0.5
        split = "val" if i % 7 == 5 else "train"
        rows.append({"path": f"{COUNT - i:03d}.png", "label": label, "split": split, "colour": own, "size": size})
        vectors[i, i % 3] = 1
    np.save(folder / "vectors.npy", vectors)
    if kind == "jsonl":
        (folder / "t.jsonl").write_text(
            "\n".join(json.dumps({k: v for k, v in row.items() if v != ""}) for row in rows)
        )
    else:
        with (folder / "t.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder / f"t.{kind}"


def command(table: Path, run_dir: Path, *more: str) -> list[str]:
    own = ["data=table", f"data.root={table}", "data.vectors=vectors.npy", f"data.cache_dir={table.parent / 'cache'}"]
    return [*MODEL, *own, f"run_dir={run_dir}", ALL, *more]


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def conditional(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all conditions."""
    path = tmp_path_factory.mktemp("conditional") / "run"
    train_inside(*command(table, path))
    return path


@pytest.fixture(scope="session")
def scales(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished autoencoder of several maps on the same data."""
    path = tmp_path_factory.mktemp("conditional_scales") / "run"
    of_fsq = ("quantizer", "prior.conditions")
    words = [one for one in command(table, path, "trainer.steps=2") if not one.startswith(of_fsq)]
    train_inside(*words, *SCALES, "quantizer.dim=16", "stages=[autoencoder]")
    return path


def color_of(x: Tensor) -> list[str]:
    """x (n, 3, H, W) -> the name of the nearest color to the mean of each."""
    means = (x.mean((2, 3)) + 1) * 127.5  # (n, 3)
    distances = torch.cdist(means, torch.tensor([*COLORS.values()]).float())
    return [list(COLORS)[i] for i in distances.argmin(1).tolist()]


def share(x: Tensor, name: str) -> float:
    return color_of(x).count(name) / len(x)


# ---- what is asked for comes out


def test_samples_have_the_colour_that_is_asked_for(conditional: Path) -> None:
    model = vqvae.load(conditional)
    for name in COLORS:
        assert share(model.sample(range(16), conditions={"colour": name}, guidance=1.0), name) > 0.5
    assert share(model.sample(range(16), ["cat"] * 16, conditions={"colour": "blue", "size": 1.5}), "blue") > 0.8


def test_a_vector_is_a_condition_like_any_other_one_for_all_or_one_each(conditional: Path, tmp_path: Path) -> None:
    model = vqvae.load(conditional)
    green, each = np.eye(4)[1], np.eye(4)[[0, 1, 2] * 4]
    assert share(model.sample(range(12), conditions={"vector": green}), "green") > 0.5
    found = color_of(model.sample(range(12), conditions={"vector": each}))
    assert sum(a == b for a, b in zip(found, list(COLORS) * 4)) > 6
    np.save(tmp_path / "v.npy", each)
    assert color_of(model.sample(range(12), conditions={"vector": tmp_path / "v.npy"})) == found


def test_samples_without_conditions_are_of_several_colours(conditional: Path) -> None:
    model = vqvae.load(conditional)
    assert len(set(color_of(model.sample(range(24), guidance=1.0)))) > 1


def test_the_right_condition_makes_codes_likelier(conditional: Path) -> None:
    own = Run(RunFolder.load(conditional, []))
    prior, conditions = own.prior(own.tokenizer().model), own.conditions.found()
    assert conditions is not None
    store = CodeStore(conditional / "codes" / own.store_name("val"))
    codes, right = store.codes(torch.arange(len(store))), store.labels.clone()
    wrong = right.roll(1, 0)  # neighbors differ in their colour
    with torch.no_grad():
        bits = [sum(float(m.sum()) for m in prior(codes, one).nats) for one in (right, right * torch.nan, wrong)]
    assert bits[0] < bits[1] < bits[2]


def test_sample_py_takes_conditions_beside_class_and_guidance(conditional: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a file.npy", np.eye(4)[:1])
    own = ["class=dog", "guidance=2", "condition.colour=red", f"condition.vector={tmp_path / 'a file.npy'}", "n=12"]
    said = run("sample.py", f"run_dir={conditional}", *own).stdout
    (folder,) = (conditional / "samples").glob("*n12_class-dog_colour-red_vector-a-file.npy-*_guidance*")
    assert str(folder) in said
    with np.load(folder / "samples.npz") as drawn:
        assert share(torch.from_numpy(drawn["items"]).float() / 127.5 - 1, "red") > 0.8
        assert drawn["labels"].tolist() == [1] * 12
    call_inside("sample", f"run_dir={conditional}", "condition.colour=red", "class=all", f"out={tmp_path / 'all'}")
    assert (tmp_path / "all" / "grid.png").is_file()


def test_runs_keep_their_conditions_in_exports(conditional: Path, tmp_path: Path) -> None:
    call_inside("scripts.export", f"run_dir={conditional}", f"out={tmp_path / 'export'}")
    model, again = vqvae.load(conditional), vqvae.load(tmp_path / "export")
    asked: dict[str, Any] = {"labels": ["cat"] * 3, "conditions": {"colour": "red", "size": 0.5}}
    assert torch.equal(model.sample(range(3), **asked), again.sample(range(3), **asked))
    assert "colour (blue, green, red)" in (tmp_path / "export" / "README.md").read_text()
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    config["prior"]["conditions"][1]["values"] = "red"
    (tmp_path / "export" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"prior.conditions is not what an export has there"):
        vqvae.load(tmp_path / "export")


def test_a_finished_run_needs_no_data_to_draw_what_is_asked_for(conditional: Path, tmp_path: Path) -> None:
    shutil.copytree(conditional, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(re.sub(r"root: .*t.csv", "root: gone.csv", config))
    model, moved = vqvae.load(conditional), vqvae.load(tmp_path / "run")
    assert torch.equal(*(one.sample([3], conditions={"colour": "red"}) for one in (model, moved)))
    run("sample.py", f"run_dir={tmp_path / 'run'}", "condition.colour=red", "n=2")


# ---- bad requests


WRONG_REQUESTS = {
    ("condition.colour=pink",): "colour=pink is not known; known are: blue, green, red",
    ("condition.color=red",): "color is no condition of this prior; known are: class, colour, size, vector",
    ("condition.size=big",): "size=big is not a number",
    (
        "condition.size=1e39",
    ): "size=1e+39 is too far from the numbers of the training items, whose standard deviation is 1.",
    ("condition.class=cat",): "the class is asked for by itself: class=...",
    ("condition.vector=none.npy",): "vector=none.npy cannot be read as vectors",
    ("class=cow",): "class=cow does not exist",
}


@pytest.mark.parametrize("own", WRONG_REQUESTS, ids=str)
def test_a_wrong_request_is_one_sentence(own: tuple[str, ...], conditional: Path) -> None:
    done = run("sample.py", f"run_dir={conditional}", "n=2", *own, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert WRONG_REQUESTS[own] in done.stderr


def test_vectors_that_do_not_fit_are_refused(conditional: Path) -> None:
    model = vqvae.load(conditional)
    for bad, said in {
        "width": (np.ones(3), r"must hold 4 numbers, or 2 rows of them, one a sample; it holds \(1, 3\)"),
        "rows": (np.ones((3, 4)), r"it holds \(3, 4\)"),
        "nan": (np.full(4, math.nan), "holds NaN"),
    }.values():
        with pytest.raises(ValueError, match=said):
            model.sample([0, 1], conditions={"vector": bad})
    with pytest.raises(ValueError, match="colour has 3 values for 2 samples"):
        model.sample([0, 1], conditions={"colour": ["red"] * 3})
    for size, said in ((10**400, "is not a number"), (np.float64(1e39), "is too far"), (-1e12, "is too far")):
        with pytest.raises(ValueError, match=said):
            model.sample([0, 1], conditions={"size": size})


@pytest.mark.parametrize("content", [b"PK\x03\x04and no zip", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8',"])
def test_files_of_vectors_that_numpy_cannot_read_are_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        EACH.labels(2, {"vector": tmp_path / "a.npy"})
    with pytest.raises(UserError, match="cannot be read"):
        read_vectors(tmp_path / "a.npy", "data.vectors=a.npy", 2)


def test_a_prior_of_the_class_alone_has_no_conditions(finished_run: Path) -> None:
    done = run("sample.py", f"run_dir={finished_run}", "condition.colour=red", check=False)
    assert "colour is no condition of this prior, which was trained with the class alone" in done.stderr


@pytest.mark.parametrize("words", [("false", "true"), ("False", "True")])
def test_true_and_false_are_asked_for_as_python_has_them(words: tuple[str, str]) -> None:
    asked = Conditions((Condition("smiling", "category", words),)).labels(3, {"smiling": [True, None, False]})
    assert asked.nan_to_num(5).tolist() == [[1], [5], [0]]


# ---- bad data


def test_what_conditions_json_cannot_hold_is_refused_when_it_is_found() -> None:
    """Else a run would begin, and not go on."""
    many: Any = SimpleNamespace(class_names=[str(i) for i in range(MOST_VALUES + 1)])
    with pytest.raises(UserError, match="names class, which has 10,001 values in the training items"):
        find(["class"], many, many)
    large: Any = SimpleNamespace(attribute=lambda *_: Attribute(np.array([-1e300, 1e300]), np.arange(2)))
    with pytest.raises(UserError, match="names size, whose numbers are too large"):
        find(["size"], large, large)


def test_a_vectors_file_has_a_row_for_each_item_and_no_nan(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "short.npy", np.ones((COUNT - 1, 4)))
    holes = np.ones((COUNT, 4), np.float32)
    holes[37, 2] = math.nan
    np.save(tmp_path / "nan.npy", holes)
    np.save(tmp_path / "flat.npy", np.ones(COUNT))
    for name, said in {
        "short": f"has {COUNT - 1} rows, and there are {COUNT} items: it needs a row for each, in their order",
        "nan": "holds NaN or infinite numbers in row 37",
        "flat": "must hold an array (items, W) of numbers",
        "none": "cannot be read",
    }.items():
        own = [f"data.vectors={tmp_path / name}.npy"]
        error = error_of(capsys, *command(table, tmp_path / "run", *own))
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


WRONG_CONDITIONS = {
    "prior.conditions=[hue]": "t.csv has no column hue; its columns are path, label, split, colour, size",
    "prior.conditions=[label]": "prior.conditions names label, the column of the classes: as a condition it is called class",
    "prior.conditions=[]": "prior.conditions names none",
    "prior.conditions=[colour,colour]": "names one twice",
    "prior.conditions={colour: 1.5}": "prior.conditions.colour=1.5 must be at least 0 and below 1",
    "data.attributes={colour: number}": "t.csv, row 1: colour=red is no number",
    "data.attributes={hue: number}": "t.csv has no column hue",
    "data=shapes": "brings no more than classes",
    "data.classes=off": "prior.conditions names class, and this data has no classes",
}


@pytest.mark.parametrize("own", WRONG_CONDITIONS)
def test_conditions_that_the_data_does_not_bring_are_one_sentence(
    own: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(table, tmp_path / "run", own)
    words = [one for one in words if one != ALL or not own.startswith("prior.conditions")]
    if own == "data=shapes":
        words = [*[one for one in words if not one.startswith("data")], own]
    error = error_of(capsys, *words)
    assert WRONG_CONDITIONS[own] in error
    assert error.count("\n") == 1


# ---- what is stored


def test_labels_of_the_store_are_those_of_the_table(table: Path, tmp_path: Path) -> None:
    """Of JSONL the same; an image that cannot be read has the conditions of the one that takes its place."""
    stores = []
    for kind in ("csv", "jsonl"):
        listing = make(tmp_path / kind, kind)
        (listing.parent / "120.png").write_bytes(b"no image")  # row 0, the last by name
        own = ["data.most_unreadable=0.1", "data.resident=" + ("stream" if kind == "csv" else "memory")]
        words = command(listing, tmp_path / f"run_{kind}", *own, "trainer.steps=2", "prior.trainer.steps=2")
        train_inside(*words)
        done = Run(RunFolder.load(tmp_path / f"run_{kind}", []))
        stores.append(CodeStore(tmp_path / f"run_{kind}" / "codes" / done.store_name("train")))
        known = done.conditions.found()
        assert known is not None
    labels = stores[0].labels
    assert torch.equal(labels.isnan(), stores[1].labels.isnan())
    assert torch.equal(labels.nan_to_num(), stores[1].labels.nan_to_num())
    assert labels.shape == (103, 7)
    assert [known.each[1].values, known.each[2].width, known.each[3].width] == [("blue", "green", "red"), 1, 4]
    rows = [i for i in reversed(range(COUNT)) if i % 7 != 5]  # of the table, in the order of the names
    rows = [119 if row == 0 else row for row in rows]  # after the last comes the first
    colours = [math.nan if i % 20 == 19 else [2, 1, 0][i % 3] for i in rows]
    assert labels[:, 1].nan_to_num(-1).tolist() == [-1 if math.isnan(c) else c for c in colours]
    vectors = labels[:, 3:] * known.each[3].deviation + torch.tensor(known.each[3].mean)
    assert torch.allclose(vectors, torch.eye(4)[[i % 3 for i in rows]], atol=1e-5)
    sizes = labels[:, 2] * known.each[2].deviation + known.each[2].mean[0]
    given = torch.tensor([math.nan if i % 30 == 7 else i % 5 + 0.5 for i in rows])
    assert torch.allclose(sizes, given, equal_nan=True)


def test_a_folder_takes_vectors_in_the_order_of_all_its_sorted_paths(tmp_path: Path) -> None:
    root, vectors = tmp_path / "set", {}
    for i, file in enumerate(["train/b/1.png", "train/a/0.png", "train/b-c/0.png", "val/a/0.png"] * 1):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), i * 10, np.uint8)).save(root / file)
        vectors[file] = [float(i), 1.0]
    np.save(tmp_path / "v.npy", np.array([vectors[file] for file in sorted(vectors)]))
    from test_data import folder

    data = folder(root, tmp_path / "cache", vectors={"text": str(tmp_path / "v.npy")})
    for name in ("train", "val"):
        split = data.split(name)
        found = data.attribute("text", split).of(np.arange(len(split)))
        assert found.tolist() == [vectors[f"{name}/{file}"] for file in split.files]  # type: ignore[attr-defined]


def test_a_run_of_the_class_alone_stores_and_draws_what_it_did(finished_run: Path) -> None:
    own = Run(RunFolder.load(finished_run, []))
    assert own.conditions.found() is None
    assert not (finished_run / "conditions.json").exists()
    assert not [one.name for one in (finished_run / "codes").iterdir() if "-" in one.name], "stores of conditions alone"
    store = CodeStore(finished_run / "codes" / "val")
    assert (store.labels.dtype, store.labels.ndim) == (torch.int64, 1)
    assert {"label_width", "conditions"}.isdisjoint(store.header)


def test_a_damaged_file_of_conditions_is_one_sentence(conditional: Path, tmp_path: Path) -> None:
    shutil.copytree(conditional, tmp_path / "run")
    file = tmp_path / "run" / "conditions.json"
    good = json.loads(file.read_text())
    for bad in (
        "[",
        "[]",
        json.dumps([{**good[0], "kind": "other"}]),
        json.dumps([{**good[3], "mean": [1]}]),
        json.dumps(good[:2]),
    ):
        file.write_text(bad)
        with pytest.raises(ValueError, match=r"conditions.json is damaged"):
            vqvae.load(tmp_path / "run")
    file.unlink()
    with pytest.raises(ValueError, match=r"conditions.json is missing"):
        vqvae.load(tmp_path / "run")


# ---- training


def test_a_resumed_run_equals_a_whole_one(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["trainer.steps=8", "prior.trainer.steps=12", "prior.trainer.checkpoint_every_steps=4", "prior.flip=true"]
    train_inside(*command(table, tmp_path / "whole", *short))
    stop_at(monkeypatch, "prior", 6)
    with pytest.raises(SystemExit):
        train_inside(*command(table, tmp_path / "parts", *short))
    monkeypatch.undo()
    train_inside(f"run_dir={tmp_path / 'parts'}")
    assert_same_result(tmp_path / "whole", tmp_path / "parts")
    assert len(list((tmp_path / "whole" / "codes").glob("train_flipped-*"))) == 1


def test_another_prior_on_a_finished_tokenizer_has_conditions_of_its_own(
    conditional: Path, table: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    plain = [one for one in command(table, first, "trainer.steps=2", "prior.trainer.steps=2") if "vectors" not in one]
    train_inside(*[one for one in plain if one != ALL])
    own = ["logger=off", "debug=fast", "prior.network.width=16", "prior.network.layers=2", "prior.trainer.steps=2"]
    more = ["prior.conditions={colour: 0.3, vector: 0.1}", "data.vectors=vectors.npy"]
    train_inside(*own, f"tokenizer={first}", *more, f"run_dir={tmp_path / 'second'}")
    model = vqvae.load(tmp_path / "second")
    assert model.prior is not None
    assert model.prior.conditions is not None
    assert model.prior.conditions.names == ["colour", "vector"]
    with pytest.raises(ValueError, match="this prior knows no class: its conditions are colour, vector"):
        model.sample([0], ["cat"])
    done = run("sample.py", f"run_dir={tmp_path / 'second'}", "class=cat", check=False)
    assert "class=cat: this prior knows no class, its conditions are colour, vector" in done.stderr
    run("sample.py", f"run_dir={tmp_path / 'second'}", "condition.colour=red", "n=2")


def labels_of_batch(count: int) -> Tensor:
    """Labels of all conditions, of which a third is not given."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(count, 6, generator=generator)
    numbers[:, 0], numbers[:, 1] = (numbers[:, 0] * 3).floor(), (numbers[:, 1] * 2).floor()
    hidden = torch.rand(count, 4, generator=generator) < 1 / 3
    return EACH.hide(numbers, hidden)


def test_dropout_hides_each_condition_at_its_own_rate_and_all_at_once() -> None:
    prior = conditioned("pixelcnn")
    stage = PriorStage(prior, lambda codes: codes[0], Sampling(), 0.2, condition_dropout=[0.0, 0.5, 0.1, 0.0])
    torch.manual_seed(0)
    given = labels_of(EACH, [np.array(["a"] * 5000), np.array(["red"] * 5000), np.ones(5000), np.ones((5000, 3))])
    hidden = stage._hide_classes(given).isnan()
    shares = hidden.float().mean(0)
    expected = torch.tensor([0.2, 0.6, 0.28, 0.2, 0.2, 0.2])
    assert (shares - expected).abs().max() < 0.03  # 4 standard deviations
    assert torch.equal(hidden[:, 3:5], hidden[:, 4:6])  # a vector is given whole, or not
    assert hidden.all(1).float().mean() == hidden[:, 0].float().mean()


def hidden_of_rank() -> Tensor:
    """What this rank hides of its share of a batch."""
    prior = conditioned("pixelcnn")
    stage = PriorStage(prior, lambda codes: codes[0], Sampling(), 0.2, condition_dropout=[0.1, 0.5, 0.1, 0.2])
    torch.manual_seed(3)
    return stage._hide_classes(labels_of_batch(12).chunk(distributed.world_size())[distributed.rank()])


def test_two_ranks_hide_what_one_does(tmp_path: Path) -> None:
    parts = in_a_group(tmp_path, hidden_of_rank)
    assert torch.equal(torch.cat(parts).isnan(), hidden_of_rank().isnan())


def conditioned(name: str, grid: tuple[int, ...] = (3, 2)) -> Prior:
    prior = prior_of(name, grid, ["prior.network.width=8"])
    torch.manual_seed(1)
    prior.condition_on(EACH)
    return prior.eval()


@pytest.mark.parametrize("name", choices("prior"))
def test_every_prior_draws_by_every_method_what_its_conditions_say(name: str) -> None:
    """All its ways draw the same codes where they do so with a class, and another condition draws others."""
    prior, labels = conditioned(name), labels_of_batch(20)
    ways = [method for method in prior.methods if method not in ("halton", "confidence")] or [None]
    for sampling in ({}, {"guidance": 2.5}):
        drawn = [prior.sample([*range(20)], labels, Sampling(method=way, **sampling)) for way in ways]
        for other in drawn[1:]:
            assert all(torch.equal(a, b) for a, b in zip(drawn[0], other))
        fresh = prior.sample([*range(20)], labels.roll(1, 0), Sampling(**sampling))
        assert not all(torch.equal(a, b) for a, b in zip(drawn[0], fresh))
        assert all(m.dtype == torch.int64 for m in drawn[0])


@pytest.mark.parametrize("name", choices("prior"))
def test_a_condition_that_is_not_given_has_a_vector_of_its_own_and_finite_gradients(name: str) -> None:
    prior, labels = conditioned(name).train(), labels_of_batch(12)
    codes = [torch.randint(5, (12, *shape)) for shape in prior.code_shapes]
    prior(codes, labels).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in prior.classes.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in prior.classes.parameters())
    if name not in (
        "transformer",
        "next_scale",
        "maskgit",
    ):  # whose classes change nothing at the start but through inputs
        assert not torch.equal(prior.classes(labels[:1] * torch.nan), prior.classes(labels[:1]))


@pytest.mark.parametrize("prior", choices("prior"))
def test_replayed_steps_with_conditions_equal_those_that_run(
    prior: str,
    compared: list[Recorded],  # noqa: F811
    conditional: Path,
    scales: Path,
    tmp_path: Path,
) -> None:
    own = ["logger=off", "debug=fast", f"prior={prior}", "prior.network.width=16", "prior.trainer.steps=10", ALL]
    with pytest.raises(Compared):
        train_inside(
            *own,
            f"tokenizer={scales if prior == 'next_scale' else conditional}",
            f"run_dir={tmp_path / 'run'}",
            "data.vectors=vectors.npy",
        )


@pytest.mark.parametrize("name", choices("prior"))
def test_replayed_draws_with_conditions_equal_those_that_run(
    name: str,
    draws: Callable[[Prior], Recorded],  # noqa: F811
) -> None:
    prior, count = conditioned(name), 16
    seeds, labels = [*range(4 * count)], labels_of_batch(4 * count)
    sampling = Sampling(guidance=2.0, chunk=count)
    eager = prior.sample(seeds, labels, sampling)
    drawn = draws(prior)
    replayed = prior.sample(seeds, labels, sampling)
    assert all(torch.equal(a, b) for a, b in zip(eager, replayed))
    assert (drawn.enabled, len(drawn.replays)) == (True, 1)
