"""Metrics of audio: log-spectral distance, signal-to-noise ratio, and a classifier of log-mel spectrograms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PyTree

from diffusion_jax.data.spectrograms import stft
from diffusion_jax.types import Params

_N_FFT, _HOP = 512, 128
_FLOOR = 1e-8  # of the power of a frequency


def lsd(truth: Float[np.ndarray, "n length"], x: Float[np.ndarray, "n length"]) -> Float32[np.ndarray, "n"]:
    """Log-spectral distance: the root mean square over frequencies of log10 |X|^2 - log10 |Y|^2, the mean over frames.

    Frames of 512 samples, 128 apart, with powers of at least 1e-8. Frames in which `truth` is digital silence are left
    out. LSD(x, c x) = |2 log10 c| where no power is below the floor.
    """
    return np.asarray(_lsd(jnp.asarray(truth, jnp.float32), jnp.asarray(x, jnp.float32)))


@jax.jit
def _lsd(truth: jax.Array, x: jax.Array) -> jax.Array:
    powers = [jnp.abs(stft(wave, _N_FFT, _HOP)) ** 2 for wave in (truth, x)]
    heard = jnp.any(powers[0] > _FLOOR, axis=-1)
    logs = [jnp.log10(jnp.maximum(power, _FLOOR)) for power in powers]
    distance = jnp.sqrt(jnp.mean((logs[0] - logs[1]) ** 2, axis=-1))
    return jnp.sum(distance * heard, axis=-1) / jnp.maximum(jnp.sum(heard, axis=-1), 1)


def snr(truth: Float[np.ndarray, "n length"], x: Float[np.ndarray, "n length"]) -> Float[np.ndarray, "n"]:
    """Signal-to-noise ratio in decibels, 10 log10 sum truth^2 / sum (truth - x)^2."""
    truth, x = np.asarray(truth, np.float64), np.asarray(x, np.float64)
    noise = np.maximum(np.sum((truth - x) ** 2, -1), 1e-30)
    return 10 * np.log10(np.maximum(np.sum(truth**2, -1), 1e-30) / noise)


class Recognizer(nnx.Module):
    """Strided convolutions over a log-mel spectrogram, mean and maximum over time, and a layer of logits."""

    def __init__(self, num_mels: int, num_classes: int, *, rngs: nnx.Rngs) -> None:
        sizes = (1, 32, 64, 64)
        pairs = itertools.pairwise(sizes)
        self.convs = nnx.List([nnx.Conv(a, b, (5, 5) if a == 1 else (3, 3), strides=2, rngs=rngs) for a, b in pairs])
        self.hidden = nnx.Linear(2 * sizes[-1] * math.ceil(num_mels / 8), 64, rngs=rngs)
        self.logits = nnx.Linear(64, num_classes, rngs=rngs)

    def __call__(self, mel: Float[Array, "n frames mels"]) -> Float[Array, "n classes"]:
        x = mel[..., None] - jnp.mean(mel, axis=(1, 2), keepdims=True)[..., None]
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        x = jnp.concatenate([jnp.mean(x, axis=1), jnp.max(x, axis=1)], axis=-1)
        return self.logits(jax.nn.relu(self.hidden(x.reshape(len(x), -1))))


def train_recognizer(
    mel: Float[np.ndarray, "n frames mels"],
    labels: Int[np.ndarray, "n"],
    *,
    seed: int = 0,
    epochs: int = 300,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
) -> Callable[[Float[np.ndarray, "n frames mels"]], Int[np.ndarray, "n"]]:
    """A function from log-mel spectrograms in [-1, 1] to classes: a small network trained on the given ones.

    It sees them faster and slower, later, at other pitches and levels and with parts erased, all at random. The result
    depends on the arguments alone.
    """
    mel, labels = np.asarray(mel, np.float32), np.asarray(labels)
    num_classes, batch_size = int(labels.max()) + 1, min(batch_size, len(mel))
    graph, state = nnx.split(Recognizer(mel.shape[2], num_classes, rngs=nnx.Rngs(seed)))
    num_steps = epochs * (len(mel) // batch_size)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(num_steps, learning_rate), weight_decay=1e-2)
    params, random = nnx.to_pure_dict(state), np.random.default_rng(seed)
    opt_state = optimizer.init(params)

    def loss(params: Params, x: Array, y: Array) -> Array:
        logits = nnx.merge(graph, params)(x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    @jax.jit
    def update(params: Params, opt_state: PyTree, x: Array, y: Array) -> tuple[Params, PyTree]:
        updates, opt_state = optimizer.update(jax.grad(loss)(params, x, y), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(epochs):
        order = random.permutation(len(mel))
        for start in range(0, len(mel) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            params, opt_state = update(params, opt_state, _augmented(random, mel[rows]), labels[rows])
    forward = jax.jit(lambda x: jnp.argmax(nnx.merge(graph, params)(x), axis=-1))
    return lambda x: np.asarray(forward(jnp.asarray(x, jnp.float32)))


def _augmented(random: np.random.Generator, mel: Float[np.ndarray, "n frames mels"]) -> np.ndarray:
    """Spectrograms with random speed, start, pitch and level, and with a stretch of time and of frequency erased."""
    n, frames, mels = mel.shape
    speed, late = random.uniform(0.8, 1.25, n), random.uniform(-0.1, 0.1, n) * frames
    time = np.arange(frames) * speed[:, None] - late[:, None]
    pitch = np.arange(mels) * random.uniform(0.92, 1.08, n)[:, None] + random.uniform(-1.5, 1.5, n)[:, None]
    left = np.clip(np.round(time).astype(int), 0, frames - 1)
    low = np.clip(pitch, 0, mels - 1)
    floor = np.minimum(low.astype(int), mels - 2)
    share = (low - floor)[:, None].astype(np.float32)
    rows, columns = np.arange(n)[:, None, None], left[:, :, None]
    x = (1 - share) * mel[rows, columns, floor[:, None]] + share * mel[rows, columns, floor[:, None] + 1]
    x = np.where(((time >= 0) & (time < frames))[..., None], x, -1)
    x = np.maximum(x + random.uniform(-0.1, 0.1, (n, 1, 1)) * (x > -1), -1)
    for axis, size in ((1, frames // 12), (2, mels // 8)):
        first = random.integers(0, x.shape[axis] - size, n)[:, None]
        erased = (np.arange(x.shape[axis]) >= first) & (np.arange(x.shape[axis]) < first + size)
        x = np.where(np.expand_dims(erased, 3 - axis), -1, x)
    return x.astype(np.float32)
