"""Waveforms, and log-mel spectrograms of them: saved as .wav files, drawn as spectrograms, compared with recordings."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8
from scipy.io import wavfile

from diffusion_jax import data
from diffusion_jax.data.spectrograms import MelSpectrogram
from diffusion_jax.evaluation import audio, sheets
from diffusion_jax.modalities.base import Drawn, Evaluation, Metric, Modality, Views, Words, held_out, need

_SHOWN = 16  # spectrograms on a sheet, and samples in one .wav file
_PAUSE = 0.25  # seconds between them


def stored(samples: np.ndarray) -> Float32[np.ndarray, "n *shape"]:
    """Samples in [-1, 1]; what is outside is clipped. Raises ValueError for values that are not finite."""
    samples = np.asarray(samples, np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("waveforms must be finite, got NaN or infinity")
    return np.clip(samples, -1, 1)


def picture(drawn: Drawn, words: Words, views: Views) -> UInt8[np.ndarray, "height width 3"] | None:
    """A sheet of the first 16 log-mel spectrograms with their words; of a vocoder each follows its condition."""
    samples, front_end = np.asarray(drawn["samples"]), views.get("mel", MelSpectrogram())
    if not np.isfinite(samples).all():
        return None
    panels = [np.asarray(drawn[name]) for name in ("original", "measured", "mel", "samples") if name in drawn]
    n = len(panels)
    mels = np.stack([_mels(panel[: _SHOWN // n], front_end) for panel in panels], 1)
    labels = words and [word for word in words[: len(mels)] for _ in panels]
    return sheets.spectrogram_sheet(mels.reshape(-1, *mels.shape[2:]), columns=4 if n < 3 else n, labels=labels)


def _mels(x: np.ndarray, front_end: MelSpectrogram) -> Float32[np.ndarray, "n frames mels"]:
    """Log-mel spectrograms of waveforms [n, length, 1], or of spectrograms [n, frames, mels(, 1)] these themselves."""
    if x.shape[-1] == 1 and x.ndim == 3:
        return np.asarray(jax.jit(front_end)(jnp.asarray(x[..., 0])))
    return x.reshape(x.shape[:3])


def files(path: pathlib.Path, drawn: Drawn, words: Words, views: Views) -> list[pathlib.Path]:
    """`path`.wav with the first 16 samples, one after another; with the format "wav" also one file for each.

    Mel spectrograms are inverted by Griffin-Lim.
    """
    samples, front_end = np.asarray(drawn["samples"]), views.get("mel", MelSpectrogram())
    if not np.isfinite(samples).all():
        return []
    rate, single = front_end.sample_rate, views.get("format") == "wav"
    waves = _waves(samples if single else samples[:_SHOWN], front_end)
    target = path.with_name(f"{path.name}.wav")
    padded = np.pad(waves[:_SHOWN], ((0, 0), (0, int(_PAUSE * rate))))
    _write(target, rate, padded.ravel())
    if not single:
        return [target]
    path.mkdir(parents=True, exist_ok=True)
    digits = max(5, len(str(len(waves) - 1)))
    for i, wave in enumerate(waves):
        _write(path / f"{i:0{digits}}.wav", rate, wave)
    return [target, path]


def _waves(samples: np.ndarray, front_end: MelSpectrogram) -> Float32[np.ndarray, "n length"]:
    """Waveforms without the axis of channels; those of spectrograms by Griffin-Lim."""
    if samples.ndim == 3 and samples.shape[-1] == 1:
        return samples[..., 0]
    return np.asarray(_inverted(front_end)(jnp.asarray(_mels(samples, front_end))))


@functools.lru_cache(maxsize=4)
def _inverted(front_end: MelSpectrogram) -> Callable:
    return jax.jit(lambda mel: front_end.invert(jnp.clip(mel, -1, 1)))


def _write(file: pathlib.Path, rate: int, wave: np.ndarray) -> None:
    wavfile.write(file, rate, np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16))


def _front_end(evaluation: Evaluation) -> MelSpectrogram:
    return evaluation.train.facts["mel"]


def _truth(evaluation: Evaluation, drawn: Drawn) -> dict[str, np.ndarray]:
    """The held-out examples whose conditions the samples have, or whose reconstructions they are.

    Raises ValueError where these are others.
    """
    num = len(drawn["samples"])
    truth = data.shuffled(held_out(evaluation), num)
    truth = {name: value[np.arange(num) % len(value)] for name, value in truth.items()}
    for name in evaluation.conditions:
        given = drawn.get("original" if name == "x" else name)
        if name in truth and name != "label" and (given is None or not np.allclose(truth[name], given, atol=1e-4)):
            raise ValueError(
                f"{name!r} of the samples is not that of held-out examples: leave config.sampling.cond empty"
            )
    return truth


def _vocoder(evaluation: Evaluation) -> Metric:
    """Log-spectral distance of samples to the recordings whose mel spectrograms they have; next to Griffin-Lim's."""
    need(evaluation, "waveform", "waveforms")
    if "mel" not in evaluation.conditions:
        raise ValueError("it needs a network with the condition 'mel', config.network.num_mels")

    def metric(drawn: Drawn) -> dict[str, Any]:
        truth, front_end = _truth(evaluation, drawn)["x"][..., 0], _front_end(evaluation)
        inverted = np.asarray(_inverted(front_end)(jnp.asarray(drawn["mel"])))
        samples = stored(drawn["samples"])[..., 0]
        return {
            "lsd": float(audio.lsd(truth, samples).mean()),
            "lsd_griffin_lim": float(audio.lsd(truth, inverted).mean()),
            "mel_error": float(np.abs(_mels(samples[..., None], front_end) - drawn["mel"]).mean()),
        }

    return metric


def _bandwidth(evaluation: Evaluation) -> Metric:
    """Log-spectral distance and signal-to-noise ratio of held-out recordings whose upper frequencies are drawn.

    Next to them those of the low-passed input.
    """
    need(evaluation, "waveform", "waveforms")
    operators = {name: c.operator for name, c in evaluation.conditions.items() if c.operator}
    if not operators:
        raise ValueError("it needs config.editing.name='bandwidth', or guidance by a measurement")
    ((name, operator),) = operators.items()

    def metric(drawn: Drawn) -> dict[str, Any]:
        num = len(drawn["samples"])
        truth = data.shuffled(held_out(evaluation), num)["x"]
        truth = truth[np.arange(num) % len(truth)]
        if not np.allclose(operator.measure(truth), drawn[name], atol=1e-4):
            raise ValueError("the measurements are not those of held-out examples: leave config.sampling.cond empty")
        values = {}
        for suffix, x in (("", stored(drawn["samples"])), ("_input", np.asarray(drawn[name]))):
            values[f"lsd{suffix}"] = float(audio.lsd(truth[..., 0], x[..., 0]).mean())
            values[f"snr{suffix}"] = float(audio.snr(truth[..., 0], x[..., 0]).mean())
        return values

    return metric


def _recognition(evaluation: Evaluation) -> Metric:
    """Share of the samples that a classifier of log-mel spectrograms recognises as their class; also of recordings."""
    kind = evaluation.makes.modality
    need(evaluation, kind, "recordings")
    if not evaluation.train.num_classes:
        raise ValueError("it needs recordings with labels, config.data.pattern")
    if not evaluation.conditions:
        raise ValueError("it needs samples of a class")

    def metric(drawn: Drawn) -> dict[str, Any]:
        front_end, train = _front_end(evaluation), data.arrays(evaluation.train)
        recognizer = evaluation.shared(
            "recognizer", lambda: audio.train_recognizer(_mels(train["x"], front_end), train["label"])
        )
        test = data.arrays(held_out(evaluation))
        samples = stored(drawn["samples"])
        labels = drawn["label"] if "label" in drawn else _truth(evaluation, drawn)["label"]
        found = recognizer(_mels(samples, front_end))
        values = {
            "recognized": float(np.mean(found == labels)),
            "recognized_recordings": float(np.mean(recognizer(_mels(test["x"], front_end)) == test["label"])),
        }
        if kind == "mel":
            for name, x, wanted in (("", samples, labels), ("_recordings", test["x"], test["label"])):
                heard = recognizer(_mels(_waves(x, front_end)[..., None], front_end))
                values[f"recognized{name}_griffin_lim"] = float(np.mean(heard == wanted))
        return values

    return metric


WAVEFORM = Modality(
    stored=stored,
    picture=picture,
    files=files,
    formats=("wav",),
    shown=_SHOWN,
    metrics={"vocoder": _vocoder, "bandwidth": _bandwidth, "recognition": _recognition},
    usual=("vocoder", "bandwidth"),
)
MEL = Modality(
    stored=stored,
    picture=picture,
    files=files,
    formats=("wav",),
    shown=_SHOWN,
    metrics={"recognition": _recognition},
    usual=("recognition",),
)
