"""Spectrograms by their identities: Parseval, the inverse, tones in their bins, and a distance that never grows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data import spectrograms
from diffusion_jax.data.spectrograms import MelSpectrogram, griffin_lim, istft, stft


def noise(n=2, length=1024, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, length)).astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop", "length"), [(256, 64, 1024), (128, 32, 1000), (64, 32, 333)])
def test_the_inverse_is_exact(n_fft, hop, length):
    x = noise(length=length)
    np.testing.assert_allclose(istft(stft(x, n_fft, hop), n_fft, hop, length), x, atol=2e-6)


def test_parseval_of_frames():
    x, n_fft, hop = noise(1), 256, 64
    spectrum = np.asarray(stft(x, n_fft, hop))[0]
    padded = np.pad(x[0], n_fft // 2, mode="reflect")
    frames = np.stack([padded[i * hop : i * hop + n_fft] for i in range(len(spectrum))]) * spectrograms.hann(256, 256)
    twice = np.r_[1, np.full(n_fft // 2 - 1, 2), 1]
    np.testing.assert_allclose((np.abs(spectrum) ** 2 * twice).sum(1) / n_fft, (frames**2).sum(1), rtol=1e-4)


def test_a_tone_is_in_its_bin_and_its_level_is_known():
    front_end = MelSpectrogram(n_fft=256, hop=64, num_mels=40, reference=0.0)
    tone = np.cos(2 * np.pi * 1000 * np.arange(4096) / 8000)[None].astype(np.float32)
    spectrum = np.abs(stft(jnp.asarray(tone), 256, 64))[0, 20]
    assert spectrum.argmax() == 32  # 1000 / (8000 / 256)
    np.testing.assert_allclose(spectrum[32], 256 / 4, rtol=1e-4)  # half the sum of the window
    mel, softer = (np.asarray(front_end(jnp.asarray(level * tone)))[0, 20] for level in (0.1, 0.01))
    centres = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 4000 / 700), 42) / 2595) - 1)
    assert abs(centres[1 + mel.argmax()] - 1000) < 80
    np.testing.assert_allclose((mel - softer)[mel.argmax()], 2 * 20 / 100, atol=1e-5)  # 20 of 100 dB


def test_mel_filters_cover_the_band_with_the_peak_one():
    filters = spectrograms.mel_filters(8000, 2048, 20, 100.0, 4000.0)
    frequencies = np.linspace(0, 4000, 1025)
    edges = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 100 / 700), 2595 * np.log10(1 + 4000 / 700), 22) / 2595) - 1)
    inside = (frequencies >= edges[1]) & (frequencies <= edges[-2])
    np.testing.assert_allclose(filters.sum(1)[inside], 1, atol=1e-5)
    assert (filters[frequencies < 100] == 0).all() and filters.max() <= 1 and (filters.max(0) > 0.9).all()


def test_silence_is_the_lowest_value_and_inverts_to_silence():
    front_end = MelSpectrogram()
    mel = front_end(jnp.zeros((1, 512)))
    assert (np.asarray(mel) == -1).all() and mel.shape == (1, 8, 40)
    assert np.abs(front_end.invert(mel, steps=2)).max() == 0


def test_mel_amplitudes_are_fitted_by_non_negative_ones():
    front_end = MelSpectrogram()
    mel = front_end(jnp.asarray(noise()))
    magnitudes = np.asarray(front_end.magnitudes(mel))
    fitted = magnitudes / np.linalg.norm(front_end.taper) @ front_end.filters
    np.testing.assert_allclose(fitted, front_end.amplitudes(mel), rtol=0.02)
    assert magnitudes.min() >= 0


def test_griffin_lim_never_grows_without_momentum_and_keeps_a_consistent_spectrogram():
    x = noise(1, 512)
    magnitudes = jnp.abs(stft(x, 128, 32))

    def distance(steps, momentum):
        y = griffin_lim(jax.random.key(0), magnitudes, 128, 32, 512, steps=steps, momentum=momentum)
        return float(jnp.linalg.norm(jnp.abs(stft(y, 128, 32)) - magnitudes))

    plain = [distance(steps, 0.0) for steps in (1, 2, 4, 8, 16)]
    assert all(a >= b * 0.999 for a, b in itertools.pairwise(plain)) and plain[-1] < 0.8 * plain[0]
    assert distance(16, 0.99) < plain[-1]  # the fast algorithm
    with pytest.raises(ValueError, match="momentum is -1"):
        distance(1, -1.0)
