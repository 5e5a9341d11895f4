"""Baselines for bits per dimension of a diffusion model: a Gaussian mixture and a file compressor."""

from __future__ import annotations

import lzma
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.likelihood import dequantization
from diffusion_jax.processes.base import row_keys

_VALIDATION = 0.1  # part of the training split that chooses the two numbers of the mixture
_SEARCH_COST, _FIT_COST = 5e9, 2.5e10  # examples x components x dimensions^2 of one pass of EM: a second, and five
_SEARCH_PASSES, _FIT_PASSES = 3, 20
_COMPRESSED = 16_000_000  # values, some seconds


def density_baseline(
    train: np.ndarray | Array,
    test: np.ndarray | Array,
    *,
    levels: int = 256,
    components: tuple[int, ...] = (1, 2, 4, 8, 16),
    regularizations: tuple[float, ...] = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    seed: int = 0,
) -> dict[str, float | int]:
    """Bits per dimension of a Gaussian mixture with full covariances, fitted to the training split by EM.

    Data of `levels` grey levels is dequantized uniformly, as for a diffusion model, so that both values bound the
    same code length. The number of components and the number added to the variances are those with the best
    likelihood on a tenth of the training split; the mixture is then fitted to all of it. Where the data is large, a
    random part is used so that it takes minutes at most.

    Args:
      train, test: `[n, ...]` and `[m, ...]`, values 2 k / (levels - 1) - 1.
      levels: 0 for continuous data, whose value is that of the density itself.
      seed: of the noise, the parts and the start of EM.

    Returns:
      `baseline_bits_per_dim` of the test examples, their number `baseline_num_test`, the `baseline_num_train` used,
      and the chosen `baseline_components` and `baseline_regularization`. For data of levels also
      `lzma_bits_per_dim`, what the test examples add to an LZMA file of training examples, see `compressor`.

    Raises:
      ValueError: values that are not finite or not on the levels, shapes that differ, no test example or fewer than
        20 training examples.
    """
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"train and test must have the same shape, got {train.shape[1:]} and {test.shape[1:]}")
    if len(train) < 20:
        raise ValueError(f"train must hold at least 20 examples, got {len(train)}")
    x, x_test = _continuous(train, levels, 2 * seed), _continuous(test, levels, 2 * seed + 1)
    x = x[np.random.default_rng(seed).permutation(len(x))]
    split = max(int(len(x) * _VALIDATION), 1)
    validation, rest = x[:split], x[split:]
    tried = [
        (_fit(rest, k, r, _SEARCH_COST, _SEARCH_PASSES, seed).score(validation), k, r)
        for k in components
        for r in regularizations
        if k <= len(rest) // 2
    ]
    _, k, r = max(tried)
    model = _fit(x, k, r, _FIT_COST, _FIT_PASSES, seed)
    bits = dequantization.bits_per_dim(jnp.asarray(model.score_samples(x_test)), x.shape[1], levels)
    return {
        **({"lzma_bits_per_dim": compressor(train, test, levels)} if levels else {}),
        "baseline_bits_per_dim": float(np.mean(bits)),
        "baseline_components": k,
        "baseline_regularization": r,
        "baseline_num_train": _num_examples(x, k, _FIT_COST),
        "baseline_num_test": len(x_test),
    }


def compressor(train: np.ndarray | Array, test: np.ndarray | Array, levels: int) -> float:
    """Bits per value that `test` adds to the LZMA file of `train`, or of its first 16 million values.

    No model of images, but a code that anyone can decode: where large parts of the images are constant, as in MNIST,
    it is shorter than that of a density of dequantized data can be. Both are `[n, ...]` on at most 256 levels.
    """
    first = np.asarray(train)[: max(_COMPRESSED // train[0].size, 1)]
    known, new = (
        np.asarray(dequantization.to_levels(jnp.asarray(x), levels), np.uint8).tobytes() for x in (first, test)
    )
    added = len(lzma.compress(known + new, preset=9)) - len(lzma.compress(known, preset=9))
    return 8 * added / len(new)


def _continuous(x: np.ndarray | Array, levels: int, seed: int) -> np.ndarray:
    """[n, d] in float64, dequantized where there are levels."""
    if levels:
        dequantization.check_levels(np.asarray(x), levels)
        keys = row_keys(jax.random.key(seed), jnp.arange(len(x)))
        x, _ = dequantization.uniform(levels)(keys, jnp.asarray(x, jnp.float32))
    elif not np.isfinite(x).all():
        raise ValueError(f"x has {np.count_nonzero(~np.isfinite(x))} NaN or infinite values")
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _num_examples(x: np.ndarray, components: int, cost: float) -> int:
    return min(len(x), max(math.ceil(cost / (components * x.shape[1] ** 2)), 2 * components))


def _fit(x: np.ndarray, components: int, regularization: float, cost: float, passes: int, seed: int):
    from sklearn import exceptions, mixture

    model = mixture.GaussianMixture(components, reg_covar=regularization, max_iter=passes, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)  # the number of passes is limited on purpose
        return model.fit(x[: _num_examples(x, components, cost)])
