"""Bridges between two data sets: x_t = near(t) x_0 + far(t) x_1 + sigma(t) eps, pinned at x_0 and at x_1.

A bridge is a `reference` diffusion process that is conditioned on its end x_1 (Doob's h-transform). With x_t | x_0 of
the reference N(alpha x_0, s^2 I) and r = SNR(1) / SNR(t),

    near = alpha (1 - r),    far = alpha r / alpha(1),    sigma^2 = s^2 (1 - r)    (arXiv:2309.16948)

so every continuous process gives one. x_0 is the example and x_1 where sampling starts, such as its degraded image.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.processes.base import bcast
from diffusion_jax.processes.continuous import EDM, VP, Number, Time
from diffusion_jax.types import BridgeProcess, Process, check, check_key, check_made, pytree

_PINNED = 1e-6  # 1 - r below this is 0: rounding of SNR(1) / SNR(1)


@pytree
class Brownian:
    """Brownian motion: alpha = 1, sigma = scale sqrt(t), the reference of DSBM (arXiv:2303.16852)."""

    scale: Number = 1.0
    num_steps = None

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.scale * jnp.sqrt(t)


@pytree
class SymmetricVE:
    """I2SB's reference: alpha = 1, sigma^2 = N int_0^t beta, with a beta that rises to t = 1/2 and falls again.

    sqrt(beta) is linear from sqrt(beta_min) at t = 0 to half-way between it and sqrt(beta_max / N) at t = 1/2, as in
    the authors' code (NVlabs/I2SB i2sb/runner.py), whose schedule is the first half of one from beta_min to beta_max /
    N and its mirror image. There beta_min is not divided by N, so that beta_max = 0.3 gives sigma(1)^2 = 0.141.
    arXiv:2302.05872.
    """

    beta_max: Number = 0.3
    beta_min: Number = 1e-4
    scale_steps: Number = 1000.0  # N
    num_steps = None

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        first, last = jnp.sqrt(self.beta_min), jnp.sqrt(self.beta_max / self.scale_steps)

        def integral(t: Time) -> Time:  # of beta over [0, t], t <= 1/2
            root = first + (last - first) * t
            return t * (first**2 + first * root + root**2) / 3

        half = integral(jnp.minimum(t, 0.5))
        rest = integral(jnp.full_like(t, 0.5)) - integral(jnp.minimum(1 - t, 0.5))
        return jnp.sqrt(self.scale_steps * (half + jnp.where(t > 0.5, rest, 0)))


@pytree
class Bridge:
    """The bridges of `reference`, see above. Without `noisy`, their means: near and far alone, I2SB's OT-ODE."""

    reference: Process
    noisy: bool = dataclasses.field(default=True, metadata=dict(static=True))

    def _shares(self, t: Time) -> tuple[Time, Time]:
        """(1 - r, r) with r = SNR(1) / SNR(t), which is too small near t = 0 to be formed from 1 - r."""
        t, one = jnp.asarray(t), jnp.ones_like(t)
        root = self.reference.alpha(one) * self.reference.sigma(t) / self.reference.sigma(one) / self.reference.alpha(t)
        gap = (1 - root) * (1 + root)
        return jnp.where(gap < _PINNED, 0, gap), jnp.where(gap < _PINNED, 1, root**2)

    def near(self, t: Time) -> Time:
        return self.reference.alpha(t) * self._shares(t)[0]

    def far(self, t: Time) -> Time:
        return self.reference.alpha(t) / self.reference.alpha(jnp.ones_like(t)) * self._shares(t)[1]

    def sigma(self, t: Time) -> Time:
        gap = self._shares(t)[0]
        if not self.noisy:
            return jnp.zeros_like(gap)
        # The slope of the square root at the pinned end is not finite, and jvp would multiply it by 0.
        return jnp.where(gap > 0, self.reference.sigma(t) * jnp.sqrt(jnp.where(gap > 0, gap, 1)), 0)


@pytree
class Reversed:
    """A bridge seen from its other end: x_1 at time 0 and x_0 at time 1."""

    bridge: BridgeProcess

    @property
    def reference(self) -> Process:
        return self.bridge.reference

    @property
    def noisy(self) -> bool:
        return self.bridge.noisy

    def near(self, t: Time) -> Time:
        return self.bridge.far(1 - t)

    def far(self, t: Time) -> Time:
        return self.bridge.near(1 - t)

    def sigma(self, t: Time) -> Time:
        return self.bridge.sigma(1 - t)


def brownian_bridge(scale: float = 1.0, noisy: bool = True) -> Bridge:
    """near = 1 - t, far = t, sigma = scale sqrt(t (1 - t)). Raises ValueError unless scale is positive."""
    check(scale > 0, "scale", scale, "positive")
    return Bridge(reference=Brownian(scale=scale), noisy=noisy)


def i2sb_bridge(beta_max: float = 0.3, beta_min: float = 1e-4, noisy: bool = True) -> Bridge:
    """The bridge of `SymmetricVE`. Raises ValueError unless both are positive."""
    check(beta_max > 0, "beta_max", beta_max, "positive")
    check(beta_min > 0, "beta_min", beta_min, "positive")
    return Bridge(reference=SymmetricVE(beta_max=beta_max, beta_min=beta_min), noisy=noisy)


def ve_bridge(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Bridge:
    """DDBM's VE bridge: sigma of the reference is linear in t. Raises ValueError unless 0 < sigma_min < sigma_max."""
    check(0 < sigma_min < sigma_max, "sigma_min", sigma_min, f"positive and below sigma_max={sigma_max}")
    return Bridge(reference=EDM(sigma_min=sigma_min, sigma_max=sigma_max))


def vp_bridge(beta_min: float = 0.1, beta_max: float = 2.1) -> Bridge:
    """DDBM's VP bridge; its beta_d is beta_max - beta_min. Raises ValueError unless 0 < beta_min <= beta_max."""
    check(0 < beta_min <= beta_max, "beta_min", beta_min, f"positive and at most beta_max={beta_max}")
    return Bridge(reference=VP(beta_min=beta_min, beta_max=beta_max))


def perturb_between(
    process: BridgeProcess,
    key: Key[Array, ""],
    x_0: Float[Array, "batch *shape"],
    x_1: Float[Array, "batch *shape"],
    t: Float[Array, "*n"],
) -> Float[Array, "batch *shape"]:
    """Sample q(x_t | x_0, x_1): near x_0 + far x_1 + sigma eps. `t` is a scalar or [batch].

    Raises TypeError for a process that was not constructed, or a key that is not typed.
    """
    check_made("process", process, "process")
    check_key(key)
    mean = bcast(process.near(t), x_0) * x_0 + bcast(process.far(t), x_0) * x_1
    return mean + bcast(process.sigma(t), x_0) * jax.random.normal(key, x_0.shape, x_0.dtype)
