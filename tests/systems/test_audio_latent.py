"""First stages of spectrograms and latent diffusion on them: what must agree, and the way from texts to .wav files."""

import json

import numpy as np
import pytest
from scipy.io import wavfile

from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import encode, evaluate, sample, train
from tests.config.test_configs import as_if_trained, read
from tests.runs import changed

SHORT = dict(num_steps=4, batch_size=4, checkpoint_every=4)
TINY = {f"training__{key}": value for key, value in SHORT.items()} | dict(evaluation__after_training=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(data__mel__f_min=50.0), r"was trained on spectrograms of .*f_min=20\.0.*data\.mel gives .*f_min=50\.0"),
        (dict(data__length=4096), r"is for examples of \(24, 32, 1\); those of config\.data are \(16, 32, 1\)"),
        (dict(data__features="mel"), r"is for examples of \(24, 32, 1\); those of config\.data are \(24, 32\)"),
    ],
)
def test_data_that_the_first_stage_does_not_know_is_refused(changes, words):
    config = changed(read("audio_latent:fsdd"), **changes)
    config.system.first_stage = as_if_trained("audio_latent:fsdd_first_stage")
    with pytest.raises(ConfigError, match=words):
        build.build(config)


@pytest.mark.parametrize(("features", "shape"), [("mel", r"\(24, 32\)"), ("waveform", r"\(6144, 1\)")])
def test_an_autoencoder_reads_spectrograms_as_images(features, shape):
    config = changed(read("audio_latent:fsdd_first_stage"), data__features=features)
    with pytest.raises(ConfigError, match=rf"spectrograms with .*'mel_image', .* holds {features} of {shape}"):
        build.build(config)


@pytest.mark.slow
def test_from_recordings_to_sounds_of_words(tmp_path):
    """Two stages are trained for four steps; samples under texts are spectrograms, and sounds of their length."""
    recordings, random = tmp_path / "recordings", np.random.default_rng(0)
    recordings.mkdir()
    for label in range(10):
        for index in range(7):
            wave = np.sin(np.pi * (label + 1) * np.arange(3000) / 20) + 0.1 * random.standard_normal(3000)
            wavfile.write(recordings / f"{label}_ann_{index}.wav", 8000, (8000 * wave).astype(np.int16))
    where = dict(data__path=str(recordings), data__length=4096, **TINY)
    stage = changed(read("audio_latent:fsdd_first_stage"), **where, evaluation__num_samples=8)
    train.train(stage, tmp_path / "stage")
    evaluate.evaluate(stage, tmp_path / "stage")
    values = json.loads((tmp_path / "stage" / "evaluation.json").read_text())
    assert {"recognized", "recognized_griffin_lim", "recognized_recordings", "held_out_psnr"} <= values.keys()
    encode.encode(stage, tmp_path / "stage", tmp_path / "latents")

    config = changed(read("audio_latent:fsdd"), **where, network__channels=16, network__attention_resolutions=(4, 2))
    changed(config, system__first_stage=str(tmp_path / "stage"), sampling__steps=2, sampling__num_samples=3)
    train.train(config, tmp_path / "words")
    changed(config, sampling__cond="three by ann|nine", sampling__format="wav")
    sample.sample(config, tmp_path / "words")
    saved = np.load(tmp_path / "words" / "samples" / "samples.npz")
    assert saved["samples"].shape == (3, 16, 32, 1)
    assert saved["cond"].tolist() == ["three by ann", "nine", "three by ann"]
    rate, wave = wavfile.read(tmp_path / "words" / "samples" / "samples" / "00001.wav")
    assert (rate, len(wave)) == (8000, 4096)

    config.data = dict(name="latents", path=str(tmp_path / "latents"), split="train", eval_split="train")
    with pytest.raises(ConfigError, match=r"config\.data\.name='latents' must be 'audio'"):
        build.build(config)
