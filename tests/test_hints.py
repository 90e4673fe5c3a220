"""What people type that is no key of this program is answered with what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import call_inside, error_of
from omegaconf import OmegaConf

from vqvae.config.compose import CONFIGS

ANSWERS = {
    "quantizer=ema,fsq": "several values are a sweep, so add -m",
    "lr=0.1": "optimizer.lr= sets the learning rate",
    "data.root=x": "it is a key of data=folder, data=arrays, data=audio; data=shapes has data.ndim, ",
    "data=my_pictures": "data=folder data.root=my_pictures takes a folder of that name",
    "data=foldr": "did you mean folder?",
    "quantizer=fsq quantizer.codebook.size=512": "quantizer=fsq has quantizer.dim, quantizer.levels",
    "model.widths=[8]": "did you mean model.encoders.0.width?",
    "model=conv model.widths=[8]": "did you mean model.encoders.0.widths?",
    "model.widhts=[8]": "did you mean model.encoders.0.width?",
    "prior.widht=8": "did you mean prior.network.width?",
    "loss.wieght=1": "did you mean loss.terms.mse.weight?",
    "quantizer.zzz=1": "valid are: quantizer.",
    "+model.decoder=1": "model.decoder is not a config key; did you mean model.decoders?",
    "+prior.zzz=1": "prior.zzz is not a config key; valid are: prior.network, prior.head",
    "steps=3": "did you mean trainer.steps?",
    "resume=true": "the same command with run_dir=<the run> continues it",
    "gpus=2": "torchrun --nproc_per_node=2 train.py",
    "--data folder": "--data is no option: settings are written key=value, without dashes; data=folder",
    "--resume x": "the same command with run_dir=<the run> continues it",
    "--batch-size=3": "without dashes; trainer.batch_size=3",
    "--steps 100": "without dashes; trainer.steps=100",
    "--seed 1": "without dashes; seed=1",
    "runs/x": "runs/x alone says nothing: settings are written key=value, such as data=folder data.root=runs/x",
    "prior=none": "stages=[autoencoder] trains without a prior",
    "hydra/launcher=nope": "brings submitit_slurm",
    "hydra/sweeper=optuna": "pip install hydra-optuna-sweeper",
    "-cn other": "there is no config called other",
    "--config-path nowhere": "own configs are added by -cd <folder>",
    "--config-path /nowhere": "own configs are added by -cd <folder>",
    "-cd nowhere": "nowhere is no folder: it names that of own configs",
    "trainer.steps = 10": "there are no blanks around =: trainer.steps=10",
    "trainer.steps= 10": "there are no blanks around =: trainer.steps=10",
    "trainer.steps =10": "there are no blanks around =: trainer.steps=10",
    "sed=1": "did you mean seed?",
    "data=/tmp/my_pictures": "data=folder data.root=/tmp/my_pictures takes a folder of that name",
    "data=my/pictures": "data=folder data.root=my/pictures takes a folder of that name",
    "quantizer/lookup=eucl": "quantizer/lookup=eucl does not exist; did you mean euclidean?",
    "quantizer=vqvae": "quantizer=ema is the default, and quantizer=vq learns its codes by gradient",
    "trainer.lr=0.1": "optimizer.lr= sets the learning rate",
    "optimizer.learning_rate=0.1": "optimizer.lr= sets the learning rate",
    "trainer.device=cpu": "did you mean device?",
    "quantizer.codebook_size=64": "quantizer.codebook.size= is the number of codes",
    "quantizer.num_embeddings=64": "quantizer.codebook.size= is the number of codes",
}


@pytest.mark.parametrize("command", ANSWERS)
def test_a_command_that_is_no_command_here_is_answered_in_one_sentence(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(capsys, *command.split())
    assert ANSWERS[command] in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "_target_" not in said


def test_own_experiments_are_among_the_suggestions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    for option in (["-cd", str(tmp_path)], [f"--config-dir={tmp_path}"]):
        assert "experiment=mien does not exist; did you mean mine?" in error_of(capsys, *option, "experiment=mien")


@pytest.mark.parametrize(
    ("package", "said"),
    [("absent_package", "No module named 'absent_package'"), ("broken_package", "No module named 'not_installed'")],
)
def test_a_package_that_cannot_be_imported_shows_its_own_error(
    package: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "__init__.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = error_of(capsys, f"quantizer._target_={package}.sign.Sign", f"allow_targets=[{package}.]")
    assert f"quantizer._target_={package}.sign.Sign cannot be imported (ModuleNotFoundError: {said})" in message
    assert f"PYTHONPATH=<the folder that holds {package}>" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "typed", "said"),
    [
        ("train", "run_dir={file}", "run_dir={file} is a file: name a folder for the run"),
        ("sample", "run_dir={run} out={file}", "out={file} is a file: name a folder for the results"),
        ("scripts.export", "run_dir={run} out={file}", "out={file} is there already: name a new folder"),
        ("scripts.evaluate", "run_dir={run} out={folder}", "out={folder} is a folder: name a file"),
        ("scripts.report", "run_dir={run} out={folder}", "out={folder} is a folder: name a file"),
        ("train", "run_dir={run} prior.trainer.steps=50", "with init_from={run}"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_told_before_any_work(
    program: str, typed: str, said: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"file": tmp_path / "file", "folder": tmp_path, "run": finished_run}
    places["file"].write_text("mine")
    with pytest.raises(SystemExit):
        call_inside(program, *typed.format(**places).split())
    assert said.format(**places) in capsys.readouterr().err
    assert places["file"].read_text() == "mine"


@pytest.mark.parametrize("program", ["sample", "evaluate", "encode", "export", "report", "compress", "decompress"])
def test_help_explains_every_key_in_two_screens(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = program if program == "sample" else f"scripts.{program}"
    call_inside(module, "--help")
    shown = capsys.readouterr().out
    _, keys = shown.split("Keys and their defaults:\n\n")
    assert len(shown.splitlines()) <= 60
    assert max(map(len, keys.splitlines())) <= 80
    defaults = OmegaConf.load(CONFIGS / f"{program}.yaml")
    for key in defaults:
        if key not in ("defaults", "hydra"):
            names = [f"{key}.{name}" for name in defaults[key]] if OmegaConf.is_dict(defaults._get_node(key)) else [key]
            for name in names:
                explained = keys.split(f"\n  {name}=" if f"\n  {name}=" in keys else f"  {name}=", 1)[1]
                assert len(explained.split("\n  ")[0].split()) > 1 or explained.split("\n")[1].startswith(" " * 20), (
                    name
                )


def test_one_stage_may_be_named_without_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tokenizer=/nowhere holds no run" in error_of(capsys, "stages=prior", "tokenizer=/nowhere")
