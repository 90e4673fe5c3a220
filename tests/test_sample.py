"""Laws of sample.py's modes: what is given is kept, one seed gives one image, ends are met, mistakes are one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, call_inside, run, train_inside
from PIL import Image

from vqvae.config.compose import choices, compose, resolve
from vqvae.images import LINE, normalize, to_uint8, write_png
from vqvae.priors.autoregressive import AutoregressivePrior
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.sampling import generate
from vqvae.sampling.complete import kept_codes, region_of


def sample(run_dir: Path, out: Path, *overrides: str) -> Path:
    call_inside("sample", f"run_dir={run_dir}", f"out={out}", *overrides)
    return out


def mistake(capsys: pytest.CaptureFixture[str], run_dir: Path, *overrides: str) -> str:
    """The one line of sample.py when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        call_inside("sample", f"run_dir={run_dir}", *overrides)
    message = capsys.readouterr().err
    assert (stopped.value.code, message.count("\n")) == (2, 1), message
    return message


def opened(path: Path) -> Run:
    return Run(RunFolder.load(path, []))


@pytest.fixture(scope="session")
def runs_by_prior(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each prior of configs/prior that takes 2-D maps, trained on the same tokenizer."""
    base = tmp_path_factory.mktemp("priors")
    found = {}
    for name in choices("prior"):
        node = resolve(compose("train", [f"prior={name}"])).prior.network
        small = {"width": 16, "layers": 2, "blocks": 1}
        network = [f"prior.network.{key}={value}" for key, value in small.items() if key in node]
        own = [o for o in TINY if o.startswith(("logger", "debug"))]
        try:
            train_inside(*own, *network, f"prior={name}", f"tokenizer={finished_run}", f"run_dir={base / name}")
        except SystemExit:  # a prior of sounds says that it takes no images
            continue
        found[name] = base / name
    return found


@pytest.fixture(scope="session")
def sounds_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of one dim, several code maps of different sizes."""
    path = tmp_path_factory.mktemp("sounds") / "run"
    own = [a for a in TINY if not a.startswith("quantizer")]
    data = ["data=tones", "data.length=256"]
    quantizer = ["quantizer=multiscale", "quantizer.dim=8", "quantizer.inner.codebook.size=16"]
    rate = "schedule.most_warmup=null"  # the few steps are all warm-up: at a higher rate one code is left in use
    train_inside(*own, *data, *quantizer, rate, f"run_dir={path}")
    return path


# ---- complete


@pytest.mark.parametrize("name", choices("prior"))
def test_a_completion_keeps_the_given_codes_and_draws_the_others(
    name: str, runs_by_prior: dict[str, Path], tmp_path: Path
) -> None:
    if name not in runs_by_prior:
        pytest.skip(f"{name} takes no images")
    out = sample(
        runs_by_prior[name], tmp_path / "out", "mode=complete", "image=3", "mask=8,4,32,20", "n=6", "singles=true"
    )
    arrays = np.load(out / "completions.npz")
    run_ = opened(runs_by_prior[name])
    given = run_.code_store(run_.tokenizer(), "val").codes(torch.tensor([3]))[0][0].numpy()
    kept, codes = arrays["kept_0"], arrays["codes_0"]
    assert np.array_equal(arrays["given_0"], given)
    assert np.array_equal(~kept, np.pad(np.ones((4, 6), bool), ((1, 3), (2, 0))))  # patches of 4x4 pixels
    assert (codes[:, kept] == given[kept]).all()
    assert (codes[:, ~kept] != codes[:1, ~kept]).any()
    assert (arrays["labels"] == int(run_.split("val").labels[3])).all()
    assert len(list(out.glob("00000*.png"))) == 6


def test_sounds_of_several_maps_are_completed_and_kept_as_sounds(sounds_run: Path, tmp_path: Path) -> None:
    out = sample(sounds_run, tmp_path / "out", "mode=complete", "image=1", "mask=left_half", "n=2", "singles=true")
    arrays = np.load(out / "completions.npz")
    maps = [name for name in arrays if name.startswith("codes_")]
    assert len(maps) > 2
    for m in range(len(maps)):
        kept, given, codes = (arrays[f"{name}_{m}"] for name in ("kept", "given", "codes"))
        assert (codes[:, kept] == given[kept]).all()
    assert not arrays["kept_0"].all()
    assert arrays["kept_" + str(len(maps) - 1)].tolist() == [False] * (len(kept) // 2) + [True] * (len(kept) // 2)
    assert len(list(out.glob("*.wav"))) == 2
    again = sample(sounds_run, tmp_path / "again", "mode=complete", f"image={out / '000000.wav'}", "mask=0,64", "n=1")
    assert np.load(again / "completions.npz")["mask"].tolist() == [True] * 64 + [False] * 192


def test_a_code_is_redrawn_if_its_patch_touches_the_region() -> None:
    region = region_of("3,0,5,1", (8, 8))
    fine, odd, one = kept_codes(region, [torch.zeros(1, *shape) for shape in ((4, 4), (3, 3), (1, 1))])
    assert torch.nonzero(~fine).tolist() == [[0, 1], [0, 2]]
    assert torch.nonzero(~odd).tolist() == [[0, 1]]  # patches 0 .. 2, 2 .. 5, 5 .. 7 of 8
    assert torch.nonzero(~one).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("typed", "same"), [("mask=8,0,32,32", "mask=[8,0,32,32]"), ("mask=right_half", "mask=16,0,32,32")]
)
def test_a_mask_works_as_typed_and_as_a_list(typed: str, same: str, finished_run: Path, tmp_path: Path) -> None:
    outs = [sample(finished_run, tmp_path / m, "mode=complete", "image=0", "n=1", m) for m in (typed, same)]
    first, second = (np.load(out / "completions.npz") for out in outs)
    assert np.array_equal(first["mask"], second["mask"])
    assert np.array_equal(first["codes_0"], second["codes_0"])


def test_a_file_is_read_as_the_data_set_would(finished_run: Path, tmp_path: Path) -> None:
    """A validation image, written at twice the size with its name holding blanks and brackets."""
    image = opened(finished_run).split("val").read(5).permute(1, 2, 0).numpy()
    file = tmp_path / "my, image (1).png"
    Image.fromarray(image).save(file)
    outs = [
        sample(finished_run, tmp_path / str(i), "mode=complete", f"image={name}", "class=star", "n=2")
        for i, name in enumerate((file, 5))
    ]
    first, second = (np.load(out / "completions.npz") for out in outs)
    assert all(np.array_equal(first[name], second[name]) for name in first)


# ---- one seed, one image; settings that change nothing


@pytest.mark.parametrize("mode", ["generate", "complete", "nearest"])
def test_one_seed_gives_one_image_whatever_n(mode: str, finished_run: Path, tmp_path: Path) -> None:
    more = ["image=2"] if mode == "complete" else []
    many = sample(finished_run, tmp_path / "many", f"mode={mode}", "n=4", "seed=10", *more)
    one = sample(finished_run, tmp_path / "one", f"mode={mode}", "n=1", "seed=12", *more)
    (a,), (b,) = (list(out.glob("*.npz")) for out in (many, one))
    for key in ("items", "codes_0", "labels"):
        assert np.array_equal(np.load(a)[key][2], np.load(b)[key][0]), key


def test_many_samples_lie_in_several_files_and_are_those_of_one(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = np.load(sample(finished_run, tmp_path / "one", "n=70") / "samples.npz")
    monkeypatch.setattr(generate, "SHARD", 20)
    monkeypatch.setattr(generate, "MOST_SHOWN", 40)
    out = sample(finished_run, tmp_path / "many", "n=70", "chunk=16", "singles=true")
    shards = [np.load(file) for file in sorted(out.glob("*.npz"))]
    assert [len(shard["seeds"]) for shard in shards] == [32, 32, 6]
    for key in one.files:
        np.testing.assert_array_equal(np.concatenate([shard[key] for shard in shards]), one[key])
    assert len(list(out.glob("0000*.png"))) == 70
    with Image.open(out / "grid.png") as grid:
        assert grid.height == 2 + 5 * (66 + LINE) + LINE  # rows of 8: 40 of the 70


def test_a_grid_shows_all_or_of_many_the_first_of_each_class() -> None:
    assert [list(map(int, numbers)) for numbers, _ in [generate.shown_of(5, 2, 8), generate.shown_of(3, 0, 8)]] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2],
    ]
    numbers, columns = generate.shown_of(50_000, 10, 8)
    assert (columns, len(numbers), numbers[8:16].tolist()) == (8, 80, list(range(5000, 5008)))
    numbers, columns = generate.shown_of(50_000, 0, 8)
    assert (columns, numbers.tolist()) == (8, list(range(1000)))


@pytest.mark.parametrize("name", choices("prior"))
def test_neutral_settings_change_no_bit_and_others_do(
    name: str, runs_by_prior: dict[str, Path], tmp_path: Path
) -> None:
    if name not in runs_by_prior:
        pytest.skip(f"{name} takes no images")
    settings = {
        "plain": ["guidance=1"],
        "neutral": ["guidance=1", "top_p=1", "guidance_schedule=cosine", "temperature=1"],
    }
    settings["guided"] = ["guidance=8", "guidance_schedule=linear"]
    codes = {
        key: np.load(sample(runs_by_prior[name], tmp_path / key, "n=4", *more) / "samples.npz")["codes_0"]
        for key, more in settings.items()
    }
    assert np.array_equal(codes["plain"], codes["neutral"])
    assert not np.array_equal(codes["plain"], codes["guided"])


def test_all_methods_of_an_autoregressive_prior_draw_the_same(finished_run: Path, tmp_path: Path) -> None:
    outs = [sample(finished_run, tmp_path / m, f"method={m}", "n=2") for m in AutoregressivePrior.methods]
    first, *others = (np.load(out / "samples.npz")["codes_0"] for out in outs)
    assert all(np.array_equal(first, other) for other in others)


# ---- the GIF


@pytest.mark.parametrize("name", choices("prior"))
def test_a_gif_fills_in_codes_and_ends_with_the_samples(
    name: str, runs_by_prior: dict[str, Path], tmp_path: Path
) -> None:
    if name not in runs_by_prior:
        pytest.skip(f"{name} takes no images")
    out = sample(runs_by_prior[name], tmp_path, "gif=true", "n=4", "columns=2")
    gif, final = Image.open(out / "progress.gif"), np.asarray(Image.open(out / "grid.png")).astype(int)
    assert 2 < gif.n_frames <= 60
    gray, error = [], []
    for frame in range(gif.n_frames):
        gif.seek(frame)
        pixels = np.asarray(gif.convert("RGB")).astype(int)
        gray.append((abs(pixels - 128) < 3).all(-1).mean())
        error.append(abs(pixels - final).mean())
    assert gif.info["duration"] > 1000
    assert gray[0] > 0.7  # beside the names of classes
    assert gray[-1] < 0.1
    assert error[-1] < 4 < error[0]  # a palette of 256 colors


# ---- interpolate


@pytest.mark.parametrize("which", ["finished_run", "sounds_run"])
def test_the_ends_of_an_interpolation_are_the_reconstructions(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(which)
    out = sample(path, tmp_path, "mode=interpolate", "image=[1,6]", "n=3")
    arrays = np.load(out / "interpolation.npz")
    run_ = opened(path)
    tokenizer = run_.tokenizer()
    items = torch.stack([run_.split("val").read(i) for i in (1, 6)])
    with torch.no_grad():
        expected = to_uint8(tokenizer.decode(tokenizer.encode(normalize(items)))).numpy()
    assert np.array_equal(arrays["ends"], items.numpy())
    assert len(arrays["items"]) == 5
    assert abs(arrays["items"][[0, -1]].astype(int) - expected).max() <= 1  # rounding of other batch sizes
    assert not np.array_equal(arrays["items"][2], arrays["items"][0])


# ---- mistakes


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["mode=complet"], "mode=complet does not exist; did you mean complete?"),
        (["mode=complete"], "mode=complete needs image=..."),
        (["mode=complete", "image=[0,1]"], "needs one image"),
        (["mode=complete", "image=20"], "numbered 0 .. 19"),
        (["mode=complete", "image=nowhere.png"], "neither a file nor the number"),
        (["mode=complete", "image=0", "mask=right_hlaf"], "did you mean right_half?"),
        (["mode=complete", "image=0", "mask=0,0,33,8"], "x goes from 0 to 33, and must go upwards within 0 .. 32"),
        (["mode=complete", "image=0", "mask=[8,4,8,8]"], "is empty: x goes from 8 to 8"),
        (["mode=complete", "image=0", "mask=0,8"], "no region of this data; "),
        (["mode=complete", "image=0", "n=0"], "n=0 must be at least 1 or null"),
        (["mode=interpolate", "image=0"], "needs two images, such as image=[0,1]"),
        (["mode=interpolate", "image=[0,1]", "temperature=2"], "temperature= does not belong to mode=interpolate"),
        (["mask=left_half"], "mask= does not belong to mode=generate; it is a key of mode=complete"),
        (["mode=reconstruct", "folder=/nowhere"], "folder=/nowhere is not a folder"),
        (["mode=reconstruct", f"folder={__file__}"], "put the file into one of its own, and name that"),
        (["mode=reconstruct", "image=my.png"], "mode=reconstruct takes folder=<a folder of images>"),
        (["steps=4"], "steps=4 is for masked priors"),
        (["method=halton"], "method must be one of cached, jacobi, uncached"),
        (["guidance_schedule=square"], "guidance_schedule must be one of constant, linear, cosine"),
        (["guidance=-1"], "guidance=-1 must be at least 0 or null"),
        (["gif=maybe"], "gif=maybe is not true or false"),
        (["steps=few"], "steps=few is not an integer or null"),
    ],
)
def test_mistakes_are_one_sentence(
    overrides: list[str], expected: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in mistake(capsys, finished_run, *overrides)


def test_a_folder_of_runs_names_them(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "dbca":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
    assert "holds no run" in (said := mistake(capsys, tmp_path))
    assert "; below it lie runs: a, b, c, ..." in said


def test_a_run_without_a_prior_reconstructs_and_refuses_the_rest_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    train_inside(*TINY, "quantizer=identity", "stages=[autoencoder]", f"run_dir={path}")
    assert (sample(path, tmp_path / "out", "mode=reconstruct", "n=2") / "reconstructions.png").is_file()
    assert (sample(path, tmp_path / "out", "mode=interpolate", "image=[0,1]") / "interpolation.png").is_file()
    for mode in (["generate"], ["nearest"], ["complete", "image=0"]):
        assert f"mode={mode[0]} needs a prior, and" in mistake(capsys, path, f"mode={mode[0]}", *mode[1:])


def test_guidance_needs_classes_and_a_prior_that_saw_none(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [o for o in TINY if o.startswith(("logger", "debug", "prior"))]
    path = tmp_path / "run"
    train_inside(*own, "prior.class_dropout=0", f"tokenizer={finished_run}", f"run_dir={path}")
    assert "prior.class_dropout=0: train one with prior.class_dropout=0.1" in mistake(capsys, path, "guidance=2")
    for index in range(24):
        write_png(tmp_path / "gray" / f"{index}.png", torch.randint(256, (1, 16, 16), dtype=torch.uint8))
    data = ["data=folder", f"data.root={tmp_path / 'gray'}", "data.image_size=16", "data.channels=1"]
    data += [f"data.cache_dir={tmp_path / 'cache'}"]
    small = [o for o in TINY if not o.startswith("data")]
    train_inside(*small, *SMALL_CODEBOOK, *data, f"run_dir={tmp_path / 'unlabeled'}")
    assert "guidance=2 needs classes, and this model's data has none" in mistake(
        capsys, tmp_path / "unlabeled", "guidance=2"
    )
    out = sample(tmp_path / "unlabeled", tmp_path / "out", "mode=complete", "image=0", "mask=bottom_half", "n=2")
    assert np.load(out / "completions.npz")["labels"].tolist() == [-1, -1]


def test_help_names_every_mode(tmp_path: Path) -> None:
    text = run("sample.py", "--help", cwd=tmp_path).stdout
    for mode in ("complete", "interpolate", "reconstruct", "nearest"):
        assert f"mode={mode}" in text
