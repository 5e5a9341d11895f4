"""Spectrograms of waveforms as pure functions of JAX: the STFT and its inverse, mel spectrograms, Griffin-Lim.

A waveform is [batch, length] with values in [-1, 1]. Its STFT has frames that are centred at multiples of `hop`, under
a periodic Hann window, with reflected ends, as torch.stft and librosa.stft do by default.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Key

from diffusion_jax.types import check

_FLOOR = 1e-5  # of mel amplitudes, -100 dB


def hann(size: int, n_fft: int) -> Float[np.ndarray, "n_fft"]:
    """The periodic Hann window of `size` samples in the middle of `n_fft`."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    left = (n_fft - size) // 2
    return np.pad(window, (left, n_fft - size - left)).astype(np.float32)


def stft(
    x: Float[Array, "batch length"], n_fft: int, hop: int, window: Float[np.ndarray, "n_fft"] | None = None
) -> Complex[Array, "batch frames bins"]:
    """The short-time Fourier transform, 1 + length // hop frames of n_fft // 2 + 1 frequencies."""
    window = hann(n_fft, n_fft) if window is None else window
    padded = jnp.pad(x, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    starts = hop * np.arange(1 + x.shape[1] // hop)
    return jnp.fft.rfft(padded[:, starts[:, None] + np.arange(n_fft)] * window, axis=-1)


def istft(
    spectrum: Complex[Array, "batch frames bins"],
    n_fft: int,
    hop: int,
    length: int,
    window: Float[np.ndarray, "n_fft"] | None = None,
) -> Float[Array, "batch length"]:
    """The waveform whose STFT is nearest to `spectrum` in the mean square: overlapping frames over the sum of squared
    windows (Griffin and Lim, 1984, eq. 6)."""
    window = hann(n_fft, n_fft) if window is None else window
    frames = jnp.fft.irfft(spectrum, n_fft, axis=-1) * window
    count = frames.shape[1]
    places = (hop * np.arange(count)[:, None] + np.arange(n_fft)).ravel()
    size = max(hop * (count - 1) + n_fft, length + n_fft)
    total = jnp.zeros((frames.shape[0], size)).at[:, places].add(frames.reshape(frames.shape[0], -1))
    weight = np.zeros(size, np.float32)
    np.add.at(weight, places, np.tile(window**2, count))
    whole = total / np.where(weight > 1e-8, weight, 1)
    return whole[:, n_fft // 2 : n_fft // 2 + length]


def mel_filters(sample_rate: int, n_fft: int, num_mels: int, f_min: float, f_max: float) -> Float[np.ndarray, "bins n"]:
    """Triangles that are evenly spaced on the mel scale 2595 log10(1 + f / 700), each with the peak 1.

    They are torchaudio's with mel_scale="htk" and no norm.
    """
    to_mel, to_hertz = lambda f: 2595 * np.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1)
    edges = to_hertz(np.linspace(to_mel(f_min), to_mel(f_max), num_mels + 2))
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelSpectrogram:
    """A log-mel spectrogram: waveforms [batch, length] -> [batch, length // hop, num_mels] in [-1, 1].

    The amplitudes of the STFT, divided by the norm of the window, are summed by `mel_filters` and given in decibels:
    -1 is `range` dB below 1, and 1 is the amplitude `reference` dB. With range=100 and reference=20 it is
    2 y - 1 of the y in [0, 1] that DiffWave and WaveGrad read in their authors' implementations.

    Attributes:
        sample_rate: samples per second.
        n_fft: samples of a frame.
        hop: samples from a frame to the next.
        num_mels: filters.
        f_min, f_max: frequencies in Hz that they cover; f_max=0: up to half the sample rate.
        window: samples of the window; 0: n_fft.
        reference, range: in decibels.

    Raises:
        ValueError: numbers that are out of range.
    """

    sample_rate: int = 8000
    n_fft: int = 256
    hop: int = 64
    num_mels: int = 40
    f_min: float = 20.0
    f_max: float = 0.0
    window: int = 0
    reference: float = 20.0
    range: float = 100.0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "hop", "num_mels"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "an integer of at least 1")
        check(self.n_fft % 2 == 0, "n_fft", self.n_fft, "even")
        check(self.hop <= self.n_fft // 2, "hop", self.hop, f"at most half of n_fft, {self.n_fft // 2}")
        check(0 <= self.window <= self.n_fft, "window", self.window, f"in 0..n_fft, {self.n_fft}; 0 for n_fft")
        check((self.window or self.n_fft) >= 2 * self.hop, "window", self.window, f"at least twice hop, {2 * self.hop}")
        check(0 <= self.f_min < self.highest, "f_min", self.f_min, f"in 0..{self.highest:g}, below f_max")
        check(self.highest <= self.sample_rate / 2, "f_max", self.f_max, f"at most {self.sample_rate / 2:g} Hz, or 0")
        check(self.range > 0, "range", self.range, "positive, in decibels")

    @property
    def highest(self) -> float:
        """The highest frequency of the filters, in Hz."""
        return self.f_max or self.sample_rate / 2

    @functools.cached_property
    def filters(self) -> Float[np.ndarray, "bins num_mels"]:
        """The matrix from amplitudes of the STFT to mel amplitudes."""
        return mel_filters(self.sample_rate, self.n_fft, self.num_mels, self.f_min, self.highest)

    @functools.cached_property
    def taper(self) -> Float[np.ndarray, "n_fft"]:
        """The window."""
        return hann(self.window or self.n_fft, self.n_fft)

    def __call__(self, x: Float[Array, "batch length"]) -> Float[Array, "batch frames num_mels"]:
        frames = x.shape[1] // self.hop
        amplitude = jnp.abs(stft(x, self.n_fft, self.hop, self.taper))[:, :frames] / np.linalg.norm(self.taper)
        mel = jnp.einsum("bfk,km->bfm", amplitude, self.filters, precision="highest")
        decibel = 20 * jnp.log10(jnp.maximum(mel, _FLOOR)) - self.reference
        return jnp.clip(2 * decibel / self.range + 1, -1, 1)

    def amplitudes(self, mel: Float[Array, "batch frames num_mels"]) -> Float[Array, "batch frames num_mels"]:
        """Mel amplitudes from their logarithms; what `__call__` has clipped at -1 is 0."""
        amplitude = 10 ** (((mel - 1) * self.range / 2 + self.reference) / 20)
        return jnp.where(mel > -1, amplitude, 0)

    def magnitudes(
        self, mel: Float[Array, "batch frames num_mels"], steps: int = 100
    ) -> Float[Array, "batch frames bins"]:
        """Amplitudes of an STFT with these mel amplitudes: non-negative least squares.

        The updates s <- s (F^T m) / (F^T F s) keep s non-negative and never raise the error (Lee and Seung, 2001).
        """
        filters = jnp.asarray(self.filters)
        target = jnp.einsum("bfm,km->bfk", self.amplitudes(mel), filters, precision="highest")
        gram = jnp.einsum("km,lm->kl", filters, filters, precision="highest")

        def update(_: Array | int, s: Array) -> Array:
            return s * target / jnp.maximum(jnp.einsum("bfk,kl->bfl", s, gram, precision="highest"), 1e-20)

        start = target / jnp.maximum(jnp.sum(gram, 0), 1e-8)
        return jax.lax.fori_loop(0, steps, update, start) * np.linalg.norm(self.taper)

    def invert(
        self, mel: Float[Array, "batch frames num_mels"], steps: int = 32, momentum: float = 0.99
    ) -> Float[Array, "batch length"]:
        """Waveforms [batch, frames hop] by `griffin_lim`, from random phases that are the same in every call."""
        magnitudes = self.magnitudes(mel)
        # The last of the frames, which `__call__` leaves out.
        magnitudes = jnp.concatenate([magnitudes, magnitudes[:, -1:]], axis=1)
        length = mel.shape[1] * self.hop
        return griffin_lim(jax.random.key(0), magnitudes, self.n_fft, self.hop, length, self.taper, steps, momentum)


def griffin_lim(
    key: Key[Array, ""],
    magnitudes: Float[Array, "batch frames bins"],
    n_fft: int,
    hop: int,
    length: int,
    window: Float[np.ndarray, "n_fft"] | None = None,
    steps: int = 32,
    momentum: float = 0.99,
) -> Float[Array, "batch length"]:
    """A waveform whose STFT has amplitudes near `magnitudes`, from random phases.

    Each step takes the phases of the STFT of the waveform that is nearest to the present spectrum. Without momentum the
    distance |STFT(x)| - magnitudes never grows (Griffin and Lim, 1984); with it, the
    phases are those of c + momentum (c - c_before), where c is this STFT, which is proportional to
    c - momentum / (1 + momentum) c_before as in librosa.griffinlim (the fast algorithm, Perraudin et al., 2013).

    Raises ValueError for a negative momentum, or no steps.
    """
    check(momentum >= 0, "momentum", momentum, "at least 0")
    check(steps >= 1, "steps", steps, "at least 1")

    def step(_: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        phases, before = carry
        rebuilt = stft(istft(magnitudes * phases, n_fft, hop, length, window), n_fft, hop, window)
        ahead = rebuilt - momentum / (1 + momentum) * before
        return ahead / jnp.maximum(jnp.abs(ahead), 1e-16), rebuilt

    angles = 2 * jnp.pi * jax.random.uniform(key, magnitudes.shape)
    phases, _ = jax.lax.fori_loop(0, steps, step, (jnp.exp(1j * angles), jnp.zeros(magnitudes.shape, jnp.complex64)))
    return istft(magnitudes * phases, n_fft, hop, length, window)
