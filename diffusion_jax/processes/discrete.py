"""Discrete-time variance-preserving processes from any table of betas, as in DDPM."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.types import check, pytree

Time = Float[Array, "*n"]
Table = Any  # float[T + 1]; JAX's transformations rebuild a pytree with tracers or placeholders in its place


@pytree
class DiscreteVP:
    """q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I) for i = 1..T, exact at the grid points t = i / T.

    alpha^2(i / T) = prod_{j <= i} (1 - beta_j) and sigma^2 = 1 - alpha^2 (arXiv:2006.11239, eq. 4); t = 0 is the
    data. Between grid points alpha^2 and sigma^2 are linear in t, so they still sum to one. Entry i - 1 of a
    PyTorch table (timestep i - 1) is t = i / T.
    """

    alpha_squared: Table  # from 1 at t = 0
    sigma_squared: Table

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> DiscreteVP:
        """Build the process from betas [T] with 0 < beta < 1, the last possibly 1 (zero terminal SNR).

        Raises ValueError for a table that is empty, not one-dimensional or out of range.
        """
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or betas.size == 0:
            raise ValueError(f"betas has shape {betas.shape}; expected a non-empty one-dimensional table")
        if not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
            raise ValueError(f"betas must lie in (0, 1), the last in (0, 1]; got {betas.min()} to {betas.max()}")
        # expm1 of summed logarithms, in float64, keeps sigma^2 accurate where alpha^2 is near one.
        with np.errstate(divide="ignore"):
            log_alpha_squared = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
        return cls(
            alpha_squared=jnp.asarray(np.exp(log_alpha_squared), jnp.float32),
            sigma_squared=jnp.asarray(-np.expm1(log_alpha_squared), jnp.float32),
        )

    @property
    def num_steps(self) -> int:
        return self.alpha_squared.shape[0] - 1

    def alpha(self, t: Time) -> Time:
        return jnp.sqrt(self._interpolate(self.alpha_squared, t))

    def sigma(self, t: Time) -> Time:
        return jnp.sqrt(self._interpolate(self.sigma_squared, t))

    def _interpolate(self, table: Array, t: Time) -> Time:
        u = t * self.num_steps
        # i / T times T is not quite i: rounding moves it by a few parts of eps. Snap the value, not the derivative, to
        # the grid point, but no time that is farther away: alpha and sigma would be constant there.
        nearest = jnp.round(u)
        rounding = jnp.abs(u - nearest) <= 2 * jnp.finfo(u.dtype).eps * u
        u = u + jax.lax.stop_gradient(jnp.where(rounding, nearest - u, 0.0))
        right = jax.lax.stop_gradient(jnp.clip(jnp.ceil(u), 1, self.num_steps)).astype(jnp.int32)
        weight = u - (right - 1)
        return table[right - 1] * (1 - weight) + table[right] * weight


def beta_table(
    kind: str = "linear", num_steps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """Betas [num_steps] in float64.

    linear: evenly spaced from beta_start to beta_end (arXiv:2006.11239). scaled_linear: square roots evenly spaced
    (arXiv:2112.10752). cosine: 1 - abar(i+1)/abar(i) with abar(t) = cos^2(pi/2 (t + 0.008) / 1.008), at most 0.999
    (arXiv:2102.09672, eq. 17). sqrt: the same from abar(t) = 1 - sqrt(t + 1e-4) (arXiv:2205.14217, appendix A).
    vp: the same from that of the VP SDE with beta from 0.1 to 20 at t = 0.001 + 0.999 i / num_steps, for a few large
    steps (arXiv:2112.07804, appendix D).
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    t = np.linspace(0, 1, num_steps + 1)
    if kind == "linear":
        return np.linspace(beta_start, beta_end, num_steps)
    if kind == "scaled_linear":
        return np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2
    if kind == "cosine":
        alpha_bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    elif kind == "sqrt":
        alpha_bar = 1 - np.sqrt(t + 1e-4)
    elif kind == "vp":
        t = 1e-3 + (1 - 1e-3) * t
        log_alpha_bar = -0.1 * t - 0.5 * (20 - 0.1) * t**2
        return -np.expm1(np.diff(log_alpha_bar))  # a large step may have a beta above 0.999
    else:
        raise ValueError(f"betas {kind!r} is unknown; choose linear, scaled_linear, cosine, sqrt or vp")
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shift and scale sqrt(alpha_bar) so that it ends at 0 and starts as before. arXiv:2305.08891, algorithm 1."""
    root = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def discrete_vp(
    betas: str = "linear",
    num_steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> DiscreteVP:
    """The process of a named table of betas (see `beta_table`), optionally rescaled to zero terminal SNR.

    Raises ValueError unless 0 < beta_start <= beta_end < 1.
    """
    ends = (beta_start, beta_end)
    check(0 < beta_start <= beta_end < 1, "(beta_start, beta_end)", ends, "0 < beta_start <= beta_end < 1")
    table = beta_table(betas, num_steps, beta_start=beta_start, beta_end=beta_end)
    return DiscreteVP.from_betas(rescale_zero_terminal_snr(table) if zero_terminal_snr else table)
