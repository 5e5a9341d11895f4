"""Metrics of audio by their identities, and a classifier of spectrograms on tones."""

import numpy as np

from diffusion_jax.evaluation import audio


def waves(n=3, length=4096, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, length)).astype(np.float32)


def test_log_spectral_distance_of_a_level():
    x = waves()
    np.testing.assert_allclose(audio.lsd(x, x), 0, atol=1e-6)
    for factor in (0.5, 3.0):
        np.testing.assert_allclose(audio.lsd(x, factor * x), abs(2 * np.log10(factor)), rtol=1e-4)
    assert (audio.lsd(x, waves(seed=1)) > 0.5).all()


def test_silence_of_the_truth_does_not_count():
    x = waves()
    padded = np.pad(x, ((0, 0), (0, 8192)))
    louder = padded * 2
    np.testing.assert_allclose(audio.lsd(padded, louder), 2 * np.log10(2), rtol=0.02)
    assert (audio.lsd(np.zeros_like(x), x) == 0).all()


def test_signal_to_noise_ratio():
    x, noise = waves(), waves(seed=1)
    expected = 10 * np.log10((x**2).sum(1) / (0.01 * noise**2).sum(1))
    np.testing.assert_allclose(audio.snr(x, x + 0.1 * noise), expected, rtol=1e-4)
    assert (audio.snr(x, x) > 100).all()


def test_a_classifier_tells_bands_apart_and_is_deterministic():
    random = np.random.default_rng(0)
    labels = np.arange(48) % 3
    mel = random.uniform(-1, -0.6, (48, 12, 16)).astype(np.float32)
    for row, label in zip(mel, labels, strict=True):
        row[:, 5 * label : 5 * label + 4] += 1
    recognize = audio.train_recognizer(mel[:24], labels[:24], epochs=40, batch_size=24)
    assert (recognize(mel[24:]) == labels[24:]).all()
    again = audio.train_recognizer(mel[:24], labels[:24], epochs=40, batch_size=24)
    np.testing.assert_array_equal(again(mel), recognize(mel))
