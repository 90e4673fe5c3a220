"""Laws of downloaded run folders: they run no code, reach no other folder, and their faults are one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_CODEBOOK, TINY, call_inside, command, train_inside
from omegaconf import OmegaConf

from vqvae.config.messages import user_message
from vqvae.config.program import one_line
from vqvae.config.schema import find_target
from vqvae.data.cache import claim
from vqvae.data.folder import Folder
from vqvae.data.loader import ItemLoader
from vqvae.errors import UserError
from vqvae.images import write_png
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.storage.files import digest

ALLOWED = ("vqvae.", "torch.optim.", "torch.nn.")


class Payload:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def stranger(finished_run: Path, tmp_path: Path) -> Path:
    """A whole run, as if downloaded."""
    shutil.copytree(finished_run, tmp_path / "stranger")
    return tmp_path / "stranger"


def refused(run_dir: Path, use: Callable[[Run], object] = lambda run: None) -> str:
    """The one sentence with which a folder is refused."""
    with pytest.raises((ValueError, OSError, RuntimeError)) as caught:
        use(Run(RunFolder.load(run_dir, [])))
    said = user_message(caught.value, "sample")
    assert said is not None, caught.value
    assert 0 < len(one_line(said)) < 1500
    return said


def config_with(run_dir: Path, key: str, value: Any) -> None:
    cfg = OmegaConf.load(run_dir / "config.yaml")
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg))


# ---- targets: the ways around a check by prefix of CVE-2026-68508 and CVE-2026-106439, and more

TARGETS = [
    "os.system",
    "vqvae.config.compose.os.system",
    "vqvae.run.folder.shutil.rmtree",
    "vqvae.os.system",
    "torch.nn.modules.module.torch.load",
    "torch.nn.Module.__init__",
    "torch.nn.modules.__builtins__.eval",
    "vqvae.__init__.os",
    "vqvae.__main__.X",
    "vqvae.training.trainer.Trainer",
    "vqvae.run.folder.RunFolder",
    "vqvae.run.sweep.SweepSummary",
    "vqvae.training.logger.Logger",
    "vqvae.data.loader.ItemLoader",
    "vqvae.data.base.TensorSplit",
    "vqvae.data.code_store.CodeStore",
    "vqvae.config.schema.UserError",
    "vqvae.quantizers.base.Loss",
    "torch.nn.Parameter",
    "torch.nn.parallel.DistributedDataParallel.load_state_dict",
    "torch.optim.Optimizer.load_state_dict",
    "torch.optim.lr_scheduler.LambdaLR",
    "torch.optim.swa_utils.update_bn",
    "torch.nn.modules.container.OrderedDict",
    " vqvae.model.VQVAE",
    "vqvae.model.VQVAE\n",
    "vqvae.model. VQVAE",
    "vqvae..model.VQVAE",
    "vqvae.",
    "vqvae.model.\uff36QVAE",  # a full-width V, which Python would read as V
    "vqvae\u200b.model.VQVAE",
    "\u0475qvae.model.VQVAE",
    "__import__",
    "",
    [],
    {},
    {"_target_": "os.system"},
    ["vqvae.model.VQVAE"],
    3,
    True,
    None,
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_a_target_is_a_class_that_configs_build_or_refused(target: Any) -> None:
    with pytest.raises(UserError, match="is not a class of"):
        find_target("data", target, ALLOWED)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data._target_", "vqvae.model.VQVAE"),
        ("quantizer._target_", "torch.nn.Linear"),
        ("quantizer.codebook._target_", "torch.nn.Embedding"),
        ("quantizer.codebook", {"_target_": "torch.nn.utils.parametrize.ParametrizationList"}),
        ("quantizer.regularizers.more", {"_target_": "vqvae.networks.conv.Encoder"}),
        ("quantizer.regularizers.more", {"_target_": "os.system", "command": "true"}),
        ("quantizer.regularizers.more", {"deeper": {"_target_": "os.system"}}),
        ("model.encoders", [{"_target_": "torch.nn.Identity"}]),
        ("model.encoders", [[{"_target_": "os.system"}]]),
        ("model.encoders.0.widths", {"_target_": "os.system"}),
        ("logger.tags", [{"_target_": "os.system"}]),
        ("optimizer._partial_", False),
        ("optimizer._partial_", "true"),
        ("data._partial_", True),
        ("data._args_", ["x"]),
        ("data._convert_", "all"),
        ("data._recursive_", False),
        ("prior._target_", "os.system"),
        ("prior.network", None),
        ("prior.network", {"width": 3}),
        ("loss", {"_target_": {"_target_": "os.system"}}),
        ("hydra", {"job_logging": {"()": "os.system"}}),
        ("hydra", {"callbacks": {"x": {"_target_": "os.system"}}}),
        ("_target_", "os.system"),
        ("seed", {"_target_": "os.system"}),
        ("stages", [{"_target_": "os.system"}]),
    ],
    ids=str,
)
def test_a_node_builds_what_its_place_asks_for_or_is_refused(key: str, value: Any, stranger: Path) -> None:
    if key.startswith("model.encoders.0"):  # update would make a dict of the list
        cfg = OmegaConf.load(stranger / "config.yaml")
        cfg.model.encoders[0].widths = value
        (stranger / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    else:
        config_with(stranger, key, value)
    assert key.split(".")[0] in refused(stranger)


@pytest.mark.parametrize("program", ["sample", "train"])
def test_what_a_saved_config_allows_does_not_count(
    program: str, tmp_path: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Data: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    config_with(stranger, "allow_targets", ["evil.", "os."])
    config_with(stranger, "data._target_", "evil.Data")
    with pytest.raises(SystemExit) as stopped:
        call_inside(program, f"run_dir={stranger}")
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (2, 1)
    assert "evil.Data is not a class of vqvae., torch.optim., torch.nn." in said
    assert not (tmp_path / "imported").exists()


@pytest.mark.slow
def test_packages_in_the_current_folder_and_in_the_downloaded_one_are_not_imported(stranger: Path) -> None:
    for name in ("vqvae", "torch", "omegaconf", "hydra_plugins", "numpy", "vqvae/data"):
        (stranger / name).mkdir()
        (stranger / name / "__init__.py").write_text(f"open({str(stranger / 'imported')!r}, 'w')")
    for name in ("yaml.py", "sitecustomize.py", "vqvae/model.py", "vqvae/own.py"):
        (stranger / name).write_text(f"open({str(stranger / 'imported')!r}, 'w')")
    for program in (["sample.py", "n=2"], ["scripts/evaluate.py"]):
        shielded = ("PYTHONSAFEPATH", "PYTHONPATH")  # by programs that ran in this process
        plain = {key: value for key, value in os.environ.items() if key not in shielded}
        done = subprocess.run(command(*program, "run_dir=."), cwd=stranger, env=plain, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not (stranger / "imported").exists()
    config_with(stranger, "data._target_", "vqvae.own.Data")
    assert "vqvae.own.Data is not a class" in refused(stranger)
    assert not (stranger / "imported").exists()


# ---- config.yaml


def laughs(text: str) -> str:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join([text, "l0: &l0 [ha]", *levels])


SPOILT: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "environment": (lambda t: t.replace("seed: 0", "seed: ${oc.env:HOME}"), "to be replaced"),
    "decoded": (lambda t: t.replace("seed: 0", "seed: ${oc.decode:'1'}"), "to be replaced"),
    "nested": (lambda t: t.replace("shapes.Shapes", "shapes.${oc.env:SHELL}"), "to be replaced"),
    "in a key": (lambda t: t + "${seed}: 3\n", "to be replaced"),
    "missing": (lambda t: t.replace("seed: 0", "seed: ???"), "to be replaced"),
    "a zero byte": (lambda t: t.replace("cache_dir: data_cache", 'cache_dir: "a\\0b"'), "to be replaced"),
    "python": (lambda t: t + "x: !!python/object/apply:os.system ['touch pwned']\n", "a tag"),
    "a path": (lambda t: t + "x: !!python/object/apply:pathlib.PosixPath ['/etc']\n", "a tag"),
    "laughs": (laughs, "an alias"),
    "itself": (lambda t: t + "x: &x {x: *x}\n", "an alias"),
    "merged": (lambda t: t + "x: &x {a: 1}\ny: {<<: *x}\n", "an alias"),
    "deep": (lambda t: t + "x: " + "[" * 5000 + "]" * 5000, "levels"),
    "deep blocks": (lambda t: t + "x:\n" + "".join(" " * i + "x:\n" for i in range(1, 300)), "levels"),
    "long": (lambda t: t + "#" * 200_000, "100000 bytes"),
    "twice": (lambda t: t + "seed: 1\n", "duplicate key seed"),
    "digits": (lambda t: t.replace("seed: 0", "seed: " + "9" * 9000), "is no config"),
    "a large number": (lambda t: t.replace("seed: 0", "seed: 99999999999999999999999"), "is not an integer"),
    "utf-16": (lambda t: t.encode("utf-16"), "is no config"),
    "latin-1": (lambda t: t.replace("data_cache", "\xe9").encode("latin-1"), "is no config"),
    "bytes": (lambda t: bytes(range(256)), "is no config"),
    "two": (lambda t: t + "---\n" + t, "is no config"),
    "empty": (lambda t: "", "is missing"),
    "a list": (lambda t: "[1, 2]", "holds no keys"),
    "a number": (lambda t: "3", "is no config"),
    "a word": (lambda t: "word", "word is not a config key"),
    "a half": (lambda t: t[: len(t) // 2], ""),
    "a list of keys": (lambda t: t + "? [1, 2]\n: 3\n", "is no config"),
    "a date": (lambda t: t.replace("seed: 0", "seed: 2001-01-01"), "seed=2001-01-01 is not an integer"),
    "stages": (lambda t: re.sub(r"stages:\n(- \w+\n)+", "stages: 5\n", t), "stages=5 names no stage"),
    "another home": (lambda t: t.replace("cache_dir: data_cache", "cache_dir: ~nobody-here/x"), "is_fine"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_malformed_config_is_one_sentence_within_seconds(
    name: str, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stranger)
    spoil, expected = SPOILT[name]
    spoilt = spoil((stranger / "config.yaml").read_text())
    (stranger / "config.yaml").write_bytes(spoilt if isinstance(spoilt, bytes) else spoilt.encode())
    started = time.perf_counter()
    if expected == "is_fine":
        assert RunFolder.load(stranger, []).config.data.cache_dir == "data_cache"
    else:
        assert expected in refused(stranger)
    assert time.perf_counter() - started < 5
    assert not (stranger / "pwned").exists()


def test_a_config_that_is_a_folder_is_no_run(stranger: Path) -> None:
    (stranger / "config.yaml").unlink()
    (stranger / "config.yaml").mkdir()
    assert "holds no run" in refused(stranger)


# ---- files


def replace_weights(run_dir: Path, stage: str, data: bytes) -> None:
    """Other bytes under a name with the right checksum."""
    for old in (run_dir / stage).glob("weights-*.pt"):
        old.unlink()
    (run_dir / stage / f"weights-{hashlib.sha256(data).hexdigest()[:12]}.pt").write_bytes(data)


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def good_state(run_dir: Path, stage: str) -> dict[str, Any]:
    (file,) = (run_dir / stage).glob("weights-*.pt")
    return torch.load(file, weights_only=True)


USES: dict[str, Callable[[Run], object]] = {
    "autoencoder": lambda run: run.tokenizer(),
    "prior": lambda run: run.prior(run.tokenizer().model),
}


@pytest.mark.parametrize("stage", USES)
@pytest.mark.parametrize("kind", ["pickle", "zip", "nothing", "text"])
def test_a_pickle_with_the_right_checksum_is_refused_and_not_run(kind: str, stage: str, stranger: Path) -> None:
    bomb = Payload(stranger / "pwned")
    made = {"pickle": lambda: pickle.dumps(bomb), "zip": lambda: saved({"networks": bomb}), "nothing": bytes}
    replace_weights(stranger, stage, made.get(kind, lambda: b"weights")())
    assert "does not hold tensors and plain values" in refused(stranger, USES[stage])
    assert not (stranger / "pwned").exists()


def one_other(key_of: Callable[[dict[str, Any]], str], value_of: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    def change(state: dict[str, Any]) -> Any:
        (parameters,) = state["networks"].values()
        key = key_of(parameters)
        parameters[key] = value_of(parameters[key])
        return state

    return change


def first(parameters: dict[str, Any]) -> str:
    return next(key for key, value in parameters.items() if value.is_floating_point() and value.ndim > 1)


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no networks": lambda state: {"step": 3},
    "a list": lambda state: [1, 2],
    "a tensor": lambda state: torch.zeros(3),
    "other networks": lambda state: {"networks": {"other": next(iter(state["networks"].values()))}},
    "networks are a list": lambda state: {"networks": [1]},
    "a network is a number": lambda state: {"networks": dict.fromkeys(state["networks"], 3)},
    "a parameter is a text": one_other(first, lambda value: "text"),
    "a parameter is nothing": one_other(first, lambda value: None),
    "a shape": one_other(first, lambda value: value[1:].clone()),
    "a number": one_other(first, lambda value: torch.tensor(3.0)),
    "a NaN": one_other(first, lambda value: torch.full_like(value, torch.nan)),
    "sparse": one_other(first, lambda value: value.to_sparse()),
    "quantized": one_other(first, lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    "one value a million million times": one_other(first, lambda value: torch.zeros(1).expand(10**6, 10**6)),
    "one is missing": lambda state: {
        "networks": {name: dict(list(one.items())[1:]) for name, one in state["networks"].items()}
    },
    "one too many": lambda state: {
        "networks": {name: {**one, "x": torch.ones(1)} for name, one in state["networks"].items()}
    },
    "a number for a name": lambda state: {
        "networks": {name: {**one, 5: torch.ones(1)} for name, one in state["networks"].items()}
    },
}


@pytest.mark.parametrize("stage", USES)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_weights_with_the_right_checksum_are_one_sentence(name: str, stage: str, stranger: Path) -> None:
    replace_weights(stranger, stage, saved(MALFORMED[name](good_state(stranger, stage))))
    refused(stranger, USES[stage])


def stores(run: Run) -> object:
    """All codes and labels of a run's validation set."""
    store = run.code_store(run.tokenizer(), "val")
    return store.codes(torch.arange(len(store)))


def objects(file: Path) -> None:
    np.save(file, np.array([Payload(file.parent / "pwned")] * 20, dtype=object), allow_pickle=True)


def header_of(**changes: Any) -> Callable[[Path], None]:
    def change(store: Path) -> None:
        header = json.loads((store / "header.json").read_text())
        (store / "header.json").write_text(json.dumps({**header, **changes}))

    return change


STORES: dict[str, Callable[[Path], object]] = {
    "objects": lambda store: objects(store / "codes_0.npy"),
    "objects for labels": lambda store: objects(store / "labels.npy"),
    "a pickle": lambda store: (store / "codes_0.npy").write_bytes(pickle.dumps(Payload(store / "pwned"))),
    "an archive": lambda store: np.savez(open(store / "codes_0.npy", "wb"), x=np.zeros(3)),  # noqa: SIM115
    "nothing": lambda store: (store / "codes_0.npy").write_bytes(b""),
    "a half": lambda store: (store / "codes_0.npy").write_bytes((store / "codes_0.npy").read_bytes()[:200]),
    "no file": lambda store: (store / "codes_0.npy").unlink(),
    "floats": lambda store: np.save(store / "codes_0.npy", np.zeros((20, 8, 8))),
    "signed": lambda store: np.save(store / "codes_0.npy", np.full((20, 8, 8), -1, np.int8)),
    "out of range": lambda store: np.save(store / "codes_0.npy", np.full((20, 8, 8), 16, np.uint8)),
    "fewer": lambda store: np.save(store / "codes_0.npy", np.zeros((3, 8, 8), np.uint8)),
    "labels in floats": lambda store: np.save(store / "labels.npy", np.zeros(20)),
    "negative": header_of(code_shapes=[[-8, 8]]),
    "huge": header_of(code_shapes=[[10**12, 10**12]]),
    "texts": header_of(code_shapes="88"),
    "text in it": header_of(code_shapes=[["8", 8]]),
    "floats for shapes": header_of(code_shapes=[[8.0, 8.0]]),
    "true for a size": header_of(codebook_sizes=[True]),
    "a huge codebook": header_of(codebook_sizes=[10**9]),
    "no sizes": header_of(codebook_sizes=[]),
    "sizes are missing": header_of(codebook_sizes=None),
    "a negative count": header_of(count=-1),
    "a text for a count": header_of(count="20"),
    "infinitely many": header_of(count=float("inf")),
    "a list": lambda store: (store / "header.json").write_text("[1]"),
    "no JSON": lambda store: (store / "header.json").write_text("{"),
    "deep": lambda store: (store / "header.json").write_text("[" * 100_000),
    "bytes for a header": lambda store: (store / "header.json").write_bytes(bytes(range(256))),
}


@pytest.mark.parametrize("name", STORES)
def test_a_malformed_code_store_is_one_sentence(name: str, stranger: Path) -> None:
    store = stranger / "codes" / "val"
    STORES[name](store)
    with contextlib.suppress(ValueError, RecursionError, TypeError):  # a stranger writes the right checksums
        header = json.loads((store / "header.json").read_text())
        sums = {file.name: digest(file) for file in store.glob("*.npy")}
        (store / "header.json").write_text(json.dumps({**header, "sha256": sums}))
    said = refused(stranger, stores)
    assert "codes_0.npy" in said or "labels.npy" in said or "header.json" in said
    assert "checksum" not in said
    assert not list(stranger.rglob("pwned"))


@pytest.mark.parametrize("part", ["images", "used", "sums"])
def test_a_malformed_image_cache_is_made_again(part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(4):
        write_png(tmp_path / "images" / f"{index}.png", torch.full((3, 8, 8), 50 * index, dtype=torch.uint8))
    data = Folder(
        ndim=2, channels=3, flip=False, limit=None, resident="memory", workers=0, cache_dir=str(tmp_path / "cache"),
        image_size=8, root=str(tmp_path / "images"), resize=8, val_share=0.5, split_seed=0,
    )  # fmt: skip
    whole = ItemLoader(data, data.split("train"), torch.device("cpu")).images
    (file,) = (tmp_path / "cache").glob(f"*-{part}.*")
    spoil: tuple[Callable[[Path], object], ...] = (
        objects,
        lambda f: f.write_bytes(b"x"),
        lambda f: np.save(f.open("wb"), np.zeros((9, 9))),
        lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\x63"),
        lambda f: f.write_text("{}"),
        lambda f: f.write_text("[1]"),
        lambda f: f.unlink(),
    )
    for one in spoil:
        one(file)
        assert torch.equal(ItemLoader(data, data.split("train"), torch.device("cpu")).images, whole)  # type: ignore[arg-type]
        assert "is damaged" in caplog.text or not file.exists() or part == "sums"
        caplog.clear()
    assert not list(tmp_path.rglob("pwned"))


def test_no_file_of_the_program_unpickles_or_evaluates_anything() -> None:
    forbidden = re.compile(
        r"\bpickle\.(load|loads|Unpickler)|\bjoblib|\bdill\b|\bmarshal\b|\bshelve\b|(?<!\.)\b(eval|exec|compile)\("
        r"|yaml\.(unsafe_|full_)?load\(|shell=True|os\.(system|popen)|allow_pickle=True|weights_only=False"
        r"|MAX_IMAGE_PIXELS\s*=(?! most_pixels$| limit$)"
        r"|torch\.load\((?!.*weights_only=True)|np\.load\((?!.*allow_pickle=False)"
    )
    sources = [*(ROOT / "vqvae").rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), *ROOT.glob("*.py")]
    assert len(sources) > 50
    for file in sources:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            assert not forbidden.search(line), f"{file.relative_to(ROOT)}:{number}: {line}"


# ---- paths


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "autoencoder",
        "autoencoder/weights",
        "codes",
        "codes/val",
        "codes/val/codes_0.npy",
        "codes/val/header.json",
        "summary.json",
    ],
)
def test_a_link_out_of_the_folder_is_refused(name: str, stranger: Path, tmp_path: Path) -> None:
    path = stranger / name if not name.endswith("weights") else next((stranger / "autoencoder").glob("weights-*"))
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "leads out of the run folder" in refused(stranger)


@pytest.mark.parametrize(
    "name", ["samples", "config.yaml.tmp", "train.log", "evaluation_val.json.tmp", "autoencoder/images/x"]
)
@pytest.mark.parametrize("program", [["sample.py", "n=1"], ["train.py"]])
def test_nothing_is_written_through_a_link_out_of_the_folder(
    name: str, program: list[str], stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "victim").mkdir()
    shutil.rmtree(stranger / name, ignore_errors=True)
    (stranger / name).unlink(missing_ok=True)
    (stranger / name).symlink_to(tmp_path / "victim" / "new")
    with pytest.raises(SystemExit) as stopped:
        call_inside(program[0].removesuffix(".py"), f"run_dir={stranger}", *program[1:])
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (2, 1)
    assert "leads out of the run folder" in said
    assert not list((tmp_path / "victim").iterdir())


def test_links_of_wandb_to_its_own_log_are_left_alone(stranger: Path, tmp_path: Path) -> None:
    logs = stranger / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "elsewhere")
    RunFolder.load(stranger, [])
    (stranger / "wandb" / "latest-run").symlink_to(tmp_path)
    assert "leads out of the run folder" in refused(stranger)


def test_links_inside_of_the_folder_stay_in_use_and_a_pipe_is_refused(stranger: Path) -> None:
    (stranger / "autoencoder").rename(stranger / "stage1")
    (stranger / "autoencoder").symlink_to("stage1")
    Run(RunFolder.load(stranger, [])).tokenizer()
    os.mkfifo(stranger / "autoencoder" / "weights-0123456789ab.pt")
    assert "is neither a file nor a folder" in refused(stranger)


def test_images_are_kept_where_every_command_keeps_them_unless_this_program_has_kept_some_elsewhere(
    stranger: Path, tmp_path: Path
) -> None:
    other = tmp_path / "mnist"
    config_with(stranger, "data.cache_dir", str(other))
    other.mkdir()
    (other / "train-images.npy").touch()
    assert RunFolder.load(stranger, []).config.data.cache_dir == "data_cache"
    claim(other)
    assert RunFolder.load(stranger, []).config.data.cache_dir == str(other)
    other.rename(tmp_path / "downloaded")  # with a mark that names another place
    config_with(stranger, "data.cache_dir", str(tmp_path / "downloaded"))
    assert RunFolder.load(stranger, []).config.data.cache_dir == "data_cache"


def test_a_saved_config_does_not_choose_where_cifar10_is_downloaded_to(stranger: Path, tmp_path: Path) -> None:
    cifar10 = OmegaConf.load(ROOT / "configs" / "data" / "cifar10.yaml")
    config_with(stranger, "data", {**cifar10, "root": str(tmp_path / ".ssh")})
    assert RunFolder.load(stranger, []).config.data.root == cifar10.root
    (tmp_path / ".ssh" / "cifar-10-batches-py").mkdir(parents=True)
    assert RunFolder.load(stranger, []).config.data.root == str(tmp_path / ".ssh")


@pytest.mark.parametrize("key", ["tokenizer", "init_from"])
def test_a_strangers_tokenizer_and_weights_are_checked_as_well(
    key: str, stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [] if key == "init_from" else [o for o in TINY if not o.startswith(("data", "model", "quantizer"))]
    bomb = pickle.dumps(Payload(tmp_path / "pwned"))
    replace_weights(stranger, "autoencoder", bomb)
    with pytest.raises(SystemExit):
        train_inside(*(own or [*TINY, *SMALL_CODEBOOK]), f"{key}={stranger}", f"run_dir={tmp_path / 'mine'}")
    assert "does not hold tensors and plain values" in capsys.readouterr().err
    config_with(stranger, "loss.head._target_", "os.system")
    with pytest.raises(SystemExit):
        train_inside(*(own or [*TINY, *SMALL_CODEBOOK]), f"{key}={stranger}", f"run_dir={tmp_path / 'mine'}")
    assert "loss.head._target_=os.system is not a class" in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists()


PROGRAMS = {
    "train": [],
    "sample": ["n=1"],
    "scripts.evaluate": [],
    "scripts.encode": ["splits=[val]"],
    "scripts.export": ["out=exported"],
}
TRICKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a target": (lambda run_dir: config_with(run_dir, "model._target_", "os.system"), "is not a class of"),
    "a tag": (
        lambda run_dir: (run_dir / "config.yaml").write_text("a: !!python/object/apply:os.system [touch pwned]\n"),
        "which no saved config has",
    ),
    "a pickle": (
        lambda run_dir: replace_weights(run_dir, "autoencoder", pickle.dumps(Payload(run_dir / "pwned"))),
        "does not hold tensors and plain values",
    ),
    "a link": (lambda run_dir: (run_dir / "elsewhere").symlink_to(run_dir.parent), "leads out of the run folder"),
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_refuses_every_kind_of_trick_in_one_line(
    program: str,
    trick: str,
    stranger: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, expected = TRICKS[trick]
    spoil(stranger)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        call_inside(program, f"run_dir={stranger}", *PROGRAMS[program])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("pwned"))


def test_a_pickle_as_the_checkpoint_of_an_unfinished_run_is_skipped_and_not_run(stranger: Path) -> None:
    """train.py on a stranger's folder whose checkpoint is a pickle."""
    for file in (*(stranger / "prior").glob("weights-*.pt"), *(stranger / "prior" / "checkpoints").glob("step-*")):
        file.unlink()
    bomb = pickle.dumps(Payload(stranger / "pwned"))
    name = f"step-000000004-{hashlib.sha256(bomb).hexdigest()[:12]}.pt"
    (stranger / "prior" / "checkpoints" / name).write_bytes(bomb)
    train_inside(f"run_dir={stranger}", "logger=off")
    assert "does not hold tensors and plain values" in (stranger / "train.log").read_text()
    assert not (stranger / "pwned").exists()


# ---- what is installed


@pytest.mark.slow
def test_no_requirement_has_a_known_vulnerability(tmp_path: Path) -> None:
    """In the versions that are installed: resolving requirements.txt anew would download PyTorch."""
    names = [re.split(r"[<>=]", line)[0] for line in (ROOT / "requirements.txt").read_text().split()]
    pins = tmp_path / "installed.txt"
    pins.write_text("".join(f"{name}=={metadata.version(name).split('+')[0]}\n" for name in names))
    audit = [sys.executable, "-m", "pip_audit", "-r", str(pins), "--no-deps", "--disable-pip", "--progress-spinner=off"]
    done = subprocess.run(audit, capture_output=True, text=True, timeout=100)
    if "No module named pip_audit" in done.stderr:
        pytest.skip("pip-audit is not installed")
    if re.search(r"ConnectionError|ServiceError|HTTPError|Max retries|timed out|Forbidden|not connect", done.stderr):
        pytest.skip(f"the vulnerability service does not answer: {done.stderr.strip()[-200:]}")
    if re.search(r"hydra-core .*could not be audited", done.stdout):  # "nothing found" would mean nothing
        pytest.skip("this package index has no data on vulnerabilities")
    assert done.returncode == 0, done.stdout + done.stderr
