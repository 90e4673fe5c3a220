"""Laws of sound files: parts at one rate, crops of every place, silence and damage counted, both stages and what follows."""

from __future__ import annotations

import itertools
import json
import os
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, assert_same_result, error_of, run, stop_at, train_inside
from test_data import CPU

import vqvae
from vqvae.data import sound_files
from vqvae.data.audio import Audio
from vqvae.data.items import ItemEvaluationSet, ItemTrainingSet
from vqvae.data.loader import ItemLoader
from vqvae.data.sound_files import length_of, read_sound
from vqvae.data.tree import list_tree
from vqvae.data.wave_plot import HEIGHT, INK, PAPER, ROWS, plot_sounds
from vqvae.errors import UserError

sf = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")
RATE = 8000
TINY_DATA = [one for one in TINY if not one.startswith("data.")]


def sound(seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise below a quarter of the rate, so that resampling loses nothing: (samples, channels)."""
    noise = np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))
    spectrum = np.fft.rfft(noise, axis=0)
    spectrum[len(spectrum) // 4 :] = 0
    wave_form = np.fft.irfft(spectrum, len(noise), axis=0)
    return (0.5 * wave_form / np.abs(wave_form).max()).astype(np.float32)


def write(file: Path, values: np.ndarray, rate: int = RATE, **settings: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    sf.write(file, values, rate, **settings)
    return file


def folder_of(root: Path, *seconds: float, rate: int = RATE, channels: int = 1, suffix: str = ".wav") -> Path:
    for seed, one in enumerate(seconds):
        write(root / f"{seed}{suffix}", sound(one, rate, channels, seed), rate)
    return root


def audio(root: Path, cache: Path, **settings: Any) -> Audio:
    plain: dict[str, Any] = {"ndim": 1, "channels": 1, "rate": RATE, "seconds": 0.1, "flip": False, "limit": None}
    more = {"workers": 0, "cache_dir": str(cache), "root": str(root), "val_share": 0.25, "split_seed": 0}
    return Audio(**{**plain, "resident": "stream", **more, **settings})


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff", ".opus"])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_is_read_as_what_was_written(suffix: str, channels: int, tmp_path: Path) -> None:
    """Lossy ones within their loss, and a part as the whole has it."""
    values = sound(1.0, channels=channels)
    settings = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
    file = write(tmp_path / f"x{suffix}", values, **settings)
    read = read_sound(file, 0, None, channels, RATE)
    assert read.shape[0] == channels
    assert abs(read.shape[1] - RATE) <= 0.1 * RATE  # mp3 ends with a whole frame
    shift = read[:, : RATE // 2] - values[: RATE // 2].T
    lossy = suffix in (".ogg", ".mp3", ".opus")
    assert np.sqrt(np.square(shift).mean()) < (0.03 if lossy else 1e-4)
    part = read_sound(file, 2000, 1500, channels, RATE)
    assert np.abs(part - read[:, 2000:3500]).max() < 1e-6


@pytest.mark.parametrize("own", [8000, 11025, 16000, 22050, 44100, 48000, 44099])
@pytest.mark.parametrize("start", [-50, 0, 1, 777, 7000])
def test_a_part_of_any_rate_is_that_part_of_the_whole_at_the_rate_asked_for(
    own: int, start: int, tmp_path: Path
) -> None:
    values = sound(1.5, own)
    file = write(tmp_path / "x.wav", values, own, subtype="FLOAT")
    whole = soxr.resample(values, own, RATE)[:, 0] if own != RATE else values[:, 0]
    assert length_of(file, 1, RATE) == len(values) * RATE // own
    part = read_sound(file, start, 900, 1, RATE)[0]
    assert np.abs(part[max(0, -start) :] - whole[max(0, start) : start + 900]).max() < 1e-4
    assert not part[: max(0, -start)].any()


def test_beyond_its_end_a_sound_is_silent(tmp_path: Path) -> None:
    file = write(tmp_path / "x.wav", sound(0.1), subtype="FLOAT")
    part = read_sound(file, 700, 300, 1, RATE)[0]
    assert part[:100].any()
    assert not part[100:].any()
    assert not read_sound(file, 2000, 300, 1, RATE).any()


def test_one_channel_is_the_mean_and_two_are_made_by_repetition(tmp_path: Path) -> None:
    both, one = sound(0.2, channels=2), sound(0.2, seed=5)
    stereo, mono = write(tmp_path / "s.wav", both, subtype="FLOAT"), write(tmp_path / "m.wav", one, subtype="FLOAT")
    assert np.allclose(read_sound(stereo, 0, None, 1, RATE)[0], both.mean(1), atol=1e-6)
    assert np.array_equal(read_sound(stereo, 0, None, 2, RATE), both.T)
    assert np.array_equal(read_sound(mono, 0, None, 2, RATE), np.repeat(one.T, 2, 0))
    with pytest.raises(OSError, match="3 channels, which are not made two"):
        read_sound(write(tmp_path / "t.wav", sound(0.2, channels=3)), 0, None, 2, RATE)


def test_crops_reach_every_place_of_a_file_that_is_long_enough(tmp_path: Path) -> None:
    data = audio(folder_of(tmp_path / "p", 0.5, 0.53, 0.1, 0.12), tmp_path, val_share=0.01)
    room = data.read_size[0] - data.size[0] + 1
    assert data.read_size[0] == 2 * data.size[0] - 1
    for number, (file, (length,)) in enumerate(data.shapes["train"].items()):
        split = data.patches("train")
        begun = {
            start + offset for n, start in split.places.tolist() if split.files[n] == file for offset in range(room)
        }
        if begun and length >= data.read_size[0]:
            assert begun == set(range(length - data.size[0] + 1)), number


@pytest.mark.parametrize("seconds", [0.1, 0.125, 0.15, 0.19])
def test_evaluation_hears_no_padding_of_a_short_file(seconds: float, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "p", 1.0, seconds)
    data = audio(root, tmp_path)
    (length,) = data.dims_of(root / "1.wav")
    (start,) = data.places_in((length,))[0]
    middle = start + (data.read_size[0] - data.size[0]) // 2
    assert 0 <= middle <= length - data.size[0]


def test_files_of_one_length_are_not_padded(tmp_path: Path) -> None:
    data = audio(folder_of(tmp_path / "p", 0.1, 0.1, 0.1), tmp_path)
    assert data.read_size == data.size == (800,)


def test_batches_are_the_same_wherever_items_lie_and_do_not_depend_on_where_one_starts(tmp_path: Path) -> None:
    folder_of(tmp_path / "p", 0.5, 0.3, 0.11, 0.7, rate=11025, channels=2, suffix=".flac")
    sets = []
    for kind, workers, first in (
        ("stream", 0, 0),
        ("stream", 0, 3),
        ("memory", 0, 3),
        ("disk", 0, 3),
        ("stream", 2, 3),
    ):
        data = audio(tmp_path / "p", tmp_path / "c", channels=2, resident=kind, workers=workers, flip=True)
        train, val = (ItemLoader(data, data.split(name), CPU) for name in ("train", "val"))
        batches = list(itertools.islice(ItemTrainingSet(data, train, 6, seed=1).batches_from(first), 7 - first))
        sets.append([*batches[3 - first :], *ItemEvaluationSet(data, val).batches(5)])
    for first_set, *others in zip(*sets):
        assert first_set.x.shape[1:] == (2, 800)
        assert all(torch.equal(first_set.x, other.x) for other in others)


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("suffix", [".ogg", ".mp3", ".opus", ".flac"])
@pytest.mark.parametrize("quiet", [False, True])
def test_parts_are_those_of_the_whole_decode_up_to_the_end(suffix: str, rate: int, quiet: bool, tmp_path: Path) -> None:
    """Where it is quiet, the last page of an Ogg file is seconds long."""
    rate = 48000 if (suffix, rate) == (".opus", 44100) else rate
    values = sound(4.0, rate, 2)
    if quiet:
        values[rate // 2 :] = 0
        values[rate : rate + 99] = values[-99:] = 0.3
    settings = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
    file = write(tmp_path / f"x{suffix}", values, rate, **settings)
    whole = sf.read(file, dtype="float32", always_2d=True)[0].T.clip(-1, 1)
    ends = [-1, -50, -600, -4096, -rate // 10, -rate // 5, -rate * 2 // 5, -rate // 2, -rate, -2 * rate]
    starts = {0, 1, 1152, rate, rate + 1, *(whole.shape[1] + end for end in ends)}
    starts |= set(np.random.default_rng(0).integers(0, whole.shape[1], 30).tolist())
    for start in sorted(starts):
        part = read_sound(file, start, 700, 2, rate)
        there = whole[:, start : start + 700]
        limit = 1e-6 if suffix in (".mp3", ".opus") else 0  # rounding, which depends on where decoding starts
        assert np.abs(part[:, : there.shape[1]] - there).max() <= limit, start
        assert not part[:, there.shape[1] :].any()


def test_an_ogg_file_with_something_behind_its_end_is_decoded_from_its_beginning(tmp_path: Path) -> None:
    file = write(tmp_path / "x.ogg", sound(8.0))
    assert 0 < sound_files.samples_at_end(file, 8 * RATE) < 3 * RATE
    whole = read_sound(file, 0, None, 1, RATE)
    with file.open("ab") as opened:
        opened.write(b"TAG" * 50)
    assert sound_files.samples_at_end(file, 8 * RATE) == 8 * RATE
    for start in (100, 12000, 63000, 63900):
        assert np.array_equal(read_sound(file, start, 100, 1, RATE), whole[:, start : start + 100])


def test_runs_of_earlier_versions_find_their_sounds_again(tmp_path: Path) -> None:
    """Though a few samples of theirs were others: caches of now are not taken for theirs, nor the other way round."""
    root = folder_of(tmp_path / "p", 0.5, 0.5, suffix=".ogg")
    now = audio(root, tmp_path)
    facts = json.loads(json.dumps(now.facts()))
    prints = [now.split("train").fingerprint]
    for known in (facts, {key: value for key, value in facts.items() if key != "exact"}):
        data = audio(root, tmp_path)
        data.recall(known)
        prints.append(data.split("train").fingerprint)
    assert prints[0] == prints[1] != prints[2]
    folder_of(tmp_path / "w", 0.5, 0.5)
    assert audio(tmp_path / "w", tmp_path).identity("train")[-1] != "exact"


def test_names_go_to_the_library_as_text_where_they_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows opens no other names."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    names: list[Any] = []
    opened = sf.SoundFile
    for file, kind in ((tmp_path / "plain.wav", str), (tmp_path / "größe 音.wav", str), (odd, bytes)):
        write(tmp_path / "any.wav", sound(0.1)).rename(file)
        monkeypatch.setattr(sf, "SoundFile", lambda name: names.append(name) or opened(name))
        assert length_of(file, 1, RATE) == 800
        monkeypatch.undo()
        assert type(names[-1]) is kind


def test_how_loud_parts_are_is_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the limit, and again only for files that have changed."""
    root = folder_of(tmp_path / "p" / "train", 0.4, 0.4, 0.3)
    folder_of(tmp_path / "p" / "val", 0.4)
    first = audio(tmp_path / "p", tmp_path / "c", silence_db=-50.0).split("train")
    assert list_tree(tmp_path / "c", None).files == []
    read: list[Path] = []
    plain = Audio.read_patch
    monkeypatch.setattr(Audio, "read_patch", lambda self, file, at: read.append(file) or plain(self, file, at))
    again = audio(tmp_path / "p", tmp_path / "c", silence_db=-50.0).split("train")
    assert again.fingerprint == first.fingerprint
    audio(tmp_path / "p", tmp_path / "c", silence_db=-20.0).split("train")
    assert read == []
    write(root / "1.wav", np.zeros((3200, 1), np.float32))
    changed = audio(tmp_path / "p", tmp_path / "c", silence_db=-50.0).split("train")
    assert set(read) == {root / "1.wav"}
    assert len(changed) < len(first)


def test_silent_parts_are_left_out_on_request_and_counted(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "p" / "train", 0.4, 0.4)
    folder_of(tmp_path / "p" / "val", 0.4)
    quiet = np.concatenate([sound(0.4, seed=7), np.zeros((3200, 1), np.float32)])
    write(root / "quiet.wav", quiet)
    every, loud = (audio(tmp_path / "p", tmp_path, silence_db=limit) for limit in (None, -50.0))
    splits = [one.split("train") for one in (every, loud)]
    assert len(splits[1]) < len(splits[0])
    assert splits[0].fingerprint != splits[1].fingerprint
    assert all(float(splits[1].read(i).square().mean()) > 1e-5 for i in range(len(splits[1])))
    assert any(f"left out as silent: {len(splits[0]) - len(splits[1])} of train" in note for note in loud.notes())
    with pytest.raises(UserError, match=r"no part of the train sounds is louder than data\.silence_db=0"):
        audio(tmp_path / "p", tmp_path, silence_db=0.0).split("train")


def test_files_that_cannot_be_used_are_counted_and_left_out(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "p", *[0.3] * 6)
    (root / "broken.wav").write_bytes(b"RIFF")
    (root / "empty.mp3").write_bytes(b"")
    write(root / "short.wav", sound(0.09))
    data = audio(root, tmp_path, most_unreadable=0.5)
    assert sum(map(len, data.shapes.values())) == 6
    assert any("left out: 3 sounds, such as" in note for note in data.notes())
    assert any("short.wav: it has 0.09 seconds, and an item has 0.1" in lost for lost in data.left_out)
    with pytest.raises(UserError, match="3 of 9 sounds cannot be used"):
        _ = audio(root, tmp_path, most_unreadable=0.1).shapes


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "are NaN or infinite"), (np.inf, "are NaN or infinite"), (3e4, "lie in -1 .. 1")]
)
def test_a_part_with_values_that_are_no_sound_is_replaced_and_named(
    value: float, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of(tmp_path / "p" / "train", 0.5)
    folder_of(tmp_path / "p" / "val", 0.5)
    wrong = sound(0.5)
    wrong[300] = value
    write(root / "wrong.wav", wrong, subtype="FLOAT")
    data = audio(tmp_path / "p", tmp_path, resident="memory")
    loader = ItemLoader(data, data.split("train"), CPU)
    assert 0 < len(loader.unreadable) < len(loader)
    assert loader.images is not None
    assert float(loader.images.abs().max()) <= 1
    assert "wrong.wav" in caplog.text
    assert reason in caplog.text


def test_a_file_that_ends_before_its_header_says_is_no_silence(tmp_path: Path) -> None:
    file = write(tmp_path / "x.flac", sound(2.0))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert length_of(file, 1, RATE) == 2 * RATE
    with pytest.raises(OSError):  # noqa: PT011 - libsndfile's words
        read_sound(file, RATE, RATE, 1, RATE)


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "p", 0.3, 0.3, rate=11025)
    for missing in ("soxr", "soundfile"):

        def without(name: str, gone: str = missing) -> Any:
            if name == gone:
                raise ImportError(f"No module named {gone!r}")
            return sf if name == "soundfile" else soxr

        monkeypatch.setattr(sound_files.importlib, "import_module", without)
        with pytest.raises(UserError, match=f"data=audio needs the package {missing}.*'.\\[audio\\]'"):
            _ = audio(root, tmp_path).shapes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 3}, "channels must be one of 1, 2"),
        ({"rate": 0}, "rate must be at least 1"),
        ({"seconds": 1e-6}, "is less than one sample at rate=8000"),
        ({"root": "gone"}, "name the folder that holds the sounds"),
        ({"root": Path(__file__).parent / "older_runs"}, "no sounds in"),
    ],
)
def test_mistakes_are_one_sentence(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        audio(**{"root": tmp_path, "cache": tmp_path, **settings}).split("train")


def test_louder_is_darker_and_higher_is_higher_in_a_spectrogram() -> None:
    t = torch.arange(8000) / RATE
    tones = torch.stack([torch.sin(2 * torch.pi * f * t) * a for f, a in ((500, 1.0), (500, 0.01), (3000, 1.0))])
    pictures = plot_sounds(tones[:, None])[:, 0, HEIGHT:]
    darkest = [picture.float().mean(1).argmin().item() for picture in pictures]
    assert darkest == [pytest.approx(ROWS * (1 - f / 4000), abs=2) for f in (500, 500, 3000)]
    assert INK <= int(pictures[0].min()) < int(pictures[1].min()) < PAPER
    assert bool((plot_sounds(torch.zeros(1, 1, 800))[:, :, HEIGHT:] == PAPER).all())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run on sounds of two classes at 11,025 samples per second, brought to 8,000; and what it was started with."""
    folder = tmp_path_factory.mktemp("audio")
    for split, name in itertools.product(("train", "val"), ("a", "b")):
        folder_of(folder / "p" / split / name, 0.2, 0.07, rate=11025, suffix=".flac")
    own = [one for one in TINY_DATA if not one.startswith("prior.network")]
    data = ["data=audio", f"data.root={folder / 'p'}", "data.rate=8000", "data.seconds=0.04", "data.channels=2"]
    data += ["data.workers=0", "data.resident=stream", f"data.cache_dir={folder / 'c'}"]
    prior = ["prior=wavenet", "prior.network.width=8", "prior.network.layers=2"]
    overrides = [*own, *SMALL_CODEBOOK, *data, *prior]
    train_inside(*overrides, f"run_dir={folder / 'run'}")
    return folder / "run", overrides


def heard(file: Path) -> tuple[int, int, np.ndarray]:
    """Rate, channels, and samples (n, channels) of a .wav file of 16 bits."""
    with wave.open(str(file)) as opened:
        values = np.frombuffer(opened.readframes(opened.getnframes()), "<i2")
        return opened.getframerate(), opened.getnchannels(), values.reshape(-1, opened.getnchannels()) / 32767


def test_a_run_on_sound_files_that_was_stopped_ends_as_one_that_was_not(
    trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, overrides = trained
    stop_at(monkeypatch, "autoencoder", 3)
    with pytest.raises(SystemExit):
        train_inside(*overrides, f"run_dir={tmp_path / 'again'}")
    monkeypatch.undo()
    train_inside(*overrides, f"run_dir={tmp_path / 'again'}")
    assert_same_result(path, tmp_path / "again")


def test_samples_are_sounds_of_the_data_rate(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    assert {file.name for file in (trained[0] / "samples").iterdir()} == {"a.wav", "b.wav"}
    run("sample.py", f"run_dir={trained[0]}", "n=2", f"out={tmp_path}")
    drawn = np.load(tmp_path / "samples.npz")["items"]
    assert (drawn.shape, drawn.dtype) == ((2, 2, 320), np.dtype("float32"))
    for file, item in zip(sorted(tmp_path.glob("*.wav")), drawn, strict=True):
        rate, channels, values = heard(file)
        assert (rate, channels) == (8000, 2)
        assert np.abs(values.T - item).max() <= 0.5 / 32767 + 1e-6
    run("sample.py", f"run_dir={trained[0]}", "n=2", "singles=false", f"out={tmp_path / 'none'}")
    assert not list((tmp_path / "none").glob("*.wav"))


def test_a_sound_is_continued_after_the_seconds_that_are_kept(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    given = write(tmp_path / "given.wav", sound(0.5, 11025), 11025)
    run(
        "sample.py",
        f"run_dir={trained[0]}",
        "mode=complete",
        f"image={given}",
        "keep=0.01",
        "n=4",
        f"out={tmp_path / 'o'}",
    )
    arrays = np.load(tmp_path / "o" / "completions.npz")
    assert arrays["mask"].tolist() == [False] * 80 + [True] * 240
    assert arrays["kept_0"].tolist() == [True] * 20 + [False] * 60
    assert (arrays["codes_0"][:, :20] == arrays["given_0"][:20]).all()
    assert len(np.unique(arrays["codes_0"], axis=0)) > 1
    assert len(list((tmp_path / "o").glob("*.wav"))) == 4
    model = vqvae.load(trained[0])
    first = torch.from_numpy(read_sound(given, 0, 320, 2, 8000))[None]
    assert np.array_equal(model.encode(first)[0][0].numpy(), arrays["given_0"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["keep=0.04"], "keep=0.04 leaves nothing to draw: sounds of this run have 0.04 seconds"),
        (["keep=0.01", "mask=0,8"], "leave one out"),
        (["keep=-1"], "keep=-1 must be above 0"),
    ],
)
def test_what_cannot_be_kept_is_one_sentence(
    settings: list[str], message: str, trained: tuple[Path, list[str]]
) -> None:
    said = run("sample.py", f"run_dir={trained[0]}", "mode=complete", "image=0", *settings, check=False)
    assert said.returncode == 2
    assert message in said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize("size", [[], ["size=original"]])
def test_reconstructions_of_sound_files_are_written(
    size: list[str], trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """As items, or of the length that the files have."""
    source = folder_of(tmp_path / "in", 0.1, 0.051, rate=11025)
    (source / "no.wav").write_bytes(b"RIFF")
    said = run(
        "sample.py", f"run_dir={trained[0]}", "mode=reconstruct", f"folder={source}", f"out={tmp_path / 'o'}", *size
    )
    assert "1 file skipped" in said.stdout
    lengths = {file.stem[0]: len(heard(file)[2]) for file in (tmp_path / "o").glob("*_reconstructed.wav")}
    assert lengths == ({"0": 799, "1": 407} if size else {"0": 320, "1": 320})


def test_a_header_that_tells_of_more_than_its_file_can_hold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lie.flac"
    sf.write(file, sound(0.5), RATE)
    data = bytearray(file.read_bytes())
    assert data[:4] == b"fLaC"
    data[21], data[22:26] = data[21] | 0x0F, b"\xff" * 4  # the number of samples, 36 bits
    file.write_bytes(data)
    with pytest.raises(OSError, match="more than a file of its size can hold"):
        length_of(file, 1, RATE)


def test_files_that_differ_in_their_endings_alone_have_results_of_their_own(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.wav", "a.flac"):
        sf.write(tmp_path / "in" / name, sound(0.05), RATE)
    own = [f"run_dir={trained[0]}", "mode=reconstruct", f"folder={tmp_path / 'in'}", f"out={tmp_path / 'o'}"]
    run("sample.py", *own)
    made = {file.name for file in (tmp_path / "o").glob("*_reconstructed.wav")}
    assert len(made) == 2


def test_a_run_on_sound_files_is_evaluated_and_exported(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    run("scripts/evaluate.py", f"run_dir={trained[0]}", f"out={tmp_path / 'e.json'}")
    assert "autoencoder/psnr_db" in (tmp_path / "e.json").read_text()
    run("scripts/export.py", f"run_dir={trained[0]}", f"out={tmp_path / 'export'}")
    model = vqvae.load(tmp_path / "export")
    assert model.data.sample_rate == 8000
    assert model.values(model.sample([0])).dtype == np.dtype("float32")


def test_the_command_line_refuses_seconds_that_the_stride_does_not_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["data=audio", f"data.root={folder_of(tmp_path / 'p', 0.5, 0.5)}", "data.rate=8000", "data.seconds=0.05025"]
    said = error_of(capsys, *TINY_DATA, *data, f"run_dir={tmp_path / 'run'}")
    assert "data.seconds=0.05025: a size of 402 does not divide by the encoder's stride 4" in said
    assert said.count("\n") == 1


def test_facts_bring_back_the_data_without_its_files(tmp_path: Path) -> None:
    data = audio(folder_of(tmp_path / "p", 0.5, 0.5), tmp_path)
    again = audio(tmp_path / "gone", tmp_path)
    again.recall(json.loads(json.dumps(data.facts())))
    assert (again.read_size, again.class_names) == (data.read_size, [])
