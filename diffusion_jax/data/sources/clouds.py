"""Point clouds from .npz, .npy and .ply files; without a path synthetic ones of solids."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from diffusion_jax.data import ply
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform
from diffusion_jax.data.sources import archives, files, solids
from diffusion_jax.data.sources.classes import Classes, numbered
from diffusion_jax.types import Spec, check, check_choice

SUFFIXES = (".npz", ".npy", ".ply")
NORMALIZATIONS = ("box", "unit", "global", "none")
_POINTS = 256
_STORED = 1024  # points of a synthetic cloud, of which examples are draws
_KEYS = ("points", "x", "samples", "arr_0")  # of the array of points in an .npz file
_SYNTHETIC = ("train", "test")
_BITS = 2**24  # of a uniform number


def spec(section: Mapping[str, Any]) -> Spec:
    """[points, 3]. Raises ValueError."""
    points = section.get("points", _POINTS)
    check(isinstance(points, int) and points >= 1, "data.points", points, "an integer of at least 1")
    return Spec((points, 3), modality="cloud")


class _Clouds(NamedTuple):
    """Clouds of any numbers of points, the class of each if there are classes, and where these are from."""

    clouds: list[Float32[np.ndarray, "_ 3"]]
    labels: Shaped[np.ndarray, "n"] | None
    names: tuple[str, ...] = ()  # of the classes, in the order of their numbers

    def at(self, indices: Sequence[int] | Int64[np.ndarray, "k"]) -> _Clouds:
        labels = None if self.labels is None else self.labels[list(indices)]
        return self._replace(clouds=[self.clouds[i] for i in indices], labels=labels)


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    path: str = "",
    points: int = _POINTS,
    normalize: str = "box",
    resample: bool = True,
    deduplicate: float = 0.0,
    label_key: str = "",
    largest: int = 0,
    num_examples: int = 1000,
    seed: int = 0,
) -> Source:
    """Clouds [points, 3]: in training another random part of the stored points every time, else always the same.

    Args:
        path: an .npz or .npy file with an array [n, m, 3] (in an .npz file its array "points", "x" or "samples"), or a
            folder with one cloud [m, 3] in each .npz, .npy or .ply file, in sub-folders that are classes if there are
            any. Folders, or array files, called like a split hold that split. "" is the synthetic set: solids (boxes,
            cylinders, cones, ellipsoids and tori) of random proportions, with their kind as the class.
        points: of an example, at most those that every cloud has.
        normalize: "box", each cloud in its own box around the origin with a longest side of 2; "unit", each with mean
            0 and, over all coordinates, variance 1; "global", all with the mean and the one standard deviation of the
            training split; "none".
        resample: whether training draws another part of the points every time.
        deduplicate: keep one of the clouds that are draws from one surface, those whose Chamfer distance is below
            `deduplicate` times that of two draws of one cloud, see `evaluation.clouds.twins`; 0 keeps all. It comes
            before slices of a split, so that no twin of a training cloud is held out.
        label_key: array of classes in an .npz file, strings or integers; "" for no classes.
        largest: keep the clouds of so many largest classes only; 0 keeps all. Splits must then be slices of one set.
        num_examples, seed: of the synthetic set, whose splits "train" and "test" are independent draws.

    Raises ValueError for data that is missing, unreadable or has clouds of too few points, and for unknown options.
    """
    example = spec({"points": points})
    check_choice("data.normalize", normalize, NORMALIZATIONS)
    check(deduplicate >= 0, "data.deduplicate", deduplicate, "at least 0, such as 1.3; 0 keeps all clouds")
    check(largest >= 0, "data.largest", largest, "at least 0, a number of classes; 0 keeps all")
    options = dict(path=path, label_key=label_key, num_examples=num_examples, points=points, seed=seed)
    chosen = _split(split, training, deduplicate=deduplicate, largest=largest, **options)
    short = [i for i, cloud in enumerate(chosen.clouds) if len(cloud) < points]
    if short:
        raise ValueError(
            f"cloud {short[0]} of the split {split!r} of {path or 'the synthetic set'} has "
            f"{len(chosen.clouds[short[0]])} points; data.points={points} must be at most that."
        )
    facts: dict[str, Any] = {"classes": chosen.names}
    if normalize == "global":
        used = training or split
        ours = chosen if used == split else _split(used, "", deduplicate=deduplicate, largest=largest, **options)
        stacked = np.concatenate(ours.clouds).astype(np.float64)
        facts |= {"mean": stacked.mean(0), "std": float((stacked - stacked.mean(0)).std())}
        clouds = [((cloud - facts["mean"]) / facts["std"]).astype(np.float32) for cloud in chosen.clouds]
    else:
        clouds = [normalized(cloud, normalize) for cloud in chosen.clouds]
    entries = {"x": example}
    if chosen.labels is not None:
        entries["label"] = Spec((), "int32", values=max(len(chosen.names), int(chosen.labels.max()) + 1))

    def read(indices: np.ndarray) -> Batch:
        batch = {"cloud": np.fromiter(indices, np.int64, len(indices))}
        return batch if chosen.labels is None else {**batch, "label": chosen.labels[indices]}

    def ready(batch: Batch, uniform: Uniform | None) -> Batch:
        rows = batch.pop("cloud")
        seeds = [0] * len(rows) if uniform is None or not resample else (uniform * _BITS).astype(int).tolist()
        drawn = [
            clouds[i][np.random.default_rng(seed).choice(len(clouds[i]), points, replace=False)]
            for i, seed in zip(rows, seeds, strict=True)
        ]
        return {**batch, "x": np.stack(drawn)}

    return Source(entries=entries, size=len(clouds), read=read, ready=ready, draws=2 if resample else 0, facts=facts)


def normalized(cloud: Float32[np.ndarray, "n 3"], how: str) -> Float32[np.ndarray, "n 3"]:
    """A cloud in its own box, "box", with mean 0 and variance 1, "unit", or as it is, "none"; see `open_source`."""
    if how == "none":
        return cloud
    wide = cloud.astype(np.float64)
    if how == "box":
        low, high = wide.min(0), wide.max(0)
        centre, scale = (low + high) / 2, (high - low).max() / 2
    else:
        centre = wide.mean(0)
        scale = (wide - centre).std()
    return ((wide - centre) / (scale or 1)).astype(np.float32)


def _split(
    split: str,
    training: str,
    *,
    path: str,
    label_key: str,
    largest: int,
    deduplicate: float,
    num_examples: int,
    points: int,
    seed: int,
) -> _Clouds:
    """The clouds of a split, as they are stored."""
    name = files.named(split)
    if not path:
        if name not in _SYNTHETIC:
            raise ValueError(f"Unknown split {name!r} of the synthetic set; known: {', '.join(_SYNTHETIC)}.")
        rng = np.random.default_rng((seed, _SYNTHETIC.index(name)))
        x, kinds = solids.draw(num_examples, max(points, _STORED), rng)
        whole = _Clouds(list(x), kinds, tuple(solids.KINDS))
    else:
        whole = _stored(pathlib.Path(path), split, training, label_key)
    if largest:
        whole = _of_largest(whole, largest, of_training=not training or files.named(training) == name)
    if deduplicate:
        whole = whole.at(_distinct(whole.clouds, deduplicate))
    return whole.at(files.select(split, len(whole.clouds)))


def _of_largest(whole: _Clouds, number: int, *, of_training: bool) -> _Clouds:
    """The clouds of the `number` largest classes, which are numbered anew, in their order.

    The held-out split must be a slice of the same clouds: in one of its own other classes may be the largest.
    """
    if whole.labels is None:
        raise ValueError(f"data.largest={number} needs classes: data.label_key, or sub-folders.")
    if not of_training:
        raise ValueError(
            f"data.largest={number} needs splits that are slices of one set, such as train[:70%] and train[70%:]."
        )
    counts = np.bincount(whole.labels)
    kept = np.sort(np.argsort(-counts, kind="stable")[:number])
    where = np.flatnonzero(np.isin(whole.labels, kept))
    names = tuple(whole.names[i] for i in kept) if whole.names else ()
    chosen = whole.at(where)
    return chosen._replace(labels=np.searchsorted(kept, chosen.labels).astype(np.int32), names=names)


def _distinct(clouds: list[Float32[np.ndarray, "_ 3"]], ratio: float) -> list[int]:
    """The first cloud of each group of twins."""
    from diffusion_jax.evaluation.clouds import twins  # which imports the data

    rng = np.random.default_rng(0)
    least = min(map(len, clouds))
    if least < 2:
        raise ValueError("data.deduplicate needs clouds of at least 2 points.")
    boxes = [normalized(cloud, "box")[rng.permutation(len(cloud))[: min(least, _STORED)]] for cloud in clouds]
    return [int(group[0]) for group in twins(np.stack(boxes), ratio)]


def _stored(path: pathlib.Path, split: str, training: str, label_key: str) -> _Clouds:
    place = files.locate(path, split, ("", *SUFFIXES[:2]))
    if label_key and place.suffix != ".npz":
        raise ValueError(f"data.label_key={label_key!r} names an array of an .npz file, and {place} is none.")
    others = files.training_split(split, training, lambda name: _has(path, name))
    known = None if others is None else _labels_of(files.locate(path, others, ("", *SUFFIXES[:2])), label_key)
    clouds, labels = _arrays(place, label_key) if place.is_file() else _folder(place)
    if labels is None:
        return _Clouds(clouds, None)
    numbers, classes = numbered(labels, f"{place}:", known)
    return _Clouds(clouds, numbers, classes.names)


def _has(path: pathlib.Path, name: str) -> bool:
    return any((path.expanduser() / f"{name}{suffix}").exists() for suffix in ("", *SUFFIXES[:2]))


def _labels_of(place: pathlib.Path, label_key: str) -> Classes | None:
    """The classes of another split."""
    labels = _arrays(place, label_key)[1] if place.is_file() else _classes(_files(place), place)
    return None if labels is None else numbered(labels, f"{place}:")[1]


def _arrays(file: pathlib.Path, label_key: str) -> tuple[list[np.ndarray], np.ndarray | None]:
    """All clouds of one array file, and their classes."""
    labels = None
    try:
        if file.suffix == ".npy":
            x = np.load(file, allow_pickle=False)
        else:
            arrays = archives.read_npz(file)
            x = _points_of(arrays)
            if label_key and label_key not in arrays:
                raise ValueError(f"it has no array {label_key!r}, data.label_key; it has {', '.join(arrays)}")
            labels = arrays[label_key] if label_key else None
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"data.path={str(file)!r} cannot be read: {error}") from error
    if x.ndim != 3 or x.shape[-1] != 3 or not x.size:
        raise ValueError(f"data.path={str(file)!r} has an array {x.shape}; it must be clouds [n, points, 3].")
    if labels is not None and len(labels) != len(x):
        raise ValueError(f"data.path={str(file)!r}: {label_key!r} has {len(labels)} classes for {len(x)} clouds.")
    return [_finite(cloud, f"cloud {i} of {file}") for i, cloud in enumerate(x)], labels


def _folder(root: pathlib.Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The clouds of the files below a folder, and their classes."""
    found = _files(root)
    return [_read(file) for file in found], _classes(found, root)


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"data.path={str(root)!r} has no .npz, .npy or .ply files in it.")
    return found


def _classes(found: list[pathlib.Path], root: pathlib.Path) -> Shaped[np.ndarray, "n"] | None:
    """The name of the sub-folder of each file; None if the files lie in the folder itself."""
    parts = [file.relative_to(root).parts for file in found]
    if all(len(names) == 1 for names in parts):
        return None
    loose = next((names[0] for names in parts if len(names) == 1), None)
    if loose is not None:
        raise ValueError(f"{root / loose} lies beside the folders of the classes; move it into one, or remove it.")
    return np.array([names[0] for names in parts])


def _read(file: pathlib.Path) -> Float32[np.ndarray, "n 3"]:
    """The one cloud of a file. Raises ValueError."""
    if file.suffix.lower() == ".ply":
        return _finite(ply.read(file), str(file))
    try:
        is_npy = file.suffix.lower() == ".npy"
        x = np.load(file, allow_pickle=False) if is_npy else _points_of(archives.read_npz(file))
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{file} cannot be read: {error}") from error
    return _finite(x, str(file))


def _points_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of points among those of an .npz file."""
    name = next((key for key in _KEYS if key in arrays), None)
    if name is None:
        raise ValueError(f"it has none of the arrays {', '.join(_KEYS)}; it has {', '.join(arrays) or 'none'}")
    return arrays[name]


def _finite(cloud: np.ndarray, where: str) -> Float32[np.ndarray, "n 3"]:
    """A cloud [n, 3] as float32. Raises ValueError for another shape, or values that are not finite."""
    if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud) or cloud.dtype.kind not in "fiu":
        raise ValueError(f"{where} has an array {cloud.shape} of {cloud.dtype}; it must be points [n, 3].")
    if not np.isfinite(cloud).all():
        raise ValueError(f"{where} has values that are not finite.")
    return cloud.astype(np.float32)
