"""Figures of audio: vocoders, bandwidth extension, and speech by class or from words, on spoken digits.

    python -m benchmarks.audio vocoder runs/diffwave --picture docs/pictures/vocoder.png
    python -m benchmarks.audio bandwidth runs/diffwave_unconditional
    python -m benchmarks.audio speech runs/mel_diffusion --picture docs/pictures/speech.png
    python -m benchmarks.audio speech runs/audio_latent --picture docs/pictures/words.png

Runs are of configs/diffwave.py, wavegrad.py, mel_diffusion.py and audio_latent.py. Each table has the log-spectral
distance to held-out recordings and the share of digits that a small classifier recognises. The classifier reads log-mel
spectrograms of 48 frames and 32 mels of whole recordings, and was trained on the recordings that the models were
trained on, so that its speakers are theirs. Next to the models are the recordings themselves and what Griffin-Lim makes
of their mel spectrograms in 32 steps.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax
from diffusion_jax import data
from diffusion_jax.config import presets
from diffusion_jax.data.captions import tokens_of
from diffusion_jax.data.spectrograms import MelSpectrogram
from diffusion_jax.evaluation import audio, sheets
from diffusion_jax.systems import SpecGrad

LENGTH = 6144  # samples of a recording; 97 % are no longer
FRONT_END = MelSpectrogram(n_fft=512, hop=128, num_mels=32)  # of the classifier
STEPS = (6, 50)  # of vocoders
SHOWN = 6


@functools.cache
def recordings(path: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The training and the held-out recordings, waveforms [n, 6144, 1] with labels."""
    return tuple(
        data.arrays(data.load(**presets.fsdd(length=LENGTH) | dict(path=path), evaluation=held_out))
        for held_out in (False, True)
    )


@functools.cache
def recognizer(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Waveforms [n, 6144] -> digits."""
    train, _ = recordings(path)
    transform = jax.jit(FRONT_END)
    recognize = audio.train_recognizer(np.asarray(transform(train["x"][..., 0])), train["label"])
    return lambda waves: recognize(np.asarray(transform(jnp.asarray(waves))))


def row(path: str, name: str, waves: np.ndarray, truth: dict[str, np.ndarray]) -> None:
    """Prints LSD and SNR to the recordings `truth` and the share of digits that are recognised."""
    recorded, waves = truth["x"][..., 0], np.clip(waves, -1, 1)
    right = np.mean(recognizer(path)(waves) == truth["label"])
    lsd, snr = audio.lsd(recorded, waves).mean(), audio.snr(recorded, waves).mean()
    print(f"{name:40} LSD {lsd:6.3f}  SNR {snr:6.1f} dB  recognised {right:.3f}", flush=True)


def some(path: str, num: int) -> dict[str, np.ndarray]:
    """`num` held-out recordings, all digits and speakers evenly."""
    _, test = recordings(path)
    chosen = np.linspace(0, len(test["x"]) - 1, num).astype(int)
    return {name: value[chosen] for name, value in test.items()}


def vocoder(options: argparse.Namespace) -> None:
    truth, panels = some(options.data, options.num), []
    for run in options.runs:
        model = diffusion_jax.load(run, changes={"data.length": LENGTH, "data.path": options.data})
        front_end = model.job.source.facts["mel"]
        mel = np.asarray(jax.jit(front_end)(truth["x"][..., 0]))
        if not panels:
            row(options.data, "recordings", truth["x"][..., 0], truth)
            inverted = np.asarray(jax.jit(front_end.invert)(mel))
            row(options.data, "Griffin-Lim", inverted, truth)
            panels = [truth["x"][..., 0], inverted]
        name = pathlib.Path(run).name
        noise = np.random.default_rng(0).standard_normal(truth["x"].shape[:2])
        row(options.data, "white noise", noise * 0.1, truth)
        if isinstance(model.system, SpecGrad):
            shaped = model.system.coloured(noise[..., None], mel)[..., 0]
            row(options.data, "noise with the envelopes of the mels", np.asarray(shaped), truth)
        for steps in STEPS:
            changes = {"sampling.steps": steps, "data.length": LENGTH, "data.path": options.data}
            if steps == 6:
                changes |= {"sampling.grid": {"name": "betas"}}
            model = diffusion_jax.load(run, changes=changes)
            waves = model.sample(jax.random.key(0), len(mel), {"mel": mel})[..., 0]
            row(options.data, f"{name}, {steps} steps", waves, truth)
        panels.append(waves)
    draw(options, panels)


def bandwidth(options: argparse.Namespace) -> None:
    truth, panels = some(options.data, options.num), []
    for run in options.runs:
        changes = {"data.length": LENGTH, "data.path": options.data, "editing": {"name": "bandwidth", "keep": 0.5}}
        model = diffusion_jax.load(run, changes=changes)
        operator = model.system.conditions["image"].operator
        known = operator.measure(truth["x"])
        if not panels:
            row(options.data, "low-passed", known[..., 0], truth)
            panels = [truth["x"][..., 0], known[..., 0]]
        waves = model.sample(jax.random.key(0), len(known), {"image": known})[..., 0]
        row(options.data, pathlib.Path(run).name, waves, truth)
        panels.append(waves)
    draw(options, panels)


def speech(options: argparse.Namespace) -> None:
    """Samples of each class, or of the word that names it, made audible by Griffin-Lim."""
    _, test = recordings(options.data)
    recognize, panels = recognizer(options.data), []
    labels = (np.arange(options.num) % 10).astype(np.int32)
    words = [presets.WORDS[label] for label in labels]
    for run in options.runs:
        model = diffusion_jax.load(run, changes={"data.path": options.data})
        front_end = model.job.source.facts["mel"]
        invert = jax.jit(lambda mel, front_end=front_end: front_end.invert(jnp.clip(mel, -1, 1)))
        through = fitted(np.asarray(invert(jax.jit(front_end)(test["x"][..., 0]))))
        tokens = tokens_of(words, model.system.conditions.max_tokens)
        mels = model.sample(jax.random.key(0), options.num, {"label": labels, "tokens": tokens})
        waves = fitted(np.asarray(invert(mels.reshape(len(mels), -1, front_end.num_mels))))
        rows = [(pathlib.Path(run).name, waves, labels)]
        if not panels:
            recorded = [("recordings", test["x"][..., 0]), ("recordings through Griffin-Lim", through)]
            rows = [(name, x, test["label"]) for name, x in recorded] + rows
            panels = [np.stack([x[test["label"] == digit][0] for digit in range(10)]) for _, x in recorded]
        for name, x, wanted in rows:
            print(f"{name:40} recognised {np.mean(recognize(x) == wanted):.3f} of {len(x)}", flush=True)
        panels.append(waves[:10])
    draw(options, panels, columns=10)


def fitted(waves: np.ndarray) -> np.ndarray:
    """Waveforms cut or padded to the length of recordings."""
    return np.pad(waves[:, :LENGTH], ((0, 0), (0, max(LENGTH - waves.shape[1], 0))))


def draw(options: argparse.Namespace, panels: list[np.ndarray], columns: int = SHOWN) -> None:
    """The picture: a row of spectrograms for each of the panels."""
    if options.picture:
        transform = jax.jit(MelSpectrogram())
        mels = np.concatenate([np.asarray(transform(jnp.asarray(panel[:columns]))) for panel in panels])
        sheets.spectrogram_sheet(mels, columns=columns, path=options.picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=("vocoder", "bandwidth", "speech"))
    parser.add_argument("runs", nargs="+", help="work directories")
    parser.add_argument("--data", default="recordings", help="folder of the Free Spoken Digit Dataset's .wav files")
    parser.add_argument("--num", type=int, default=60, help="recordings or samples")
    parser.add_argument("--picture", help="a PNG file")
    options = parser.parse_args()
    {"vocoder": vocoder, "bandwidth": bandwidth, "speech": speech}[options.figure](options)
