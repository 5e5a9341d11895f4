"""How waveforms and mel spectrograms are saved, drawn and compared with recordings."""

import numpy as np
import pytest
from scipy.io import wavfile

from diffusion_jax import data, modalities
from diffusion_jax.config import presets
from diffusion_jax.data.load import open_source
from diffusion_jax.evaluation import audio
from diffusion_jax.guidance.bandwidth import bandwidth
from diffusion_jax.networks.conditions import Conditions, image
from diffusion_jax.networks.diffwave import mel_conditions
from diffusion_jax.types import Spec

WAVEFORM, MEL = (modalities.MODALITIES[name] for name in ("waveform", "mel"))
LENGTH = 1024


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The splits of tones of two pitches, as waveforms with their mel spectrograms and as spectrograms."""
    path, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for digit, frequency in ((0, 300), (1, 1200)):
        for index in range(8):
            tone = np.sin(2 * np.pi * frequency * np.arange(LENGTH) / 8000) + 0.3 * rng.standard_normal(LENGTH)
            wavfile.write(path / f"{digit}_a_{index}.wav", 8000, (8000 * tone).astype(np.int16))
    options = {k: v for k, v in presets.fsdd(length=LENGTH).items() if k not in ("name", "split", "eval_split")}
    options |= dict(path=str(path), wanted={"mel": Spec((LENGTH // 64, 40))})
    return {
        features: [open_source("audio", **options, features=features, split=split) for split in ("train", "test")]
        for features in ("waveform", "mel")
    }


def evaluation(sets, features, conditions, *names):
    train, test = sets[features]
    options = dict(metrics=names)
    return modalities.Evaluation(
        options=options, train=train, test=test, makes=train.entries["x"], conditions=conditions
    )


def test_files_and_pictures(sets, tmp_path):
    source = sets["waveform"][1]
    batch = data.shuffled(source, 3)
    drawn = {"samples": batch["x"], "mel": batch["mel"]}
    views = {**source.facts, "format": "wav"}
    written = WAVEFORM.files(tmp_path / "samples", drawn, None, views)
    assert [path.name for path in written] == ["samples.wav", "samples"]
    rate, whole = wavfile.read(written[0])
    assert rate == 8000 and len(whole) == 3 * (LENGTH + 2000)
    single = wavfile.read(tmp_path / "samples" / "00001.wav")[1]
    np.testing.assert_allclose(single / 32767, batch["x"][1, :, 0], atol=1e-4)
    picture = WAVEFORM.picture(drawn, None, views)
    assert picture.dtype == np.uint8 and picture.shape[-1] == 3 and len(np.unique(picture)) > 50
    assert WAVEFORM.picture({"samples": batch["x"] * np.nan}, None, views) is None
    assert WAVEFORM.files(tmp_path / "none", {"samples": batch["x"] * np.nan}, None, views) == []
    with pytest.raises(ValueError, match="finite"):
        WAVEFORM.stored(batch["x"] * np.nan)
    mels = {"samples": data.arrays(sets["mel"][1])["x"][:2]}
    assert MEL.picture(mels, ["0", "1"], sets["mel"][1].facts).shape[-1] == 3


def test_a_vocoder_is_compared_with_the_recordings_of_its_spectrograms(sets):
    conditions = mel_conditions(LENGTH, 40, (8, 8))
    (metric,) = modalities.metrics(WAVEFORM, evaluation(sets, "waveform", conditions, "vocoder"))
    truth = data.shuffled(sets["waveform"][1], 4)
    values = metric({"samples": truth["x"], "mel": truth["mel"]})
    assert values["lsd"] < 1e-5 < values["lsd_griffin_lim"] and values["mel_error"] < 1e-4
    halved = metric({"samples": truth["x"] / 2, "mel": truth["mel"]})
    np.testing.assert_allclose(halved["lsd"], 2 * np.log10(2), rtol=0.02)
    with pytest.raises(ValueError, match="'mel' of the samples is not that of held-out examples"):
        metric({"samples": truth["x"], "mel": truth["mel"] * 0})


def test_digits_are_recognised(sets, monkeypatch):
    """A classifier by the loudest mel instead of the trained one."""
    loudest = lambda mel: mel.mean(1).argmax(1)
    border = np.sort(np.unique(loudest(sets["mel"][0].batch(np.arange(6))["x"]))).mean()
    monkeypatch.setattr(audio, "train_recognizer", lambda mel, labels: lambda x: (loudest(x) > border).astype(int))
    conditions = Conditions(num_classes=2)
    (metric,) = modalities.metrics(MEL, evaluation(sets, "mel", conditions, "recognition"))
    test = data.arrays(sets["mel"][1])
    values = metric({"samples": test["x"], "label": test["label"]})
    assert values["recognized"] == values["recognized_recordings"] == 1
    assert values["recognized_griffin_lim"] == 1
    wrong = metric({"samples": test["x"], "label": 1 - test["label"]})
    assert wrong["recognized"] == 0 and wrong["recognized_recordings"] == 1


def test_reconstructions_are_recognised_by_the_recordings_they_are_of(sets, monkeypatch):
    monkeypatch.setattr(audio, "train_recognizer", lambda mel, labels: lambda x: (x.mean(1).argmax(1) > 15).astype(int))
    conditions = Conditions({"x": image((LENGTH // 64, 40))})
    (metric,) = modalities.metrics(MEL, evaluation(sets, "mel", conditions, "recognition"))
    test = data.shuffled(sets["mel"][1], 6)
    assert metric({"samples": test["x"], "original": test["x"]})["recognized"] == 1
    for others in ({"original": test["x"][::-1]}, {}):
        with pytest.raises(ValueError, match="'x' of the samples is not that of held-out examples"):
            metric({"samples": test["x"], **others})


def test_bandwidth_extension_is_compared_with_its_input(sets):
    conditions = bandwidth(0.5).conditions((LENGTH, 1))
    (metric,) = modalities.metrics(WAVEFORM, evaluation(sets, "waveform", conditions, "bandwidth"))
    truth = data.shuffled(sets["waveform"][1], 4)["x"]
    known = conditions["image"].operator.measure(truth)
    values = metric({"samples": truth, "image": known})
    assert values["lsd"] < 1e-5 and values["snr"] > 100
    assert values["lsd_input"] > 1 and 5 < values["snr_input"] < 30
    with pytest.raises(ValueError, match="not those of held-out examples"):
        metric({"samples": truth, "image": known[::-1]})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vocoder", "needs a network with the condition 'mel'"),
        ("bandwidth", r"needs config\.editing\.name='bandwidth'"),
        ("recognition", "needs samples of a class"),
    ],
)
def test_metrics_that_cannot_be_given(sets, name, words):
    with pytest.raises(ValueError, match=words):
        modalities.metrics(WAVEFORM, evaluation(sets, "waveform", {}, name))


def test_the_usual_metrics_are_those_that_can_be_given(sets):
    assert len(modalities.metrics(WAVEFORM, evaluation(sets, "waveform", {}, "auto"))) == 0
