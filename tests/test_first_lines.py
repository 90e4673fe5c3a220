"""Laws of the first lines of a run: they say before any work what was understood and what will be done, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SMALL_CODEBOOK, TINY, train_inside
from test_data import write_image

from vqvae.training import duration
from vqvae.training.duration import Duration, rounded
from vqvae.training.settings import due, times_due


def test_a_run_says_first_what_it_understood_and_will_do_and_then_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duration, "MENTIONED_SECONDS", 0.0)
    for split, count in (("Training", 12), ("valid", 4)):
        for name in ("cat", "dog"):
            for seed in range(count):
                write_image(tmp_path / "p" / split / name / f"{seed}.png", seed)
    (tmp_path / "p" / "Training" / "notes.txt").write_text("text")
    own = [one for one in [*TINY, *SMALL_CODEBOOK] if not one.startswith("data.")]
    data = ["data=folder", f"data.root={tmp_path / 'p'}", "data.image_size=16", f"data.cache_dir={tmp_path / 'cache'}"]
    sizes = [
        "trainer.batch_size=8",
        "prior.trainer.batch_size=8",
        "trainer.log_every_steps=1",
        "quantizer.revival.every_steps=1",
    ]
    train_inside(*own, *data, *sizes, f"run_dir={tmp_path / 'run'}")
    text = (tmp_path / "run" / "train.log").read_text()
    start = text.split("autoencoder step")[0].splitlines()
    assert [line for line in start if len(line) > 80 and "/" not in line and "classes" not in line] == []
    log = [line.split(" ", 1)[1] for line in text.replace("\n    ", " ").splitlines()]
    work = next(number for number, line in enumerate(log) if line.startswith("autoencoder step"))
    first = log[:work]
    for said in (
        "data: Folder, 24 train and 8 val items of 3 x 16 x 16, 2 classes (cat, dog)",
        f"data: train in {tmp_path / 'p' / 'Training'}, val in {tmp_path / 'p' / 'valid'}",
        f"data: left out in {tmp_path / 'p' / 'Training'}: 1 .txt file (notes.txt)",
        "logs: train.log, <stage>/metrics.jsonl in the run folder; wandb: off",
    ):
        assert first.count(said) == 1, "\n".join(first)
    assert log[work:].count("results: measuring, drawing pictures") == 1
    (model,) = [line for line in first if line.startswith("model: ")]
    assert model.endswith("parameters, 16 codes an item (4 x 4 of 16): 64 bits instead of 6,144")
    for stage in ("autoencoder", "prior"):
        line = next(line for line in first if line.startswith(f"{stage}: "))
        assert "4 steps of 8 items (1.33 epochs), " in line
        assert "cpu" in line
    assert log.count("codebook: dead codes are replaced after step 1, and every 1 up to step 4") == 1
    for stage, then in {
        "autoencoder": "1 evaluation included; the prior comes after that",
        "prior": "included",
    }.items():
        (told,) = [line for line in log if line.startswith(f"{stage}: the other ") and "steps will take about" in line]
        assert told.endswith(then)
    assert "will take" not in (tmp_path / "run" / "autoencoder" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(31, "31 seconds"), (119, "119 seconds"), (720, "12 minutes"), (9000, "2.5 hours"), (86400 * 20, "20 days")],
)
def test_durations_are_said_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert rounded(seconds) == said


def test_the_duration_counts_evaluations(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    told = Duration("autoencoder", batches=31.25, then="the prior")
    told.hear(steps=10, seconds=64.0, left=100, evaluations=3)  # a third of 6.4 s for a batch that is validated
    (message,) = caplog.messages
    assert message.replace("\n    ", " ") == (
        "autoencoder: the other 100 steps will take about 14 minutes, 3 evaluations included; the prior comes after that"
    )
    assert max(map(len, message.split("\n"))) <= 71
    known = Duration("prior", batches=31.25, then="")
    known.evaluation = 0.0
    known.hear(steps=10, seconds=64.0, left=100, evaluations=1)
    assert "about 11 minutes, 1 evaluation included" in caplog.messages[-1].replace("\n    ", " ")


@pytest.mark.parametrize("interval", [0, 1, 3, 4, 10, 11])
@pytest.mark.parametrize("step", range(11))
def test_what_is_still_due_is_counted(step: int, interval: int) -> None:
    assert times_due(step, interval, 10) == sum(due(later, interval, 10) for later in range(step + 1, 11))
