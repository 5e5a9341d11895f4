"""Files of statistics: means and covariances of the features of a reference set."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float64, UInt8

from diffusion_jax.data.sources import archives
from diffusion_jax.evaluation.features import Features
from diffusion_jax.evaluation.frechet import covariance
from diffusion_jax.training.faults import replacing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Means and covariances of the features of a set of images.

    Attributes:
      mu, sigma: of the features, `[d]` and `[d, d]`.
      mu_s, sigma_s: of the spatial features, where they are known.
      num: of images; None where a file does not say.
      extractor: that gave the features, such as "inception_pytorch"; None where a file does not say.
    """

    mu: Float64[np.ndarray, "d"]
    sigma: Float64[np.ndarray, "d d"]
    mu_s: Float64[np.ndarray, "s"] | None = None
    sigma_s: Float64[np.ndarray, "s s"] | None = None
    num: int | None = None
    extractor: str | None = None


def statistics_of(features: Features) -> Statistics:
    """Those of all images that `features` were collected from. Raises ValueError for fewer than 2."""
    mu, sigma = covariance(features.moments)
    mu_s, sigma_s = (None, None) if features.spatial is None else covariance(features.spatial)
    return Statistics(mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s, num=features.num, extractor=features.extractor)


def read_statistics(path: str | os.PathLike) -> Statistics:
    """Statistics from an .npz file of this library, of pytorch-fid (mu, sigma) or of guided-diffusion (and mu_s,
    sigma_s; its images under arr_0 are not read).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, holds no statistics, or their shapes do not fit or are not finite.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file")
    try:
        arrays = archives.read_npz(path, ("mu", "sigma", "mu_s", "sigma_s", "num", "extractor"))
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} is not an .npz file that can be read: {error}") from error
    for mean, spread in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if (mean in arrays) != (spread in arrays) or (mean == "mu" and mean not in arrays):
            raise ValueError(f"{path} holds {', '.join(arrays) or 'no statistics'}; it needs both {mean} and {spread}")
        if mean in arrays:
            arrays |= {mean: _floats(path, mean, arrays[mean]), spread: _floats(path, spread, arrays[spread])}
            shapes = arrays[mean].shape, arrays[spread].shape
            if len(shapes[0]) != 1 or shapes[1] != 2 * shapes[0]:
                raise ValueError(f"{path}: {mean} must be [d] and {spread} [d, d], got {shapes[0]} and {shapes[1]}")
    num, extractor = arrays.pop("num", None), arrays.pop("extractor", None)
    for name, value, kind in (("num", num, np.integer), ("extractor", extractor, np.str_)):
        if value is not None and (value.shape or not np.issubdtype(value.dtype, kind)):
            raise ValueError(f"{path}: {name} must be one {kind.__name__}, got {value.dtype} of shape {value.shape}")
    return Statistics(
        **arrays,
        num=None if num is None else int(num),
        extractor=None if extractor is None else str(extractor),
    )


def has_statistics(path: str | os.PathLike) -> bool:
    """Whether `path` is an .npz file with statistics in it, rather than samples alone."""
    path = pathlib.Path(path).expanduser()
    return path.suffix == ".npz" and path.is_file() and "mu" in _keys(path)


def has_images(path: str | os.PathLike) -> bool:
    """Whether the .npz file of statistics `path` holds images too, as guided-diffusion's references do."""
    return "arr_0" in _keys(pathlib.Path(path).expanduser())


def write_statistics(
    path: str | os.PathLike,
    statistics: Statistics,
    *,
    images: UInt8[np.ndarray, "n h w c"] | None = None,
    **notes: str,
) -> None:
    """Write an .npz file that pytorch-fid reads, and with spatial features and `images` guided-diffusion too.

    The file appears in one piece. It holds mu, sigma, mu_s, sigma_s, num and extractor as far as they are known,
    `images` under arr_0, and `notes`.
    """
    path = pathlib.Path(path).expanduser()
    arrays = {name: value for name, value in dataclasses.asdict(statistics).items() if value is not None}
    arrays |= {} if images is None else {"arr_0": images}
    with replacing(path) as file:
        np.savez(file, **arrays, **notes)


def cached_statistics(path: str | os.PathLike, key: str, compute: Callable[[], Statistics]) -> Statistics:
    """Those in `path` if it was written for the same `key`, else those of `compute`, which are written there.

    With several processes they all compute or all read, and the first one writes.
    """
    path = pathlib.Path(path)
    statistics = read_statistics(path) if has_statistics(path) and _note(path, "key") == key else None
    if jax.process_count() > 1 and not multihost_utils.process_allgather(np.array(statistics is not None)).all():
        statistics = None
    if statistics is None:
        statistics = compute()
        if jax.process_index() == 0:
            write_statistics(path, statistics, key=key)
    return statistics


def _keys(path: pathlib.Path) -> list[str]:
    try:
        return archives.npz_names(path)
    except Exception as error:
        raise ValueError(f"{path} is not an .npz file that can be read: {error}") from error


def _note(path: pathlib.Path, name: str) -> str | None:
    notes = archives.read_npz(path, (name,))
    return str(notes[name]) if name in notes else None


def _floats(path: pathlib.Path, name: str, values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values).all():
        raise ValueError(f"{path}: {name} must hold finite floats, got {values.dtype}")
    return values.astype(np.float64)
