"""Laws of configs: every YAML composes and builds, every mistake is one sentence before any work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_CODEBOOK, TINY, error_of
from omegaconf import OmegaConf

from vqvae.config.build import build
from vqvae.config.compose import CONFIGS, check_train, choices, compose, resolve
from vqvae.config.schema import find_target
from vqvae.config.types import fits
from vqvae.errors import UserError

GROUPS = ["model", "quantizer", "loss", "optimizer", "schedule", "trainer", "prior", "logger", "debug"]
EVERY = [(group, name) for group in GROUPS for name in choices(group)]
PARTS = [(p.parent.relative_to(CONFIGS).as_posix(), p.stem) for p in sorted((CONFIGS / "quantizer").glob("*/*.yaml"))]
ROOTED = ("arrays", "audio", "folder", "imagenet128", "speech", "table", "video", "volumes")
DATA_ROOT = {name: ["data.root=."] for name in ROOTED} | {"huggingface": ["data.path=owner/name"]}


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_choice_composes_and_passes_the_checks(group: str, name: str) -> None:
    check_train(resolve(compose("train", [f"{group}={name}"])))


@pytest.mark.parametrize("name", choices("data"))
def test_every_data_set_composes(name: str) -> None:
    check_train(resolve(compose("train", [f"data={name}", *DATA_ROOT.get(name, [])])))


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_composes_on_any_data(name: str) -> None:
    cfg = resolve(compose("train", [f"experiment={name}", "data=folder", "data.root=.", "data.image_size=32"]))
    check_train(cfg)
    assert cfg.data._target_ == "vqvae.data.folder.Folder"
    build(cfg.model, "model")


@pytest.mark.parametrize(("group", "name"), PARTS)
def test_every_part_of_a_quantizer_builds_by_itself(group: str, name: str) -> None:
    part = group.removeprefix("quantizer/")
    of_the_codebook = {"gradient": "vq", "simvq": "simvq", "affine": "affine", "bridge": "fvq", "frozen": "frozen"}
    base = of_the_codebook.get(name, "ema") if part == "codebook" else "ema" if part == "lookup" else "vq"
    override = f"+{group}@quantizer.regularizers.more={name}" if part == "regularizer" else f"{group}={name}"
    cfg = resolve(compose("train", [f"quantizer={base}", override]))
    check_train(cfg)
    build(cfg.quantizer, "quantizer")


WRONG = {
    "trainer.stps=4": "trainer.stps is not a config key or group; did you mean trainer.steps?",
    "+trainer.stps=4": "trainer.stps is not a config key; did you mean trainer.steps?",
    "+quantizer.codebook.sise=4": "quantizer.codebook.sise is not a config key; did you mean quantizer.codebook.size?",
    "quantizer.revival=null": "quantizer.revival=None is not a choice for Revival",
    "quantizer.codebook.decay=nan": "quantizer.codebook.decay=nan is not a number",
    "+sead=4": "sead is not a config key; did you mean seed?",
    "quantizer=emaa": "quantizer=emaa does not exist; did you mean ema?",
    "quantizer/init=unifrom": "quantizer/init=unifrom does not exist; did you mean uniform?",
    "quantzer=ema": "quantzer is not a config key or group; did you mean quantizer?",
    "trainer.steps=abc": "trainer.steps=abc is not an integer or null",
    "trainer.compile=1": "trainer.compile=1 is not true or false",
    "trainer.steps=-1": "trainer.steps=-1 must be at least 1 or null",
    "trainer.epochs=2": "set steps or epochs",
    "trainer.precision=fp17": "trainer.precision=fp17 must be one of auto, fp32, bf16, fp16",
    "trainer.batch_size=500": "trainer.batch_size=500 is larger than the training set; at most 96 fits",
    "prior.trainer.batch_size=500": "prior.trainer.batch_size=500 is larger than the training set; at most 96 fits",
    "trainer.accumulation=3": "batch_size=8 does not divide by accumulation=3",
    "optimizer.lr=-1": "optimizer: Invalid learning rate: -1",
    "schedule.final=2": "schedule.final=2 must be at most 1",
    "data.image_size=30": "a size of 30 does not divide by the encoder's stride 4; the nearest that does is 28",
    "quantizer.codebook.decay=2": "quantizer.codebook.decay=2 must be below 1",
    "quantizer.codebook.size=1": "quantizer.codebook.size=1 must be at least 2",
    "prior.flip=2": "prior.flip=2 is not true or false",
    "prior.flip=null": "prior.flip=None is not true or false",
    "+prior.flop=true": "prior.flop is not a config key; did you mean prior.flip?",
    "prior.trainer.early_stop_evals=0": "prior.trainer.early_stop_evals=0 must be at least 1 or null",
    "trainer.early_stop_evals=0.5": "trainer.early_stop_evals=0.5 is not an integer or null",
    "model.encoders.0.widths=[]": "model.encoders.0.widths=[] must not be empty",
    "stages=[autoencodr]": "stages may hold autoencoder and prior, got autoencodr; did you mean autoencoder?",
    "stages=nothing": "stages may hold autoencoder and prior, got nothing; stages=[autoencoder] trains without a prior",
    "stages=[prior,all]": "stages may hold autoencoder and prior, got all; stages=[autoencoder]",
    "stages=prio": "stages may hold autoencoder and prior, got prio; did you mean prior?",
    "stages=[]": "stages=[] names no stage: it may hold autoencoder and prior, as [autoencoder]",
    "stages=null": "stages=None names no stage",
    "stages=[[prior]]": "stages may hold autoencoder and prior, got ['prior']",
    "stages={a:prior}": "stages={a:prior} cannot be used: this key holds another kind of value",
    "logger.mode=on": "logger.mode",
    "data.resident=disc": "data.resident=disc must be one of auto, device, memory, disk, stream",
    "data=folder": "data.root",
    "seed=-1": "seed=-1 must be at least 0",
    "tokenizer=/nowhere": "tokenizer=/nowhere holds no run",
    "init_from=/nowhere": "init_from=/nowhere holds no run",
    "prior=null": "prior=null cannot be used: a group takes the name of one choice",
    "run_dir=[5]": "run_dir=[5] is not a text or null",
    "allow_targets=mine.": "allow_targets=mine. is not a list",
    "allow_targets=[mine]": "allow_targets=mine must end with a dot",
    "stages=[prior]": "has no finished autoencoder",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9] is not a list of 2 items, each a number",
    "~trainer.steps": "trainer.steps is missing",
    "optimizer._target_=os.system": "optimizer._target_=os.system is not a class of",
}


def own_folder(override: str, tmp_path: Path) -> list[str]:
    return [] if override.startswith("run_dir") else [f"run_dir={tmp_path / 'run'}"]


OF_ANOTHER_CHOICE = {
    "prior=pixelcnn prior.network.kernel=4": "prior.network.kernel=4 must be odd",
    "quantizer=residual quantizer/lookup=cosine": "did you mean quantizer/lookup@quantizer.inner.lookup?",
    "quantizer=fsq quantizer/codebook=ema": "quantizer/codebook is not a part of this config",
    "quantizer=ema quantizer@quantizer.inner=fsq": "quantizer@quantizer.inner is not a part of this config",
    "search_sweeps=-1": "search_sweeps=-1 must be at least 0",
    "search_sweeps=1 quantizer=multiscale": "search_sweeps=1: search needs code maps with the dims (8, 8)",
    "search_sweeps=1 quantizer=identity": "search_sweeps=1: search needs code maps with the dims (8, 8)",
    "search_sweeps=1 loss=logistic": "search_sweeps=1: it searches for less squared error, and loss=logistic",
    "quantizer=fsq quantizer.codebook.size=64": "quantizer.codebook.size is not a config key",
}


@pytest.mark.parametrize("overrides", OF_ANOTHER_CHOICE)
def test_a_part_that_the_chosen_quantizer_lacks_is_one_sentence(
    overrides: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, *TINY, *overrides.split())
    assert OF_ANOTHER_CHOICE[overrides] in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("override", WRONG)
def test_a_mistake_is_one_sentence_that_names_key_value_and_way_out(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, *TINY, *SMALL_CODEBOOK, *own_folder(override, tmp_path), override)
    assert WRONG[override] in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["quantizer=fsq", "quantizer.levels=[8,1]"], "quantizer.levels=[8, 1] must have every value at least 3"),
        (
            ["trainer.early_stop_evals=2", "trainer.eval_every_steps=0"],
            "early_stop_evals=2 needs eval_every_steps above 0",
        ),
        (["quantizer=identity"], "train with stages=[autoencoder]"),
        (["quantizer=vq", "~quantizer.regularizers.codebook"], "nothing draws the codes to the latents"),
        (["data=folder", "data.root=/nowhere"], "data.root=/nowhere is not a folder"),
    ],
)
def test_choices_that_do_not_go_together_say_so(
    overrides: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, "logger=off", f"run_dir={tmp_path / 'run'}", *overrides)
    assert expected in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.functional.relu",
        "vqvae.config.compose.importlib.import_module",
        "vqvae.run.folder.shutil.rmtree",
        "vqvae.training.trainer.Path",
        "vqvae",
        "subprocess.Popen",
        "torch.optim.lr_scheduler.StepLR",
        7,
    ],
)
def test_targets_that_are_not_allowed_classes_are_refused(target: object) -> None:
    with pytest.raises(UserError, match="is not a class of"):
        find_target("x", target, ("vqvae.", "torch.optim.", "torch.nn."))


def test_special_keys_of_hydra_are_refused_everywhere() -> None:
    cfg = resolve(compose("train"))
    OmegaConf.set_struct(cfg, False)
    cfg.quantizer.codebook._args_ = [1]
    with pytest.raises(UserError, match=r"quantizer.codebook._args_ is not a config key"):
        check_train(cfg)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        ("1", float, False),
        (None, int | None, True),
        ([1, 2], list[int], True),
        ([1, "x"], list[int], False),
        ("ab", list[str], False),
    ],
)
def test_types(value: object, annotation: object, expected: bool) -> None:
    assert fits(value, annotation) is expected


def test_help_fits_a_screen_and_comes_within_seconds() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 45
    assert done.stdout.count("python train.py") == 5
    for group in GROUPS:
        assert f"\n{group}: " in done.stdout


def test_help_does_not_import_torch() -> None:
    code = "import sys; sys.argv = ['train.py', '--help']; import train; train.main()\n"
    watch = "atexit.register(lambda: print('torch' in sys.modules))"
    code = f"import sys, atexit; sys.path.insert(0, {str(ROOT)!r}); {watch}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("key", ["tokenizer", "init_from", "report", "run_dir"])
def test_a_node_is_no_text_and_no_truth(key: str) -> None:
    cfg = resolve(compose("train", [f"{key}={{_target_:os.system}}"]))
    with pytest.raises(UserError, match=key):
        check_train(cfg)
