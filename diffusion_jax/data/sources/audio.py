"""Recordings in a folder of .wav or .flac files, as waveforms or as log-mel spectrograms."""

from __future__ import annotations

import pathlib
import re
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform
from diffusion_jax.data.sources import files, images
from diffusion_jax.data.sources.classes import Classes, numbered
from diffusion_jax.data.spectrograms import MelSpectrogram
from diffusion_jax.types import Spec

SUFFIXES = (".wav", ".flac")
FEATURES = ("waveform", "mel", "mel_image")
PEAK = 0.95  # of a recording, to which it is scaled
_WHERE = (
    "data.path is empty; it must be a folder of .wav or .flac files. The spoken digits of the configs are the folder "
    "recordings/ of github.com/Jakobovski/free-spoken-digit-dataset, LJSpeech is at keithito.com/LJ-Speech-Dataset."
)


def spec(section: Mapping[str, Any]) -> Spec:
    """[length, 1] of modality "waveform", or [length / hop, num_mels(, 1)] of modality "mel". Raises ValueError."""
    features, length = section.get("features", "waveform"), section.get("length", 6144)
    if features not in FEATURES:
        raise ValueError(f"data.features={features!r} must be one of {', '.join(FEATURES)}")
    if not isinstance(length, int) or length < 2:
        raise ValueError(f"data.length={length!r} must be an integer of at least 2, the samples of an example")
    mel = front_end(section)
    if features == "waveform":
        return Spec((length, 1), modality="waveform")
    if length % mel.hop:
        raise ValueError(f"data.length={length} must be a multiple of data.mel.hop={mel.hop}")
    shape = (length // mel.hop, mel.num_mels)
    return Spec(shape if features == "mel" else (*shape, 1), modality="mel")


def front_end(section: Mapping[str, Any]) -> MelSpectrogram:
    """The mel spectrogram of config.data.mel. Raises ValueError."""
    options = dict(section.get("mel", NOTHING))
    try:
        return MelSpectrogram(sample_rate=section.get("sample_rate", 8000), **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data.mel={options}: {error}") from error


def facts(section: Mapping[str, Any]) -> dict[str, Any]:
    """`mel`, the front end, and `sample_rate`."""
    mel = front_end(section)
    return {"mel": mel, "sample_rate": mel.sample_rate}


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    path: str = "",
    features: str = "waveform",
    sample_rate: int = 8000,
    length: int = 6144,
    mel: Mapping[str, Any] = NOTHING,
    pattern: str = "",
    held_out: int = 0,
    shift: int = 0,
    num_workers: int = 1,
    captions: tuple[str, ...] = (),
) -> Source:
    """Recordings of the folder `path` and of those below it, in the order of their names.

    Each is scaled to the peak 0.95. An example is `length` samples: in training from a random place on, else the
    beginning; shorter recordings end in silence, in training at most `shift` samples of it come first.

    Args:
        features: "waveform", "mel" for log-mel spectrograms [length / hop, num_mels] with mels as channels, or
            "mel_image" for the same with one channel.
        sample_rate: of all files.
        mel: keyword arguments of `MelSpectrogram` but the sample rate.
        pattern: a regular expression of paths within the folder, without suffix, with the groups `label`, the class,
            and `index`, an integer. Without `label` examples have no classes.
        held_out: recordings with an index below it are the split "test", the others "train". Without it folders called
            like splits hold these, or "train" is all of them.
        captions: one text per class.

    Raises ValueError for a folder that is missing or empty, and for files that cannot be read, have another sample rate
    or name.
    """
    if not path:
        raise ValueError(_WHERE)
    section = dict(features=features, sample_rate=sample_rate, length=length, mel=mel)
    entry, transform = spec(section), front_end(section)
    paths, labels, known = _listed(path, split, pattern, held_out)
    clips = [_read(file, sample_rate) for file in paths]
    entries = {"x": entry}
    names: tuple[str, ...] = ()
    numbers = np.zeros(len(paths), np.int32)
    if labels is not None:
        everywhere = Classes(len(known), known)
        numbers, classes = numbered(np.array(labels), f"{path}, data.pattern={pattern!r}:", everywhere)
        names = classes.names
        entries["label"] = Spec((), "int32", values=classes.size)
    if "mel" in wanted and features == "waveform":
        entries["mel"] = Spec((length // transform.hop, transform.num_mels))
    compute = jax.jit(transform)

    def read(indices: np.ndarray) -> Batch:
        batch = {"clip": np.fromiter(indices, np.int32, len(indices))}
        return batch | ({"label": numbers[indices]} if labels is not None else {})

    def ready(batch: Batch, uniform: Uniform | None) -> Batch:
        chosen = batch.pop("clip")
        x = np.zeros((len(chosen), length), np.float32)
        for row, index in enumerate(chosen):
            clip = clips[index]
            u = 0.0 if uniform is None else float(uniform[row, 0])
            start = int(u * (max(len(clip) - length, 0) + 1))
            first = int(u * (min(shift, max(length - len(clip), 0)) + 1))
            part = clip[start : start + length - first]
            x[row, first : first + len(part)] = part
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            if features != "waveform":
                batch["x"] = np.asarray(compute(jnp.asarray(x))).reshape(-1, *entry.shape)
                return batch
            batch["x"] = x[..., None]
            if "mel" in entries:
                batch["mel"] = np.asarray(compute(jnp.asarray(x)))
        return batch

    source = Source(
        entries=entries,
        size=len(paths),
        read=read,
        ready=ready,
        draws=2,
        num_workers=num_workers,
        facts={**facts(section), "classes": names},
    )
    return images.with_conditions(source, {}, captions=captions, wanted=wanted, tokenize=tokenize)


def _listed(
    path: str, split: str, pattern: str, held_out: int
) -> tuple[list[pathlib.Path], list[str] | None, tuple[str, ...]]:
    """The files of a split, their classes (None without), and the names of those of all splits. Raises ValueError."""
    root, name = pathlib.Path(path).expanduser(), files.named(split)
    if not root.is_dir():
        raise ValueError(f"data.path={path!r} is no folder; it must hold .wav or .flac files.")
    if held_out and name not in ("train", "test"):
        raise ValueError(f"Unknown split {name!r}: with data.held_out there are 'train' and 'test'.")
    top = root
    root = root if held_out else files.locate(root, split, ("",))
    paths = _recordings(root)
    if not paths:
        raise ValueError(f"data.path={path!r} has no .wav or .flac files in it.")
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"data.pattern={pattern!r} is no regular expression: {error}.") from error
    if held_out and "index" not in matcher.groupindex:
        raise ValueError(f"data.held_out={held_out} needs a data.pattern with a group (?P<index>...).")
    matches = [matcher.fullmatch(_name(file, root)) for file in paths] if pattern else []
    if None in matches:
        wrong = _name(paths[matches.index(None)], root)
        raise ValueError(f"{wrong} does not match data.pattern={pattern!r}.")
    chosen = np.arange(len(paths))
    if held_out:
        for file, match in zip(paths, matches, strict=True):
            if not (match["index"] or "").isdecimal():
                raise ValueError(f"{_name(file, root)}: data.pattern={pattern!r} gives the index {match['index']!r}.")
        below = np.array([int(match["index"]) < held_out for match in matches])
        chosen = np.flatnonzero(below if name == "test" else ~below)
        if not len(chosen):
            raise ValueError(f"The split {name!r} is empty: data.held_out={held_out} of the indices in {path}.")
    chosen = chosen[files.select(split, len(chosen))]
    chosen_paths = [paths[i] for i in chosen]
    if "label" not in matcher.groupindex:
        return chosen_paths, None, ()
    folders = [root] if root == top else [folder for folder in top.iterdir() if folder.is_dir()]
    found = [matcher.fullmatch(_name(file, folder)) for folder in folders for file in _recordings(folder)]
    known = tuple(sorted({match["label"] for match in found if match}))
    return chosen_paths, [matches[i]["label"] for i in chosen], known


def _recordings(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)


def _name(file: pathlib.Path, root: pathlib.Path) -> str:
    """The path of a file in the folder `root`, without its suffix."""
    return file.relative_to(root).with_suffix("").as_posix()


def _read(file: pathlib.Path, sample_rate: int) -> Float32[np.ndarray, "samples"]:
    """The samples of one file, the mean of its channels, scaled to `PEAK`. Raises ValueError."""
    samples, rate = (_flac if file.suffix.lower() == ".flac" else _wav)(file)
    if rate != sample_rate:
        raise ValueError(f"{file} has {rate} samples per second, and data.sample_rate={sample_rate}; resample it.")
    samples = samples if samples.ndim == 1 else samples.mean(-1)
    if not len(samples) or not np.isfinite(samples).all():
        raise ValueError(f"{file} has no samples, or some that are not finite.")
    peak = float(np.abs(samples).max())
    return (samples * (PEAK / peak) if peak else samples).astype(np.float32)


def _wav(file: pathlib.Path) -> tuple[np.ndarray, int]:
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():  # of chunks that hold no samples, such as titles
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, samples = wavfile.read(file)
    except (OSError, ValueError, struct.error) as error:
        raise ValueError(f"{file} cannot be read as a .wav file: {error}") from error
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128, rate
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float64) / -float(np.iinfo(samples.dtype).min), rate
    return samples, rate


def _flac(file: pathlib.Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise ValueError(f"{file}: .flac files need the package soundfile: pip install soundfile") from error
    try:
        return soundfile.read(file, dtype="float32")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file} cannot be read as a .flac file: {error}") from error
