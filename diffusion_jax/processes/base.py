"""Everything about a Gaussian process that follows from its two functions alpha(t) and sigma(t).

The forward process is x_t = alpha(t) x_0 + sigma(t) eps with eps ~ N(0, I), t in [0, 1], and a signal-to-noise
ratio alpha^2 / sigma^2 that falls with t. It is the marginal of the Markov process dx = f x dt + g dw with

    f = alpha' / alpha,    g^2 = 2 sigma (sigma' - f sigma)    (arXiv:2011.13456, section 3; arXiv:2107.00630, eq. 2)

so a process needs no formula but alpha and sigma: derivatives are taken by forward-mode differentiation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from diffusion_jax.types import Process, check_key, check_made


def bcast(a: Shaped[Array, "*n"], x: Array) -> Array:
    """Append axes to `a` (a scalar or [batch]) until it broadcasts against `x` [batch, ...]."""
    return jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a)))


def time_derivative(
    f: Callable[[Array], Array], t: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """(f(t), f'(t)) for an elementwise f."""
    return jax.jvp(f, (t,), (jnp.ones_like(t),))


def row_sum(a: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """The sum over all axes but the first."""
    return jnp.sum(a.reshape(a.shape[0], -1), axis=-1)


def row_dot(a: Float[Array, "batch *shape"], b: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """The inner product of each row of `a` with the same row of `b`."""
    return row_sum(a * b)


def row_keys(keys: Key[Array, "batch"] | Key[Array, ""], data: int | Int[Array, "*n"]) -> Key[Array, "batch"]:
    """`fold_in` over rows: one key and [batch] integers, or [batch] keys and one integer.

    Raises TypeError for a key that is not typed.
    """
    check_key(keys)
    axes = (0, None) if keys.shape else (None, 0)
    return jax.vmap(jax.random.fold_in, axes)(keys, data)


def row_normal(keys: Key[Array, "batch"], x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
    """Standard normal noise like `x`, row r from keys[r] alone, so that a row does not depend on its batch."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def perturb(
    process: Process,
    key: Key[Array, ""],
    x_0: Float[Array, "batch *shape"],
    t: Float[Array, "*n"],
    eps: Float[Array, "batch *shape"] | None = None,
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
    """Sample q(x_t | x_0): x_t = alpha(t) x_0 + sigma(t) eps. `t` is a scalar or [batch]. Returns (x_t, eps).

    `eps` is the noise of examples that come with theirs; None: it is drawn. Raises TypeError for a process that was not
    constructed, or a key that is not typed.
    """
    check_made("process", process, "process")
    check_key(key)
    eps = jax.random.normal(key, x_0.shape, x_0.dtype) if eps is None else eps
    return bcast(process.alpha(t), x_0) * x_0 + bcast(process.sigma(t), x_0) * eps, eps


def log_snr(process: Process, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(alpha^2 / sigma^2), decreasing in t."""
    return 2 * (jnp.log(process.alpha(t)) - jnp.log(process.sigma(t)))


def time_of_log_snr(process: Process, target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The t in [0, 1] with log_snr(process, t) = target, by bisection; targets out of reach give 0 or 1."""

    def halve(_, bounds):
        low, high = bounds
        mid = (low + high) / 2
        too_clean = log_snr(process, mid) > target
        return jnp.where(too_clean, mid, low), jnp.where(too_clean, high, mid)

    low, high = jax.lax.fori_loop(0, 48, halve, (jnp.zeros_like(target), jnp.ones_like(target)))
    return (low + high) / 2


def drift_and_diffusion(process: Process, t: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """(f, g) of dx = f x dt + g dw. t in (0, 1]; f is infinite where alpha = 0 (t = 1 of a rectified flow)."""
    alpha, d_alpha = time_derivative(process.alpha, t)
    sigma, d_sigma = time_derivative(process.sigma, t)
    f = d_alpha / alpha
    return f, jnp.sqrt(2 * sigma * (d_sigma - f * sigma))


def prior(
    process: Process,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    *,
    ids: Int[Array, "batch"] | None = None,
    t: float | Float[Array, ""] = 1.0,
) -> Float[Array, "batch *shape"]:
    """Draw x_t ~ N(0, sigma(t)^2 I) of `shape` [batch, ...]; row r comes from fold_in(key, ids[r]) (default: r).

    `t` is the time at which sampling starts. Raises TypeError for a process that was not constructed, or a key that is
    not typed.
    """
    check_made("process", process, "process")
    ids = jnp.arange(shape[0]) if ids is None else ids
    return process.sigma(jnp.float32(t)) * row_normal(row_keys(key, ids), jnp.zeros(shape, jnp.float32))


def sampling_keys(key: Key[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The keys of the noise that sampling with `key` starts from, see `prior`, and of the noise that it adds."""
    prior_key, noise_key = jax.random.split(key)
    return prior_key, noise_key


def prior_log_prob(
    process: Process, x: Float[Array, "batch *shape"], t: float | Float[Array, ""] = 1.0
) -> Float[Array, "batch"]:
    """log N(x; 0, sigma(t)^2 I) in nats, summed over all but the first axis."""
    sigma = process.sigma(jnp.asarray(t, x.dtype))
    return row_sum(-0.5 * (x / sigma) ** 2 - jnp.log(sigma) - 0.5 * jnp.log(2 * jnp.pi))
