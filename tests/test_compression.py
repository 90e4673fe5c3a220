"""Laws of compressed images: the codes come back exactly, in as many bits as the prior says."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, call_inside, train_inside
from PIL import Image
from torch import Tensor

import vqvae
from vqvae.compression.coder import decode_codes, encode_codes, ideal_bits, weights_of
from vqvae.compression.file import Archive
from vqvae.compression.images import compressed, decompressed, file_names
from vqvae.config.build import build
from vqvae.config.compose import compose, resolve
from vqvae.errors import UserError
from vqvae.priors.autoregressive import AutoregressivePrior
from vqvae.surroundings.terminal import per_second

pytestmark = pytest.mark.skipif(importlib.util.find_spec("constriction") is None, reason="needs constriction")

SMALL = {
    "pixelcnn": ["width=8", "layers=2"],
    "pixelsnail": ["width=8", "layers=1", "blocks=1"],
    "wavenet": ["width=8", "layers=2"],
    "transformer": ["width=8", "layers=1", "heads=2"],
}


def prior_of(name: str, shapes: list[tuple[int, ...]], sizes: list[int]) -> AutoregressivePrior:
    small = [f"prior.network.{one}" for one in SMALL[name]]
    node = resolve(compose("train", [f"prior={name}", *small])).prior.network
    torch.manual_seed(0)
    prior = build(node, "prior.network", code_shapes=shapes, digits=[[size] for size in sizes], num_classes=3).eval()
    with torch.no_grad():
        for parameter in prior.parameters():  # far from uniform
            parameter.mul_(1.5)
    return prior


def drawn(prior: AutoregressivePrior, count: int) -> list[Tensor]:
    from vqvae.priors.sampling import Sampling

    return prior.sample(list(range(count)), torch.full((count,), -1), Sampling())


@pytest.mark.parametrize("name", SMALL)
def test_codes_come_back_exactly_in_the_bits_of_the_prior(name: str) -> None:
    """Of two maps, with a last batch that is not full."""
    prior = prior_of(name, [(3,), (12,)] if name == "wavenet" else [(2, 2), (5, 4)], [7, 300])
    codes = drawn(prior, 70)
    data = encode_codes(prior, codes, batch=32)
    for ours, right in zip(decode_codes(prior, data, 70, batch=32), codes):
        torch.testing.assert_close(ours, right)
    ideal = ideal_bits(prior, codes)
    assert ideal <= 8 * len(data) <= 1.01 * ideal + 64


def test_codes_that_the_prior_thinks_impossible_come_back_too() -> None:
    prior = prior_of("transformer", [(4,)], [16])
    with torch.no_grad():
        prior.networks[0].get_submodule("head").bias.copy_(torch.full((16,), -1e4).index_fill(0, torch.tensor(3), 1e4))
    codes = [torch.randint(0, 16, (40, 4), generator=torch.Generator().manual_seed(0))]
    data = encode_codes(prior, codes, 16)
    torch.testing.assert_close(decode_codes(prior, data, 40, 16), codes)
    assert 8 * len(data) <= 24 * 160 + 64  # no code takes more than 24 bits


def test_weights_are_whole_numbers_from_one_on() -> None:
    weights = weights_of(torch.tensor([[0.0, 50.0, -3e38, 0.0]]))
    assert (weights == np.floor(weights)).all()
    assert weights.min() == 1
    assert 2**24 - 8 <= weights.sum() <= 2**24


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compressed") / "run"
    train_inside(*TINY, *SMALL_CODEBOOK, f"run_dir={path}")
    return path


@pytest.fixture(scope="module")
def pictures(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    model, rng = vqvae.load(run_dir), np.random.default_rng(0)
    (folder / "a").mkdir()
    for name in ("a/one.png", "one.png", "one.jpg", "two ü.png"):
        Image.fromarray(rng.integers(0, 256, (*model.data.size, model.data.channels), dtype=np.uint8).squeeze()).save(
            folder / name
        )
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def test_a_slow_rate_is_not_said_to_be_zero() -> None:
    assert [per_second(*of) for of in ((5, 10.6), (5, 2.0), (120, 1.0), (3000, 2.0))] == ["0.47", "2.5", "120", "1,500"]


def test_a_folder_comes_back_as_the_reconstructions_that_the_run_makes(
    run_dir: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, back = tmp_path / "pictures.vqz", tmp_path / "back"
    call_inside("scripts.compress", f"run_dir={run_dir}", f"in={pictures}", f"out={file}")
    said = capsys.readouterr().out
    assert "4 images, 1 file skipped" in said
    assert f"{file}: {file.stat().st_size:,} bytes" in said
    call_inside("scripts.decompress", f"run_dir={run_dir}", f"in={file}", f"out={back}")
    model = vqvae.load(run_dir)
    names = Archive.read(file).names
    files = [back / f"{name}.png" for name in file_names(names)]
    assert len(set(files)) == 4
    expected = model.reconstruct([pictures / name for name in names])
    for written, x in zip(files, expected):
        levels = torch.from_numpy(np.array(Image.open(written))).reshape(*model.data.size, -1).movedim(-1, 0)
        torch.testing.assert_close(levels.float(), ((x + 1) * 127.5).round(), atol=1, rtol=0)


@pytest.fixture(scope="module")
def archive(run_dir: Path) -> Archive:
    model = vqvae.load(run_dir)
    items = torch.randint(0, 256, (5, model.data.channels, *model.data.size), dtype=torch.uint8)
    return compressed(model, [(f"{i}.png", item) for i, item in enumerate(items)])[0]


def test_damaged_foreign_and_missing_files_are_refused_in_one_sentence(archive: Archive, tmp_path: Path) -> None:
    file = tmp_path / "good.vqz"
    archive.write(file)
    content = file.read_bytes()
    assert Archive.read(file) == archive
    for place in (5, 20, len(content) // 2, len(content) - 1):
        (tmp_path / "bad.vqz").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            Archive.read(tmp_path / "bad.vqz")
    for wrong, sentence in {
        content[:-7]: "is damaged",
        content[:8]: "is damaged",
        b"\x89PNG": "is no file of",
        b"": "is no file of",
    }.items():
        (tmp_path / "bad.vqz").write_bytes(wrong)
        with pytest.raises(UserError, match=sentence):
            Archive.read(tmp_path / "bad.vqz")
    with pytest.raises(UserError, match="cannot be read"):
        Archive.read(tmp_path / "nothing.vqz")
    replace(archive, data=archive.data[:-1]).write(tmp_path / "bad.vqz")
    with pytest.raises(UserError, match="no whole words of 4 bytes"):
        Archive.read(tmp_path / "bad.vqz")
    bomb = b"vqz\x00" + content[4:9] + b"{}" + content[9:-32]  # a header of another kind, with a right checksum
    (tmp_path / "bad.vqz").write_bytes(bomb + hashlib.sha256(bomb).digest())
    with pytest.raises(UserError, match="its header cannot be read"):
        Archive.read(tmp_path / "bad.vqz")


def test_another_model_and_codes_that_round_otherwise_are_told(archive: Archive, run_dir: Path) -> None:
    model = vqvae.load(run_dir)
    assert len(decompressed(model, archive)[0]) == 5
    with pytest.raises(UserError, match="was made with another tokenizer"):
        decompressed(model, replace(archive, tokenizer="0" * 16))
    with pytest.raises(UserError, match="was made with another prior"):
        decompressed(model, replace(archive, prior="0" * 16))
    wrong = bytes([archive.data[0] ^ 255]) + archive.data[1:]
    with pytest.raises(UserError, match="are not those that were put in"):
        decompressed(model, replace(archive, data=wrong))
    with pytest.raises(UserError, match=r"torch was 1\.0, is"):
        decompressed(model, replace(archive, data=wrong, computed={**archive.computed, "torch": "1.0"}))
    for data in (archive.data[:4], b"", b"\xff" * 8):  # the last stand for no digit
        with pytest.raises(UserError, match="are not those that were put in"):
            decompressed(model, replace(archive, data=data))


def test_names_in_a_file_stay_in_the_folder_and_apart() -> None:
    names = file_names(["../../x.png", "a/b.png", "a-b.png", "a.png", "a.jpg", "/etc/passwd", ""])
    assert len(set(names)) == 7
    assert names[1] == "a/b"
    for name in names:
        assert all(part.strip("./") for part in name.split("/")), name


WRONG = {
    "out={folder}": "is a folder: name a file",
    "in={folder}/nothing out={folder}/x.vqz": "is not a folder",
    "in={folder}/empty out={folder}/x.vqz": "holds no files that can be read",
}


@pytest.mark.parametrize("command", WRONG)
def test_what_is_wrong_with_a_command_is_one_sentence(
    command: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    given = [one.format(folder=tmp_path) for one in command.split(" ")]
    more = [] if "in=" in command else [f"in={tmp_path}"]
    with pytest.raises(SystemExit):
        call_inside("scripts.compress", f"run_dir={run_dir}", *more, *given)
    said = capsys.readouterr().err
    assert WRONG[command] in said
    assert said.count("\n") == 1


def test_priors_that_cannot_code_are_told(run_dir: Path, tmp_path: Path) -> None:
    masked = build(
        resolve(compose("train", ["prior=maskgit"])).prior.network,
        "prior.network",
        code_shapes=[(4, 4)],
        digits=[[8]],
        num_classes=0,
    )
    model = vqvae.load(run_dir)
    model.prior = masked
    with pytest.raises(UserError, match="MaskGIT cannot give the probability of one code after another"):
        compressed(model, [])
    model.prior = None
    with pytest.raises(UserError, match="compression needs a trained prior"):
        compressed(model, [])
    shutil.rmtree(tmp_path)
