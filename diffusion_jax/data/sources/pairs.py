"""Pairs of noise and sample: the samples of a trained flow with the noise that each of them started from.

`--mode=sample` saves samples and their seed. The noise of sample i is drawn from fold_in(key, i) and is not stored.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Integer

from diffusion_jax.data import images
from diffusion_jax.data.source import Batch, Source
from diffusion_jax.data.sources import archives
from diffusion_jax.processes import row_keys, row_normal, sampling_keys
from diffusion_jax.types import Spec

_CHECKED = 4096  # pairs whose correlation is measured
_LEAST = 5.0  # standard errors above 0 that it must be


def noise_of(seed: int, ids: Integer[np.ndarray, "n"], shape: tuple[int, ...]) -> Float32[np.ndarray, "n *shape"]:
    """The noise, of unit variance, that the samples `ids` of a system with the seed config.sampling.seed start from."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        prior_key, _ = sampling_keys(jax.random.key(seed))
        return np.asarray(row_normal(row_keys(prior_key, jnp.asarray(ids)), jnp.zeros((len(ids), *shape))))


def open_pairs(path: pathlib.Path, wanted: Mapping[str, Spec]) -> Source:
    """Pairs {"x": sample, "noise": noise} of a file of samples, with the class "label" if `wanted` has it.

    The file is the samples/<name>.npz of --mode=sample: "samples", 8-bit images or floats, "seed", and for a
    class-conditional model "cond". Instead of a seed it may have an array "noise".

    Raises ValueError if the file cannot be read, has neither a seed nor noise, does not hold examples of the shape and
    conditions `wanted`, or if the noise is not that of its samples: the flow of a diffusion model carries noise to
    samples that are positively correlated with it, E <noise, x - E x> = E div_noise x by Stein's identity.
    """
    try:
        arrays = archives.read_npz(path, {"samples", "seed", "noise", "cond"})
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"the pairs in {path} cannot be read: {error}") from error
    shape = wanted["x"].shape
    samples = arrays.get("samples")
    if samples is None or samples.shape[1:] != shape or len(samples) == 0:
        found = "no samples" if samples is None else f"samples of {samples.shape[1:]}"
        raise ValueError(f"{path} has {found}; they must be [n, {', '.join(map(str, shape))}]")
    if "noise" not in arrays and "seed" not in arrays:
        raise ValueError(f"{path} has samples without their noise: it has neither a seed nor an array 'noise'")
    if "noise" in arrays and arrays["noise"].shape != samples.shape:
        raise ValueError(f"{path} has noise of {arrays['noise'].shape} for samples of {samples.shape}")
    conditions = {name: entry for name, entry in wanted.items() if name not in ("x", "noise")}
    if set(conditions) - {"label"}:
        raise ValueError(f"{path}: pairs have no condition {', '.join(sorted(set(conditions) - {'label'}))}")
    label = arrays.get("cond")
    if conditions and (label is None or label.shape != samples.shape[:1] or label.dtype.kind not in "iu"):
        raise ValueError(f"{path} has no classes of its {len(samples)} samples under 'cond'")

    def read(indices: np.ndarray) -> Batch:
        x = samples[indices]
        stored = arrays["noise"][indices] if "noise" in arrays else noise_of(int(arrays["seed"]), indices, shape)
        batch = {"x": images.in_unit_range(x).astype(np.float32), "noise": np.asarray(stored, np.float32)}
        return batch | ({"label": label[indices].astype(np.int32)} if conditions else {})

    _check_correlated(path, read(np.arange(min(len(samples), _CHECKED))))
    entries = {"x": wanted["x"], "noise": Spec(shape), **conditions}
    return Source(entries=entries, size=len(samples), read=read)


def _check_correlated(path: pathlib.Path, batch: Batch) -> None:
    x, noise = (batch[name].reshape(len(batch["x"]), -1).astype(np.float64) for name in ("x", "noise"))
    if not (np.isfinite(x).all() and np.isfinite(noise).all()):
        raise ValueError(f"{path} has samples or noise that are not finite")
    products = ((x - x.mean(0)) * noise).sum(1)
    error = products.std() / len(products) ** 0.5
    if len(products) > 1 and not products.mean() > _LEAST * error:
        raise ValueError(
            f"{path} has noise that is not the noise of its samples: their correlation is {products.mean():.3g} +- "
            f"{error:.2g}. Samples of an ODE solver, of --mode=sample with this seed, have a positive one"
        )
