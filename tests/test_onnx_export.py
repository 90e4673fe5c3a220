"""Laws of the ONNX networks: every kind of run has them, and onnxruntime encodes and decodes as PyTorch does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL_CODEBOOK, TINY, call_inside
from test_export import KINDS, NO_MODEL, finished, some_x
from torch import Tensor

import vqvae
from vqvae.config.compose import choices
from vqvae.export import write
from vqvae.export.onnx import CannotExport, run_onnx, write_decoder
from vqvae.export.write import export_run
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run

has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not has_onnx, reason="onnx is optional")
NO_ENCODER = {f"quantizer={name}" for name in ("cosine_knn", "l1", "linf", "seeds")}
MISSING = write.missing_packages  # before it is patched for all other tests
NO_CODEBOOK = [one for one in TINY if not one.startswith("quantizer")]


@pytest.fixture(scope="module", autouse=True)
def with_onnx() -> Iterator[None]:
    """The packages as they are: other tests export as if they were missing, because converting takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(write, "missing_packages", MISSING)
        yield


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_onnx_networks_of_every_kind_of_run_give_its_codes_and_reconstructions_at_any_batch_size(
    kind: str, tmp_path: Path
) -> None:
    run = finished(tmp_path / "run", *KINDS[kind], prior=False)
    said = export_run(run, tmp_path / "out")
    assert "at most" in said[-1]
    assert "of random items' codes are the encoder's own" in said[-2]
    check_onnx(tmp_path / "out", some_x(run))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", [*choices("model"), *(f"quantizer={one}" for one in choices("quantizer"))])
def test_every_network_and_every_quantizer_with_codes_becomes_onnx(name: str, tmp_path: Path) -> None:
    if name in choices("model"):
        small = {"patch": [], "conv": ["model.encoders.0.widths=[8,8]"], "resnet": ["model.encoders.0.widths=[8,8,8]"]}
        overrides = [*NO_MODEL, *SMALL_CODEBOOK, f"model={name}", *small.get(name, [])]
    else:
        overrides = [*NO_CODEBOOK, name]
    run = finished(tmp_path / "run", overrides, prior=False)
    *_, encoder, decoder = export_run(run, tmp_path / "out")
    if name == "quantizer=identity":
        assert decoder.endswith("encoder.onnx and decoder.onnx were not written: this autoencoder has no codes")
        return
    assert "at most" in decoder
    cannot = "encoder.onnx was not written: torch.onnx.export cannot convert this network" in encoder
    assert cannot == (name in NO_ENCODER), encoder
    assert "\n" not in encoder
    check_onnx(tmp_path / "out", some_x(run))


def check_onnx(folder: Path, x: Tensor) -> None:
    model = vqvae.load(str(folder))
    for batch in (1, 3):
        codes = model.encode(x[:batch])
        if (folder / "encoder.onnx").is_file():
            encoded = run_onnx(folder / "encoder.onnx", {"x": x[:batch]})
            assert all(torch.equal(own, ours) for own, ours in zip(encoded, codes, strict=True))
        (found,) = run_onnx(folder / "decoder.onnx", {f"codes_{m}": own for m, own in enumerate(codes)})
        torch.testing.assert_close(found, model.decode(codes), rtol=0, atol=1e-3)
        assert float(found.abs().max()) <= 1


@needs_onnx
def test_the_command_exports_a_run_that_was_trained(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("export_script", ROOT / "scripts" / "export.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "export_script", module)
        spec.loader.exec_module(module)
        call_inside("export_script", f"run_dir={finished_run}", f"out={tmp_path / 'out'}")
    assert "decoder.onnx: codes -> x_hat in [-1, 1], at most" in capsys.readouterr().out
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        *("config.json", "README.md", "tokenizer.safetensors", "prior.safetensors"),
        *("reconstructions.png", "samples.png", "encoder.onnx", "decoder.onnx"),
    }
    run = Run(RunFolder.load(finished_run, []))
    check_onnx(tmp_path / "out", some_x(run))


@needs_onnx
def test_a_decoder_that_onnx_cannot_express_or_gets_wrong_is_one_sentence_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tmp_path / "run", *KINDS["plain"], prior=False)
    tokenizer, file = run.tokenizer(), tmp_path / "decoder.onnx"
    with monkeypatch.context() as patch:
        patch.setattr("vqvae.export.onnx.run_onnx", lambda file, codes: [torch.full((3, 3, 32, 32), 0.9)])
        with pytest.raises(CannotExport, match=r"its x_hat would be up to .* from the decoder's own"):
            write_decoder(tokenizer, file)
    assert not file.exists()
    monkeypatch.setattr(type(tokenizer.model), "decode", lambda self, codes: torch.tensor(codes[0].tolist()))
    said = export_run(run, tmp_path / "out")[-1]
    assert "decoder.onnx was not written: torch.onnx.export cannot convert this network (" in said
    assert "\n" not in said
    assert vqvae.load(str(tmp_path / "out")).codebook_sizes == [16]
