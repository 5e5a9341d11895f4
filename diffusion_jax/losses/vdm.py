"""The variational bound of VDM, whose noise schedule is learned with the network (arXiv:2107.00630).

    -log P(x) <= -E log P(x | z_0)  +  KL(q(z_1 | x) || p(z_1))  +  diffusion
                  reconstruction        prior

    diffusion = 1/2 E[gamma'(t) |eps - eps_hat(z_t, t)|^2],  t ~ U(0, 1)                         (eq. 17, T = infinity)
              = T/2 E[expm1(gamma(t) - gamma(s)) |eps - eps_hat(z_t, t)|^2],  s = t - 1/T        (eq. 13, 14)

In continuous time the diffusion loss depends on the schedule through its ends alone (eq. 18), so the ends follow the
bound, and what lies between them is free to make the estimate of the bound precise. All figures are in bits per
dimension.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax.likelihood.dequantization import to_levels
from diffusion_jax.losses.bound_terms import prior_kl
from diffusion_jax.losses.denoising import Where, denoising_loss
from diffusion_jax.losses.weightings import snr
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes.base import time_derivative
from diffusion_jax.processes.learned import LearnedVP
from diffusion_jax.types import Apply, Cond, Params

# What a row needs of the schedule: the straight line that touches gamma at its t, and its weight; leaves are [batch].
Local = tuple[LearnedVP, Float[Array, "batch"]]
# diffusion(params, process, key, x_0, t, cond, where, *, train) -> [batch]
DiffusionLoss = Callable[..., Float[Array, "batch"]]


def diffusion_loss(
    apply: Apply, param: Parameterization, *, num_steps: int = 0, minimize_variance: bool = True
) -> DiffusionLoss:
    """The diffusion term above for given t [batch], any parameterization: an estimate per row, in bits per dimension.

    `num_steps` is T, 0 for continuous time; a discrete t is i / T with i = 1..T. The gradient reaches the network and
    the schedule, all of it by the bound. In continuous time with `minimize_variance` what lies between the schedule's
    ends has the gradient of the squared estimate instead: as its mean does not depend on it, this lowers the variance
    (section 4.1 and appendix I.2 there). It takes no second backward pass.

    Raises ValueError for a negative `num_steps`.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}; it must be positive, or 0 for continuous time")

    def local(process: LearnedVP, t: Array) -> Local:
        gamma, slope = time_derivative(process.gamma, t)
        weight = num_steps * jnp.expm1(gamma - process.gamma(t - 1 / num_steps)) if num_steps else slope
        return LearnedVP(gamma_0=gamma - slope * t, gamma_1=gamma + slope * (1 - t)), weight

    def loss(
        params: Params,
        process: LearnedVP,
        key: Key[Array, ""],
        x_0: Float[Array, "batch *shape"],
        t: Float[Array, "batch"],
        cond: Cond = None,
        where: Where = None,
        *,
        train: bool = True,
    ) -> Float[Array, "batch"]:
        def bits(params: Params, local: Local) -> Array:
            tangent, weight = local
            estimate = denoising_loss(
                apply,
                param,
                tangent,
                weighting=lambda process, t: weight / 2 * snr(process, t),
                times=lambda process, key, n: (t, jnp.ones_like(t)),
            )
            return estimate(params, key, x_0, cond, where, train=train)[0] / np.log(2)

        if num_steps or not minimize_variance:
            return bits(params, local(process, t))
        return _squared_for_the_last(bits)(params, local(_only_ends(process), t), local(_only_interior(process), t))

    return loss


def reconstruction(
    process: LearnedVP, eps: Float[Array, "batch *shape"], x_0: Float[Array, "batch *shape"], levels: int
) -> Float[Array, "batch"]:
    """-log P(x_0 | z_0) with z_0 = alpha(0) x_0 + sigma(0) eps, in bits per dimension.

    P(x_0 | z_0) is in proportion to q(z_0 | x_0), normalised over the `levels` grey levels (section 3.3 there).
    x_0 = 2 k / (levels - 1) - 1.
    """
    noise = jnp.exp(process.gamma(jnp.zeros((), x_0.dtype)) / 2)  # sigma / alpha
    k = to_levels(x_0, levels)
    distance = (k[..., None] - jnp.arange(levels)) * (2 / (levels - 1))
    logits = -0.5 * (distance / noise + eps[..., None]) ** 2
    # The logit of k itself is -eps^2 / 2.
    nats = jax.nn.logsumexp(logits, axis=-1) + 0.5 * eps**2
    return jnp.mean(nats.reshape(x_0.shape[0], -1), axis=-1) / np.log(2)


def prior(process: LearnedVP, x_0: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """KL(q(z_1 | x_0) || N(0, sigma(1)^2 I)) in bits per dimension."""
    return prior_kl(process, x_0) / (x_0[0].size * np.log(2))


def _only_ends(process: LearnedVP) -> LearnedVP:
    """The process, of which a gradient sees gamma_0 and gamma_1."""
    fixed = jax.lax.stop_gradient(process)
    return LearnedVP(
        gamma_0=process.gamma_0,
        gamma_1=process.gamma_1,
        slope=fixed.slope,
        shift=fixed.shift,
        height=fixed.height,
    )


def _only_interior(process: LearnedVP) -> LearnedVP:
    """The process, of which a gradient sees all but gamma_0 and gamma_1."""
    return LearnedVP(
        gamma_0=jax.lax.stop_gradient(process.gamma_0),
        gamma_1=jax.lax.stop_gradient(process.gamma_1),
        slope=process.slope,
        shift=process.shift,
        height=process.height,
    )


def _squared_for_the_last(f: Callable[[Params, Local], Array]) -> Callable[[Params, Local, Local], Array]:
    """g(params, ends, interior) with the value and gradient of f(params, ends), and for `interior` that of f^2.

    `ends` and `interior` hold equal values, one per row, and row r of f depends on their row r alone: then the
    gradient of f^2 is 2 f times that of f, row by row.
    """

    @jax.custom_vjp
    def g(params: Params, ends: Local, interior: Local) -> Array:
        return f(params, ends)

    def forward(params: Params, ends: Local, interior: Local):
        value, pull = jax.vjp(f, params, ends)
        return value, (value, pull)

    def backward(residual, cotangent: Array):
        value, pull = residual
        d_params, d_ends = pull(cotangent)
        return d_params, d_ends, jax.tree.map(lambda d: 2 * value * d, d_ends)

    g.defvjp(forward, backward)
    return g
