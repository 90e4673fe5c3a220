"""Laws of exports: they hold what the run holds, bit for bit, need no hydra, and run nothing that a stranger wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALL_CODEBOOK, TINY
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import vqvae
from vqvae.config.compose import compose, resolve
from vqvae.errors import UserError
from vqvae.export.write import export_run
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.seeding import seed_everything
from vqvae.storage import checkpoint

pytestmark = pytest.mark.cpu

NO_MODEL = [one for one in TINY if not one.startswith("model")]


def two_levels(cfg: DictConfig) -> None:
    """A second level of half the size under the first: its decoder sees both."""
    model = cfg.model
    finest, decoder = OmegaConf.to_container(model.encoders[0]), OmegaConf.to_container(model.decoders[0])
    assert isinstance(finest, dict)
    assert isinstance(decoder, dict)
    model.encoders.append({**finest, "channels": 8, "widths": [8]})
    model.quantizers.append(cfg.quantizer)
    model.decoders[0].dim = 12
    model.decoders.append({**decoder, "channels": 4, "widths": [8]})


Edit = Callable[[DictConfig], None] | None
KINDS: dict[str, tuple[list[str], Edit]] = {
    "plain": ([*TINY, *SMALL_CODEBOOK], None),
    "two levels": ([*TINY, *SMALL_CODEBOOK], two_levels),
    "sounds": ([*TINY, *SMALL_CODEBOOK, "data=tones", "data.length=512", "prior=wavenet"], None),
    "residual": ([*TINY, "quantizer=residual", "quantizer.depth=2", "quantizer.inner.codebook.size=16"], None),
    "softmax": ([*TINY, "quantizer=fsq", "quantizer.levels=[4,4]", "loss=categorical", "prior=maskgit"], None),
    "mixture": ([*NO_MODEL, *SMALL_CODEBOOK, "model=patch", "loss=logistic", "prior=transformer"], None),
}
HEADS = "prior.network.heads=2"


def some_x(run: Run, count: int = 3) -> Tensor:
    return next(run.loader("val").batches([torch.arange(count)]))[0].float() / 127.5 - 1


def finished(path: Path, overrides: list[str], edit: Edit = None, prior: bool = True) -> Run:
    """A run folder as training leaves it, with weights that nobody trained."""
    heads = [HEADS] if any(one in overrides for one in ("prior=maskgit", "prior=transformer")) else []
    cfg = compose("train", [*overrides, *heads, f"data.cache_dir={path.parent / 'cache'}"])
    if edit is not None:
        OmegaConf.resolve(cfg)
        edit(cfg)
    path.mkdir()
    OmegaConf.save(resolve(cfg), path / "config.yaml")
    run = Run(RunFolder.load(path, []))
    seed_everything(1, 0)
    model = run.autoencoder_stage(run.variance()).model
    with torch.no_grad():
        for one in model.encoders.parameters():  # new networks give every position nearly the same vector
            one.mul_(2)
    model.begin_run(iter([some_x(run, 20)] * 9))
    checkpoint.save(path / "autoencoder", "weights", {"step": 4, "networks": {"model": model.state_dict()}})
    if prior:
        network = run.new_prior(model)
        with torch.no_grad():
            for one in network.parameters():  # the last layers start at 0, and every code would be as likely
                one.add_(0.05 * torch.randn_like(one))
        checkpoint.save(path / "prior", "weights", {"step": 4, "networks": {"prior": network.state_dict()}})
    return run


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("plain") / "run", *KINDS["plain"])


@pytest.fixture
def export(plain_run: Run, tmp_path: Path) -> Path:
    export_run(plain_run, tmp_path / "export")
    return tmp_path / "export"


def test_a_run_is_exported_to_the_same_bytes_each_time(plain_run: Run, export: Path, tmp_path: Path) -> None:
    first = {file.name: file.read_bytes() for file in export.iterdir()}
    for again in map(str, range(4)):
        export_run(plain_run, tmp_path / again)
        assert {file.name: file.read_bytes() for file in (tmp_path / again).iterdir()} == first


@pytest.mark.parametrize("kind", KINDS)
def test_codes_reconstructions_logits_and_samples_are_those_of_the_run(kind: str, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", *KINDS[kind])
    said = export_run(run, tmp_path / "out")
    assert said[-1].endswith("were not written: pip install onnx onnxscript onnxruntime and export again for them")
    tokenizer = run.tokenizer()
    prior, ours = run.prior(tokenizer.model), vqvae.load(str(tmp_path / "out"))
    assert ours.prior is not None
    x = some_x(run)
    codes, expected = ours.encode(x), tokenizer.encode(x)
    assert [one.shape[1:] for one in codes] == ours.code_shapes
    assert all(len(one.unique()) > 1 for one in codes)
    assert all(torch.equal(a, b) for a, b in zip(codes, expected, strict=True))
    x_hat = ours.decode(codes)
    assert torch.equal(x_hat, tokenizer.decode(expected))
    assert x_hat.shape == x.shape
    labels = torch.tensor([0, 3, -1])
    with torch.no_grad():
        torch.manual_seed(0)  # a masked prior draws its masks
        scored = prior(expected, labels)
        torch.manual_seed(0)
        own = ours.prior(codes, labels)
    assert torch.equal(own.loss, scored.loss)
    assert all(torch.equal(a, b) for a, b in zip(own.nats, scored.nats, strict=True))
    drawn = ours.sample_codes([5, 6, 7], labels)
    assert all(torch.equal(a, b) for a, b in zip(drawn, prior.sample([5, 6, 7], labels, run.sampling()), strict=True))
    assert torch.equal(ours.decode(drawn), tokenizer.decode(drawn))
    assert torch.equal(ours.sample([5, 6, 7], labels), run.trained_model().sample([5, 6, 7], labels))
    assert ours.sampling == run.sampling()
    assert ours.sampling.guidance > 1


def test_weights_and_their_names_are_those_of_the_run(plain_run: Run, export: Path) -> None:
    ours = vqvae.load(str(export))
    assert ours.fingerprint == plain_run.tokenizer().fingerprint
    assert (ours.data.size, ours.data.channels, len(ours.class_names)) == ((32, 32), 3, 10)
    for one, part in ((ours.model, "autoencoder"), (ours.prior, "prior")):
        (state,) = plain_run.folder.weights(part)["networks"].values()
        assert one is not None
        assert checkpoint.fingerprint(one.state_dict()) == checkpoint.fingerprint(state)


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("hydra", "omegaconf", "wandb", "matplotlib"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import vqvae
assert "torch" not in sys.modules, "importing the package is instant"
import torch
model = vqvae.load(sys.argv[1])
codes = model.encode(torch.zeros(2, 3, 32, 32))
drawn = model.sample(seeds=range(2), labels=[3, 4])
assert model.decode(codes).shape == drawn.shape == (2, 3, 32, 32)
"""


def test_an_export_loads_where_there_is_no_hydra(export: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{BLOCKED}", str(export)]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("key", "target", "expected"),
    [
        ("model", "os.system", "model._target_=os.system is not"),
        ("model", "torch.nn.modules.module.torch.load", "is not a class of"),
        ("model", "torch.load", "is not a class of"),
        ("model", "builtins.eval", "is not a class of"),
        ("model", "vqvae.run.folder.RunFolder", "is no part of a network"),
        ("model", "vqvae.data.cifar10.CIFAR10", "is no part of a network"),
        ("model", ["vqvae.model.VQVAE"], "cannot be built"),
        ("model", "torch.nn.Linear", "is not a config key"),
        ("head", "vqvae.model.VQVAE", "is not a config key"),
    ],
)
def test_targets_of_a_stranger_are_refused(key: str, target: Any, expected: str, export: Path) -> None:
    file = export / "config.json"
    config = json.loads(file.read_text())
    config["tokenizer"][key]["_target_"] = target
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=key) as error:
        vqvae.load(str(export))
    assert expected in str(error.value)


def test_targets_are_refused_wherever_they_stand_and_nothing_of_them_is_run(export: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Part: ...\n")
    file = export / "config.json"
    config = json.loads(file.read_text())
    config["tokenizer"]["model"]["quantizers"][0]["codebook"]["size"] = {"_target_": "evil.Part"}
    file.write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(ValueError, match=r"model.quantizers.0.codebook"):
            vqvae.load(str(export))
    assert not (tmp_path / "ran").exists()


def spoil_weights(folder: Path) -> None:
    data = bytearray((folder / "tokenizer.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "tokenizer.safetensors").write_bytes(data)


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        changed = {**config, **values} if name == "" else {**config, name: {**config[name], **values}}
        file.write_text(json.dumps(changed))

    return spoil


SPOILED: dict[str, Callable[[Path], object]] = {
    "tokenizer.safetensors is damaged, or belongs to another config": spoil_weights,
    "tokenizer.safetensors is damaged": lambda folder: (folder / "tokenizer.safetensors").write_bytes(b"\xff" * 99),
    "is not whole: there is no": lambda folder: (folder / "prior.safetensors").unlink(),
    "config.json is damaged": lambda folder: (folder / "config.json").write_text("{"),
    "is not the config of an export": lambda folder: (folder / "config.json").write_text("[]"),
    "config.json is not the config of an export": change("", tokenizer=None),
    "prior is not what an export has there": change("", prior=[]),
    "has format 3, and this version of vqvae reads format 2": change("", format=3),
    "channels=3.5 is not what an export has there": change("tokenizer", channels=3.5),
    "size=None is not what an export has there": change("tokenizer", size=None),
    "its prior belongs to another tokenizer (0123)": change("prior", tokenizer="0123"),
    "guidance must be at least 0, got -1.0": change("prior", guidance=-1.0),
    "does not fit the config beside it": change("tokenizer", class_names=["a"]),
    "is neither a run": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("expected", SPOILED)
def test_an_incomplete_export_is_one_sentence(expected: str, export: Path) -> None:
    SPOILED[expected](export)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        vqvae.load(str(export))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_cannot_name_a_file(export: Path) -> None:
    config = json.loads((export / "config.json").read_text())
    assert ".safetensors" not in json.dumps(config)
    change("tokenizer", file="../elsewhere.safetensors", weights="/etc/passwd")(export)
    vqvae.load(str(export))  # unknown keys are not looked at


def test_what_cannot_be_encoded_decoded_or_drawn_is_one_sentence(export: Path, tmp_path: Path) -> None:
    model = vqvae.load(str(export))
    calls: dict[str, Callable[[], object]] = {
        "x must be float32 in [-1, 1] of shape (B, 3, 32, 32), got": lambda: model.encode(torch.zeros(1, 1, 32, 32)),
        "got torch.uint8": lambda: model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)),
        "does not divide by the encoder's stride": lambda: model.encode(torch.zeros(1, 3, 30, 30)),
        "this model has 1 code maps, got 2": lambda: model.decode([torch.zeros(1, 8, 8, dtype=torch.int64)] * 2),
        "labels must be a list of 2, one per seed": lambda: model.sample([1, 2], [3]),
        "numbers of -1 (none) .. 9; got [10]": lambda: model.sample([1], [10]),
        "temprature is not a setting of sampling; did you mean temperature?": lambda: model.sample([1], temprature=1.0),
        "top_p must be at most 1, got 2.0": lambda: model.sample([1], top_p=2.0),
        "seed is missing": lambda: vqvae.load(str(tmp_path / "run")),
        f"{tmp_path / 'nowhere'} is neither a run": lambda: vqvae.load(str(tmp_path / "nowhere")),
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    for expected, call in calls.items():
        with pytest.raises(ValueError) as error:  # noqa: PT011
            call()
        assert expected in str(error.value)
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "prior"}))
    with pytest.raises(ValueError, match="this model has no prior"):
        vqvae.load(str(export)).sample([1])


def test_a_run_that_is_not_finished_is_refused_and_one_without_a_prior_is_not(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", *KINDS["plain"], prior=False)
    assert "no prior: this run has not finished it" in export_run(run, tmp_path / "out")
    assert vqvae.load(str(tmp_path / "out")).prior is None
    with pytest.raises(UserError, match="is there already: name a new folder"):
        export_run(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "run" / "autoencoder")
    with pytest.raises(UserError, match="has no finished autoencoder"):
        export_run(Run(RunFolder.load(tmp_path / "run", [])), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_one_seed_gives_one_sample_whatever_is_drawn_beside_it(export: Path) -> None:
    model = vqvae.load(str(export))
    (many,), (one,) = model.sample_codes(range(4), [1, 2, 3, 4]), model.sample_codes([2], [3])
    assert torch.equal(many[2:3], one)
    assert not torch.equal(one, model.sample_codes([2], [3], temperature=0.1, guidance=1.0)[0])


def test_a_run_folder_loads_as_its_export_does(plain_run: Run, export: Path) -> None:
    own, exported = vqvae.load(plain_run.folder.path), vqvae.load(export)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(own.reconstruct(x), exported.reconstruct(x))
    assert torch.equal(own.sample([1], [2]), exported.sample([1], [2]))
    assert repr(own) == repr(exported)
    assert repr(own).startswith("TrainedModel(Shapes 3x32x32, codes [(8, 8)] of [16], ")
    assert own.to("cpu") is own


def test_the_package_exports_its_public_names() -> None:
    for name in vqvae.__all__:
        assert getattr(vqvae, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vqvae.nothing  # noqa: B018
