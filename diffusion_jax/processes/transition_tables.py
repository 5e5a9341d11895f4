"""Categorical processes from any table of transition matrices: discretised Gaussian noise, nearest neighbours."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.processes.base import row_keys
from diffusion_jax.processes.categorical import (
    LOG_ZERO,
    LogStates,
    LogValues,
    Time,
    Tokens,
    normalized,
    row_categorical,
    safe_log,
)
from diffusion_jax.types import check, check_key

Matrices = Float[np.ndarray, "steps states states"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TransitionTable:
    """q(x_i | x_{i-1}) = Q_i[x_{i-1}, x_i], i = 1..T, at the times t = i / T (arXiv:2107.03006).

    `steps` are the matrices Q_i [T, K, K], whose rows sum to 1, or a function that makes them when they are first
    needed: for 256 grey levels and 1000 steps they and their products are 262 MB each in float32. `limit` [K] is the
    distribution that the last product approaches, from which sampling starts.
    """

    num_values: int
    num_steps: int
    steps: object
    limit: Float[np.ndarray, "states"]

    @property
    def num_states(self) -> int:
        return self.num_values

    @functools.cached_property
    def matrices(self) -> Matrices:
        """Q_1 .. Q_T in float32."""
        return np.asarray(self.steps() if callable(self.steps) else self.steps, np.float32)

    @functools.cached_property
    def products(self) -> Matrices:
        """I, Q_1, Q_1 Q_2, ..., the transitions from the data, multiplied in float64."""
        made = np.empty((self.num_steps + 1, self.num_values, self.num_values), np.float32)
        product = np.eye(self.num_values)
        made[0] = product
        for i, matrix in enumerate(self.matrices):
            product = product @ matrix.astype(np.float64)
            made[i + 1] = product
        return made

    def _index(self, t: Time) -> Int[Array, "*n"]:
        return jnp.round(jnp.asarray(t) * self.num_steps).astype(jnp.int32)

    def _rows(self, index: Array, x: Tokens) -> Int[Array, "batch *shape"]:
        """The index of each token's matrix."""
        return jnp.broadcast_to(index.reshape(index.shape + (1,) * (x.ndim - index.ndim)), x.shape)

    def log_prior(self) -> Float[Array, "states"]:
        return safe_log(jnp.asarray(self.limit, jnp.float32))

    def prior(self, keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Tokens:
        return row_categorical(keys, jnp.broadcast_to(self.log_prior(), (*shape, self.num_values)))

    def perturb(self, key: Key[Array, ""], x_0: Tokens, t: Time) -> Tokens:
        check_key(key)
        return row_categorical(row_keys(key, jnp.arange(len(x_0))), self.log_forward(x_0, t))

    def log_forward(self, x_0: Tokens, t: Time) -> LogStates:
        return safe_log(jnp.asarray(self.products)[self._rows(self._index(t), x_0), x_0])

    def log_evidence(self, x_t: Tokens, t: Time) -> LogValues:
        return safe_log(jnp.asarray(self.products)[self._rows(self._index(t), x_t), :, x_t])

    def _transition(self, x_t: Tokens, t: Time, s: Time) -> Float[Array, "batch *shape states"]:
        """Q_ts[., x_t]: of one step, or for scalar times the product of those between."""
        matrices, last, first = jnp.asarray(self.matrices), self._index(t), self._index(s)
        column = matrices[self._rows(last - 1, x_t), :, x_t]
        if jnp.ndim(first):
            return column
        back = lambda n, column: jnp.einsum("...k,jk->...j", column, matrices[last - 2 - n])  # noqa: E731
        return jax.lax.fori_loop(0, last - 1 - first, back, column)

    def log_posterior(self, log_D: LogValues, x_t: Tokens, t: Time, s: Time) -> LogStates:
        """log p(x_s | x_t) of scalar times, or of rows of times of which s is one step before t."""
        evidence = self.log_evidence(x_t, t)
        weights = jnp.where(evidence > LOG_ZERO / 2, log_D - evidence, LOG_ZERO)
        weights = jnp.exp(jnp.maximum(weights - jnp.max(weights, axis=-1, keepdims=True), LOG_ZERO))
        first = self._index(s)
        products = jnp.asarray(self.products)[first]
        axes = "...k,kj->...j" if not jnp.ndim(first) else "b...k,bkj->b...j"
        back = jnp.einsum(axes, weights, products)
        return normalized(safe_log(back) + safe_log(self._transition(x_t, t, s)))

    def reverse(self, keys: Key[Array, "batch"], log_D: LogValues, x_t: Tokens, t: Time, s: Time) -> Tokens:
        return row_categorical(keys, self.log_posterior(log_D, x_t, t, s))


def discretized_gaussian(
    num_values: int, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> TransitionTable:
    """Noise that moves a level to near ones: Q_i[j, k] = softmax over offsets d of -(2 d / (K - 1))^2 / beta_i, j != k.

    d = k - j, the softmax is over all offsets -(K - 1)..K - 1, and the diagonal is what is missing to 1: symmetric and
    doubly stochastic, with the uniform limit. beta_i rises linearly. arXiv:2107.03006, appendix A.2.3.

    Raises ValueError unless 0 < beta_start <= beta_end < 1, and there are at least two values and one step.
    """
    ends = (beta_start, beta_end)
    check(0 < beta_start <= beta_end < 1, "(beta_start, beta_end)", ends, "0 < beta_start <= beta_end < 1")
    _check_sizes(num_values, num_steps)
    betas = np.linspace(beta_start, beta_end, num_steps)
    offsets = np.arange(num_values)
    distances = np.abs(offsets[:, None] - offsets)

    def matrices() -> Matrices:
        made = np.empty((num_steps, num_values, num_values), np.float32)
        for i, beta in enumerate(betas):
            weights = np.exp(-((2 * offsets / (num_values - 1)) ** 2) / beta)
            weights = weights / (2 * weights.sum() - weights[0])
            matrix = weights[distances]
            np.fill_diagonal(matrix, 0)
            np.fill_diagonal(matrix, 1 - matrix.sum(1))
            made[i] = matrix
        return made

    return TransitionTable(
        num_values=num_values,
        num_steps=num_steps,
        steps=matrices,
        limit=np.full(num_values, 1 / num_values),
    )


def nearest_neighbours(
    vectors: Float[np.ndarray, "values dim"], k: int, alphas: Float[np.ndarray, "T"]
) -> TransitionTable:
    """Noise that moves a token to one with a similar embedding: products exp(a R) with increments of a per step.

    R = (G + G^T) / (2 k) - its row sums, G the graph of the `k` nearest of `vectors` [K, dim]; `alphas` [T] are the
    increments. Symmetric, so that the limit is uniform if the graph is connected. arXiv:2107.03006, appendix A.2.4.

    Raises ValueError unless 1 <= k < K and the increments are positive.
    """
    vectors, alphas = np.asarray(vectors, np.float64), np.asarray(alphas, np.float64)
    check(1 <= k < len(vectors), "k", k, f"in 1..{len(vectors) - 1}")
    check(alphas.shape == (alphas.size,) and alphas.size and bool((alphas > 0).all()), "alphas", alphas, "positive [T]")
    distances = np.square(vectors[:, None] - vectors).sum(-1)
    np.fill_diagonal(distances, np.inf)
    graph = np.zeros_like(distances)
    np.put_along_axis(graph, np.argsort(distances, axis=1)[:, :k], 1, axis=1)
    rate = (graph + graph.T) / (2 * k)
    np.fill_diagonal(rate, -rate.sum(1))
    values, basis = np.linalg.eigh(rate)
    matrices = np.stack([(basis * np.exp(a * values)) @ basis.T for a in alphas])
    return TransitionTable(
        num_values=len(vectors),
        num_steps=len(alphas),
        steps=np.maximum(matrices, 0),
        limit=np.full(len(vectors), 1 / len(vectors)),
    )


def _check_sizes(num_values: int, num_steps: int) -> None:
    check(num_values >= 2, "num_values", num_values, "at least 2")
    check(num_steps >= 1, "num_steps", num_steps, "at least 1")
