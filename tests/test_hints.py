"""What people type that is no key of this program is answered with what to type instead."""

from __future__ import annotations

import pytest
from conftest import error_of

ANSWERS = {
    "quantizer=ema,fsq": "several values are a sweep, so add -m",
    "lr=0.1": "optimizer.lr= sets the learning rate",
    "data.root=x": "it is a key of data=arrays, data=audio, data=cifar10; data=shapes has data.ndim, ",
    "data=my_pictures": "data=folder data.root=my_pictures takes a folder of that name",
    "data=foldr": "did you mean folder?",
    "quantizer=fsq quantizer.codebook.size=512": "quantizer=fsq has quantizer.dim, quantizer.levels",
    "model.widths=[8]": "did you mean model.encoders.0.width?",
    "model=conv model.widths=[8]": "did you mean model.encoders.0.widths?",
    "steps=3": "did you mean trainer.steps?",
    "resume=true": "the same command with run_dir=<the run> continues it",
    "gpus=2": "torchrun --nproc_per_node=2 train.py",
    "--data folder": "--data is no option: settings are written key=value, without dashes; data=folder",
    "--resume x": "the same command with run_dir=<the run> continues it",
    "--batch-size=3": "batch_size=3",
    "runs/x": "runs/x alone says nothing: settings are written key=value, such as data=folder data.root=runs/x",
    "prior=none": "stages=[autoencoder] trains without a prior",
    "hydra/launcher=nope": "brings submitit_slurm",
    "hydra/sweeper=optuna": "pip install hydra-optuna-sweeper",
    "-cn other": "there is no config called other",
    "--config-path nowhere": "own configs are added by -cd <folder>",
    "sed=1": "did you mean seed?",
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


def test_one_stage_may_be_named_without_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tokenizer=/nowhere holds no run" in error_of(capsys, "stages=prior", "tokenizer=/nowhere")
