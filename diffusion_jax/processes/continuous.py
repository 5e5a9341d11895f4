"""Continuous-time processes of the literature, each two functions of t in [0, 1]."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.types import pytree

Time = Float[Array, "*n"]
Number = Any  # a float; JAX's transformations rebuild a pytree with arrays, tracers or placeholders in its place


@pytree
class VP:
    """Variance preserving SDE: beta(t) = beta_min + t (beta_max - beta_min), f = -beta / 2, g = sqrt(beta).

    alpha(t) = exp(-1/2 int_0^t beta), sigma^2 = 1 - alpha^2. arXiv:2011.13456, eq. 11 and appendix C.
    """

    beta_min: Number = 0.1
    beta_max: Number = 20.0
    num_steps = None

    def log_alpha(self, t: Time) -> Time:
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2)

    def alpha(self, t: Time) -> Time:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Time) -> Time:
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))


@pytree
class SubVP:
    """Sub-VP SDE: alpha as in `VP`, sigma = 1 - alpha^2, below VP's at every t. arXiv:2011.13456, eq. 12."""

    beta_min: Number = 0.1
    beta_max: Number = 20.0
    num_steps = None

    @property
    def vp(self) -> VP:
        return VP(beta_min=self.beta_min, beta_max=self.beta_max)

    def alpha(self, t: Time) -> Time:
        return self.vp.alpha(t)

    def sigma(self, t: Time) -> Time:
        return -jnp.expm1(2 * self.vp.log_alpha(t))


@pytree
class VE:
    """Variance exploding SDE, NCSN's noise levels in the limit: alpha = 1, sigma geometric in t.

    sigma(t) = sigma_min (sigma_max / sigma_min)^t, so t = i / (L - 1) is level i of L. arXiv:2011.13456, eq. 9.
    """

    sigma_min: Number = 0.01
    sigma_max: Number = 50.0
    num_steps = None

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t


@pytree
class Cosine:
    """Cosine schedule: alpha(t) = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)). arXiv:2102.09672, eq. 17.

    alpha(1) = 0: parameterizations that divide by alpha (eps, score) need times below 1.
    """

    s: Number = 0.008
    num_steps = None

    def alpha(self, t: Time) -> Time:
        # The complement's sine is exactly 0 at t = 1, where the cosine would round to a negative number.
        return jnp.sin(jnp.pi / 2 * (1 - t) / (1 + self.s)) / jnp.cos(jnp.pi / 2 * self.s / (1 + self.s))

    def sigma(self, t: Time) -> Time:
        # cos^2 b - cos^2 a = sin(a - b) sin(a + b), free of the cancellation in 1 - alpha^2.
        a = jnp.pi / 2 * (t + self.s) / (1 + self.s)
        b = jnp.pi / 2 * self.s / (1 + self.s)
        return jnp.sqrt(jnp.sin(jnp.pi / 2 * t / (1 + self.s)) * jnp.sin(a + b)) / jnp.cos(b)


@pytree
class TruncatedCosine:
    """alpha = cos(a), sigma = sin(a) with an angle a linear in t, and log SNR from `log_snr_max` to `log_snr_min`.

    a runs from arctan(exp(-log_snr_max / 2)) to arctan(exp(-log_snr_min / 2)), so that neither alpha nor sigma is ever
    0. arXiv:2202.00512, section 2, in the authors' code.
    """

    log_snr_max: Number = 20.0
    log_snr_min: Number = -20.0
    num_steps = None

    def angle(self, t: Time) -> Time:
        first, last = (jnp.arctan(jnp.exp(-0.5 * level)) for level in (self.log_snr_max, self.log_snr_min))
        return first + (last - first) * t

    def alpha(self, t: Time) -> Time:
        # The sine of the complement, as the cosine of an angle near pi / 2 is mostly rounding.
        first, last = (jnp.arctan(jnp.exp(0.5 * level)) for level in (self.log_snr_max, self.log_snr_min))
        return jnp.sin(first * (1 - t) + last * t)

    def sigma(self, t: Time) -> Time:
        return jnp.sin(self.angle(t))


@pytree
class EDM:
    """EDM's schedule: alpha = 1 and sigma linear in t, from sigma_min at t = 0 to sigma_max at t = 1.

    Time is sigma up to an affine map, so Euler and Heun in t are those of arXiv:2206.00364, algorithm 1; the step
    from sigma_min to 0 that ends the algorithm is the final denoising of `sampling`.
    """

    sigma_min: Number = 0.002
    sigma_max: Number = 80.0
    num_steps = None

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min + (self.sigma_max - self.sigma_min) * t


@pytree
class RectifiedFlow:
    """Straight paths between data and noise: alpha = 1 - t, sigma = t. arXiv:2209.03003, arXiv:2210.02747.

    Time here grows with noise; the papers' own runs the other way.
    """

    num_steps = None

    def alpha(self, t: Time) -> Time:
        return 1 - t

    def sigma(self, t: Time) -> Time:
        return jnp.asarray(t)


@pytree
class Trig:
    """TrigFlow's schedule: alpha = cos(pi t / 2), sigma = sigma_data sin(pi t / 2). arXiv:2410.11081, section 3.

    x_t keeps the standard deviation sigma_data of the data at every t. The paper's own time is pi t / 2.
    """

    sigma_data: Number = 0.5
    num_steps = None

    def alpha(self, t: Time) -> Time:
        return jnp.sin(jnp.pi / 2 * (1 - t))  # exactly 0 at t = 1, where the cosine would round to a negative number

    def sigma(self, t: Time) -> Time:
        return self.sigma_data * jnp.sin(jnp.pi / 2 * t)
