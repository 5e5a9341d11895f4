"""A variance-preserving process whose schedule is learned with the network: VDM (arXiv:2107.00630)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.types import pytree

Time = Float[Array, "*n"]
Number = Any  # a float or an array; JAX's transformations rebuild a pytree with tracers or placeholders in its place


@pytree
class LearnedVP:
    """alpha(t)^2 = sigmoid(-gamma(t)), sigma(t)^2 = sigmoid(gamma(t)) with gamma = -log SNR increasing in t.

    gamma(t) = (1 - u) gamma_0 + u gamma_1,   u = (f(t) - f(0)) / (f(1) - f(0)),
    f(t) = t + sum_k h_k sigmoid(s_k t + c_k)

    with slopes s = softplus(slope) and heights h = softplus(height), both positive, and shifts c = shift: the monotone
    network of arXiv:2107.00630, section 4.1 and appendix H. The end points are normalised, so its first (linear) layer
    would only set the scale, and is left out. Without `slope`, `shift` and `height`, all [hidden], gamma is linear in
    t. All fields are leaves of the pytree, so that an optimizer can train them.

    Args:
      gamma_0: -log SNR at t = 0, below gamma_1.
      gamma_1: -log SNR at t = 1.
    """

    gamma_0: Number = -13.3
    gamma_1: Number = 5.0
    slope: Number = None
    shift: Number = None
    height: Number = None
    num_steps = None

    def gamma(self, t: Time) -> Time:
        """-log SNR; gamma_0 and gamma_1 are scalars or of the shape of t."""
        u = self._fraction(t)
        return (1 - u) * self.gamma_0 + u * self.gamma_1

    def alpha(self, t: Time) -> Time:
        return jnp.sqrt(jax.nn.sigmoid(-self.gamma(t)))

    def sigma(self, t: Time) -> Time:
        return jnp.sqrt(jax.nn.sigmoid(self.gamma(t)))

    def _fraction(self, t: Time) -> Time:
        t = jnp.asarray(t)
        if self.slope is None:
            return t
        slope, height = jax.nn.softplus(self.slope), jax.nn.softplus(self.height)

        def f(t: Time) -> Time:
            return t + jax.nn.sigmoid(t[..., None] * slope + self.shift) @ height

        low, high = f(jnp.zeros((), t.dtype)), f(jnp.ones((), t.dtype))
        return (f(t) - low) / (high - low)


def learned_vp(gamma_0: float = -13.3, gamma_1: float = 5.0, hidden: int = 0) -> LearnedVP:
    """The process that training starts from: gamma linear but for `hidden` small sigmoids, 0 for none.

    Their steps are spread evenly over [0, 1], have a width of about a tenth of it and add up to a fifth of the rise.

    Raises ValueError unless gamma_0 < gamma_1 and hidden >= 0.
    """
    if not gamma_0 < gamma_1:
        raise ValueError(f"gamma_0 is {gamma_0} and gamma_1 is {gamma_1}; gamma = -log SNR must rise")
    if hidden < 0:
        raise ValueError(f"hidden is {hidden}; it must be at least 0")
    ends = {"gamma_0": jnp.float32(gamma_0), "gamma_1": jnp.float32(gamma_1)}
    if not hidden:
        return LearnedVP(**ends)
    slope, height = 20.0, 0.25 / hidden
    centre = (jnp.arange(hidden, dtype=jnp.float32) + 0.5) / hidden
    return LearnedVP(
        **ends,
        slope=jnp.full(hidden, slope, jnp.float32),  # softplus(20) = 20
        shift=-slope * centre,
        height=jnp.full(hidden, jnp.log(jnp.expm1(height)), jnp.float32),
    )
