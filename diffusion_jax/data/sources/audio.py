"""Recordings in a folder of .wav or .flac files, as waveforms or as log-mel spectrograms."""

from __future__ import annotations

import functools
import pathlib
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from diffusion_jax.data.captions import Cuts, tokens_of
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform, entry
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
    templates: tuple[str, ...] = (),
    vectors: str = "",
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
            and `index`, an integer. Without `label` examples have no classes. Other groups are for `templates`.
        held_out: recordings with an index below it are the split "test", the others "train". Without it folders called
            like splits hold these, or "train" is all of them.
        captions: one text per class.
        templates: texts of a recording, such as "{label} by {speaker}", of the groups of `pattern`; the class has its
            text of `captions` if there are any. Training draws one of them at random, evaluation takes the first.
        vectors: an .npz file with `names`, paths within the folder without suffix, and `vectors` [n, dim], the
            condition "vector" of networks that read it: embeddings of the recordings by CLAP, for example.

    Raises ValueError for a folder that is missing or empty, for files that cannot be read, have another sample rate or
    name, or no vector, and for templates of other groups.
    """
    if not path:
        raise ValueError(_WHERE)
    section = dict(features=features, sample_rate=sample_rate, length=length, mel=mel)
    example, transform = spec(section), front_end(section)
    paths, groups, known = _listed(path, split, pattern, held_out)
    clips = [_read(file, sample_rate) for file in paths]
    entries = {"x": example}
    names: tuple[str, ...] = ()
    numbers = np.zeros(len(paths), np.int32)
    if known:
        everywhere, labels = Classes(len(known), known), np.array([group["label"] for group in groups])
        numbers, classes = numbered(labels, f"{path}, data.pattern={pattern!r}:", everywhere)
        names = classes.names
        entries["label"] = Spec((), "int32", values=classes.size)
    if "mel" in wanted and features == "waveform":
        entries["mel"] = Spec((length // transform.hop, transform.num_mels))
    if "vector" in wanted and vectors:
        by_clip = _vectors(vectors, paths, pathlib.Path(path).expanduser())
        entries["vector"] = Spec(by_clip.shape[1:])
    if templates:
        texts, captions = _texts(templates, groups, names, captions), ()
        if "tokens" in wanted:
            tokenize = tokenize or functools.partial(tokens_of, max_tokens=wanted["tokens"].shape[0], cuts=Cuts())
            tokens = np.stack([tokenize(row) for row in texts])
            entries["tokens"] = entry(tokens[0])
    compute = jax.jit(transform)

    def read(indices: np.ndarray) -> Batch:
        batch = {"clip": np.fromiter(indices, np.int32, len(indices))}
        return batch | ({"label": numbers[indices]} if known else {})

    def ready(batch: Batch, uniform: Uniform | None) -> Batch:
        chosen = batch.pop("clip")
        if "vector" in entries:
            batch["vector"] = by_clip[chosen]
        if "tokens" in entries:
            drawn = np.zeros(len(chosen)) if uniform is None else uniform[:, 1]
            batch["tokens"] = tokens[(drawn * len(tokens)).astype(int), chosen]
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
                batch["x"] = np.asarray(compute(jnp.asarray(x))).reshape(-1, *example.shape)
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
) -> tuple[list[pathlib.Path], list[dict[str, str]], tuple[str, ...]]:
    """The files of a split, what the groups of the pattern are in their names, and the classes of all splits.

    Raises ValueError.
    """
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
    chosen_paths, groups = [paths[i] for i in chosen], [matches[i].groupdict("") for i in chosen] if matches else []
    if "label" not in matcher.groupindex:
        return chosen_paths, groups, ()
    folders = [root] if root == top else [folder for folder in top.iterdir() if folder.is_dir()]
    found = [matcher.fullmatch(_name(file, folder)) for folder in folders for file in _recordings(folder)]
    known = tuple(sorted({match["label"] for match in found if match}))
    return chosen_paths, groups, known


def _texts(
    templates: Sequence[str], groups: Sequence[Mapping[str, str]], names: Sequence[str], captions: Sequence[str]
) -> list[list[str]]:
    """The texts of all recordings, by template. Raises ValueError for templates of other groups than `groups`."""
    if len(captions) not in (0, len(names)):
        raise ValueError(f"data.captions has {len(captions)} texts for {len(names)} classes.")
    words = dict(zip(names, captions, strict=True)) if captions else {}
    known = [{**group, **({"label": words[group["label"]]} if words else {})} for group in groups] or [{}]
    try:
        return [[template.format_map(group) for group in known] for template in templates]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"data.templates={tuple(templates)!r}: {type(error).__name__} {error}; the groups of data.pattern are "
            f"{', '.join(known[0]) or 'none'}."
        ) from error


def _vectors(file: str, paths: Sequence[pathlib.Path], root: pathlib.Path) -> Float32[np.ndarray, "n dim"]:
    """The rows of `vectors` in an .npz file whose `names` are those of `paths` in the folder `root`. ValueError."""
    try:
        with np.load(pathlib.Path(file).expanduser()) as arrays:
            names, vectors = arrays["names"], arrays["vectors"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"data.vectors={file!r} has no arrays `names` and `vectors`: {error}") from error
    if vectors.ndim != 2 or names.shape != vectors.shape[:1]:
        raise ValueError(
            f"data.vectors={file!r}: names {names.shape} and vectors {vectors.shape} must be [n], [n, dim]."
        )
    row = {str(name): i for i, name in enumerate(names)}
    missing = [name for name in (_name(path, root) for path in paths) if name not in row]
    if missing:
        raise ValueError(f"data.vectors={file!r} has no row for {missing[0]} ({len(missing)} of {len(paths)} files).")
    return vectors[[row[_name(path, root)] for path in paths]]


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
