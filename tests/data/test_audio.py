"""Recordings as waveforms and spectrograms: splits by index, crops, labels from names, and refusals by name."""

import numpy as np
import pytest
from scipy.io import wavfile

from diffusion_jax import data
from diffusion_jax.config import presets
from diffusion_jax.data.captions import texts_of
from diffusion_jax.types import Spec


@pytest.fixture
def recordings(tmp_path):
    """Two digits of one speaker, 8 recordings each of 300 to 1000 samples, whose first sample is the loudest."""
    rng = np.random.default_rng(0)
    for digit in (3, 7):
        for index in range(8):
            wave = rng.integers(-1000, 1000, 300 + 100 * index).astype(np.int16)
            wave[0] = 2000
            wavfile.write(tmp_path / f"{digit}_ann_{index}.wav", 8000, wave)
    return tmp_path


def load(path, split="train", wanted=(), **arguments):
    options = presets.fsdd(**{"length": 512, **arguments}) | dict(path=str(path), split=split)
    return data.load(**options) if not wanted else data.load(**options, shapes=dict(wanted))


def test_splits_are_by_index_and_classes_those_of_both(recordings):
    train, test = load(recordings), load(recordings, "test")
    assert (len(train), len(test), train.num_classes) == (6, 10, 2)
    assert train.facts["classes"] == ("3", "7")
    np.testing.assert_array_equal(data.arrays(test)["label"], np.repeat([0, 1], 5))


def test_short_recordings_end_in_silence_and_long_ones_are_cropped_at_random(recordings):
    test, train = load(recordings, "test"), load(recordings)
    x = data.arrays(test)["x"]
    assert x.shape == (10, 512, 1) and np.isclose(x[:, 0, 0], 0.95).all()
    assert (x[0, 300:] == 0).all() and (x[0, :300] != 0).mean() > 0.95
    rng, starts = np.random.default_rng(0), set()
    whole = wavfile.read(recordings / "3_ann_7.wav")[1] * (0.95 / 2000)
    for _ in range(30):
        row = train.batch(np.array([2]), rng)["x"][0, :, 0]
        start = next(i for i in range(len(whole) - 511) if np.allclose(whole[i : i + 512], row, atol=1e-6))
        starts.add(start)
    assert len(starts) > 20 and max(starts) <= 1000 - 512


def test_the_mel_spectrogram_of_a_crop_is_its_condition(recordings):
    source = data.sources.audio.open_source(
        **{k: v for k, v in presets.fsdd(length=512).items() if k not in ("name", "eval_split", "path")},
        path=str(recordings),
        wanted={"mel": Spec((8, 40))},
    )
    batch = source.batch(np.arange(3), np.random.default_rng(0))
    expected = source.facts["mel"](batch["x"][..., 0])
    np.testing.assert_allclose(batch["mel"], expected, atol=1e-5)
    mel = load(recordings, features="mel", n_fft=512, hop=128, num_mels=16)
    assert mel.entries["x"] == Spec((4, 16), modality="mel") and data.arrays(mel)["x"].shape == (6, 4, 16)
    image = load(recordings, features="mel_image", n_fft=512, hop=128, num_mels=16)
    np.testing.assert_array_equal(data.arrays(image)["x"][..., 0], data.arrays(mel)["x"])


SPEAKER = r"(?P<label>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)"


def test_templates_make_texts_of_which_training_draws_one(recordings):
    templates = ("{label}", "{label} by {speaker}")
    options = presets.fsdd(length=512) | dict(path=str(recordings), pattern=SPEAKER, templates=templates)
    source = data.load(**options, captions=("three", "seven"), shapes={"tokens": (14,)})
    assert texts_of(source.batch(np.array([0, 3]))["tokens"]) == ["three", "seven"]
    rng = np.random.default_rng(0)
    drawn = [text for _ in range(10) for text in texts_of(source.batch(np.array([0, 3]), rng)["tokens"])]
    assert set(drawn) == {"three", "seven", "three by ann", "seven by ann"}
    numbers = data.load(**options, shapes={"tokens": (14,)})
    assert texts_of(numbers.batch(np.array([0]))["tokens"]) == ["3"]
    # A model that reads no text does not need them.
    assert "tokens" not in data.load(**options).entries


def test_vectors_are_those_of_the_names(recordings, tmp_path):
    names = [path.stem for path in sorted(recordings.glob("*.wav"))][::-1]
    rows = np.arange(2 * len(names), dtype=np.float32).reshape(-1, 2)
    np.savez(tmp_path / "clap.npz", names=names, vectors=rows)
    options = presets.fsdd(length=512) | dict(path=str(recordings), vectors=str(tmp_path / "clap.npz"))
    batch = data.load(**options, shapes={"vector": (2,)}).batch(np.array([0, 5]))
    np.testing.assert_array_equal(batch["vector"], [rows[names.index("3_ann_5")], rows[names.index("7_ann_7")]])
    np.savez(tmp_path / "clap.npz", names=names[1:], vectors=rows[1:])
    with pytest.raises(ValueError, match=r"data\.vectors=.* has no row for 7_ann_7 \(1 of 6 files\)"):
        data.load(**options, shapes={"vector": (2,)})
    np.savez(tmp_path / "clap.npz", names=names, vectors=rows[:, 0])
    with pytest.raises(ValueError, match=r"must be \[n\], \[n, dim\]"):
        data.load(**options, shapes={"vector": (2,)})


def test_folders_of_splits_and_of_classes(tmp_path):
    for split, words in (("train", ("no", "yes")), ("test", ("yes",))):
        for word in words:
            (tmp_path / split / word).mkdir(parents=True)
            wavfile.write(tmp_path / split / word / "a.wav", 8000, np.full(100, 0.5, np.float32))
    options = dict(name="audio", path=str(tmp_path), length=64, pattern=r"(?P<label>[a-z]+)/.+")
    train, test = (data.load(**options, split=split) for split in ("train", "test"))
    assert train.facts["classes"] == test.facts["classes"] == ("no", "yes")
    assert data.arrays(test)["label"].tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(path=""), r"data\.path is empty.*free-spoken-digit-dataset"),
        (
            dict(templates=("{word}",)),
            r"data\.templates=.*KeyError 'word'; the groups of data\.pattern are label, index",
        ),
        (dict(templates=("{label}",), captions=("a",)), r"data\.captions has 1 texts for 2 classes"),
        (dict(vectors="/nowhere.npz", shapes=dict(vector=(2,))), r"data\.vectors='/nowhere\.npz' has no arrays"),
        (dict(path="/nowhere"), r"data\.path='/nowhere' is no folder"),
        (dict(sample_rate=16000), r"8000 samples per second, and data\.sample_rate=16000"),
        (dict(pattern=r"(?P<label>x)(?P<index>\d)"), r"3_ann_0 does not match data\.pattern"),
        (dict(pattern=r"(?P<label>\d).*"), r"data\.held_out=5 needs a data\.pattern with a group"),
        (dict(pattern="("), r"data\.pattern='\(' is no regular expression"),
        (dict(split="validation"), "Unknown split 'validation'"),
        (dict(held_out=9), "The split 'train' is empty"),
        (dict(mel=dict(hop=999)), r"data\.mel=.*hop is 999; it must be at most half of n_fft"),
        (dict(mel=dict(size=3)), r"data\.mel=\{'size': 3\}"),
        (dict(features="text"), r"data\.features='text' must be one of waveform, mel"),
        (dict(length=1), r"data\.length=1 must be an integer of at least 2"),
        (dict(features="mel", length=100), r"data\.length=100 must be a multiple of data\.mel\.hop=64"),
    ],
)
def test_refusals(recordings, changes, words):
    with pytest.raises(ValueError, match=words):
        data.load(**{**presets.fsdd(length=512), "path": str(recordings), **changes})


def test_files_that_cannot_be_read_are_named(recordings):
    (recordings / "3_ann_5.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"3_ann_5\.wav cannot be read as a \.wav file"):
        load(recordings)
    (recordings / "3_ann_5.wav").rename(recordings / "3_ann_5.flac")
    with pytest.raises(ValueError, match=r"3_ann_5\.flac.*(soundfile|cannot be read)"):
        load(recordings)
