"""Losses from the variational bound of a discrete process (arXiv:2006.11239, eq. 5; arXiv:2102.09672, section 3).

The network has twice the channels of x: F, which gives x_0 by the parameterization, and 2 v - 1, which places the
variance of a reverse step between beta_tilde (v = 0) and beta (v = 1). All figures are in bits per dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax.losses.bound_terms import decoder_nats, posterior_kl
from diffusion_jax.losses.denoising import Loss, Where, refuse_where, weighted_error
from diffusion_jax.losses.times import Times
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes.base import bcast, perturb
from diffusion_jax.solvers.base import posterior, step_variance, transition
from diffusion_jax.types import Apply, Cond, Params, Process, check, needing


def bound_term(
    process: Process,
    x_0: Float[Array, "batch *shape"],
    x_hat: Float[Array, "batch *shape"],
    v: Float[Array, "batch *shape"],
    t: Float[Array, "batch"],
    levels: int,
) -> Float[Array, "batch"]:
    """L_{t-1} of the full table at t = i / T, or for i = 1 the decoder's L_0, in bits per dimension.

    At the first step, whose posterior variance is zero, that of the second stands for it, as in the paper's code.
    """
    step = 1 / process.num_steps
    first = t < 1.5 * step
    # The terms of the first step are computed at the second, and replaced below.
    inner = jnp.maximum(t, 2 * step)
    _, _, beta_tilde = posterior(process, inner, inner - step)
    _, beta = transition(process, t, t - step)
    variance = step_variance("learned", beta, beta_tilde, v)
    kl = posterior_kl(process, inner, inner - step, x_0, x_hat, variance)
    nats = jnp.where(first, decoder_nats(x_0, x_hat, variance, levels), kl)
    return nats / (x_0[0].size * np.log(2))


@needing(num_steps=True, learned_variance=True)
def vlb_loss(apply: Apply, param: Parameterization, process: Process, times: Times, levels: int = 256) -> Loss:
    """L_vlb = T E_t[L_{t-1}] of arXiv:2102.09672, eq. 4 to 7, without the constant L_T, in bits per dimension.

    `times` draws grid points of the process: times.discrete, or a resampler. Returns
    `loss(params, key, x_0, cond=None, *, train=True, times=times)` -> ([batch], aux), aux holding `t` and `vlb`, T
    times the bound's term, both [batch]. Raises ValueError for a continuous process, or fewer than 2 levels.
    """
    check(levels >= 2, "levels", levels, "at least 2")
    predict = _predict(apply, param, process)

    @needing(sigma=True, num_steps=True, learned_variance=True)
    def loss(
        params: Params,
        key: Key[Array, ""],
        x_0: Array,
        cond: Cond = None,
        where: Where = None,
        *,
        train: bool = True,
        times: Times = times,
    ) -> tuple[Array, dict[str, Array]]:
        refuse_where(where, "the variational bound")
        p = predict(params, key, x_0, cond, train, times)
        bits = process.num_steps * bound_term(process, x_0, p.x_hat(p.out), p.v, p.t, levels)
        return p.density_weight * bits, {"t": p.t, "vlb": bits}

    return loss


@needing(num_steps=True, learned_variance=True)
def hybrid_loss(
    apply: Apply,
    param: Parameterization,
    process: Process,
    weighting: Weighting,
    times: Times,
    levels: int = 256,
    vlb_weight: float = 0.001,
) -> Loss:
    """L_hybrid = L_simple + vlb_weight L_vlb, where L_vlb does not move the mean (arXiv:2102.09672, eq. 16).

    L_simple is `denoising_loss` under `weighting`; for the rest see `vlb_loss`. aux has `mse`, too. Raises ValueError
    for a negative `vlb_weight` too.
    """
    check(levels >= 2, "levels", levels, "at least 2")
    check(vlb_weight >= 0, "vlb_weight", vlb_weight, "at least 0")
    predict = _predict(apply, param, process)

    @needing(weighting, sigma=True, num_steps=True, learned_variance=True)
    def loss(
        params: Params,
        key: Key[Array, ""],
        x_0: Array,
        cond: Cond = None,
        where: Where = None,
        *,
        train: bool = True,
        times: Times = times,
    ) -> tuple[Array, dict[str, Array]]:
        refuse_where(where, "the variational bound")
        p = predict(params, key, x_0, cond, train, times)
        simple, mse = weighted_error(process, param, weighting, x_0, p.eps, p.t, p.out)
        x_hat = p.x_hat(jax.lax.stop_gradient(p.out))
        bits = process.num_steps * bound_term(process, x_0, x_hat, p.v, p.t, levels)
        return p.density_weight * (simple + vlb_weight * bits), {"t": p.t, "mse": mse, "vlb": bits}

    return loss


class _Prediction(NamedTuple):
    t: Array
    density_weight: Array
    eps: Array
    out: Array  # F
    v: Array
    x_hat: Callable[[Array], Array]  # of F


def _predict(apply: Apply, param: Parameterization, process: Process) -> Callable[..., _Prediction]:
    if process.num_steps is None:
        raise ValueError(
            f"the process {type(process).__name__} is continuous; the bound's terms are those of a discrete one"
        )

    def predict(params: Params, key: Array, x_0: Array, cond: Cond, train: bool, times: Times) -> _Prediction:
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t, density_weight = times(process, time_key, x_0.shape[0])
        x_t, eps = perturb(process, noise_key, x_0, t)
        c = param(process, t)
        both = apply(params, bcast(c.c_in, x_0) * x_t, c.c_noise, cond, key=dropout_key if train else None)
        out, v = jnp.split(both, 2, axis=-1)

        def x_hat(out: Array) -> Array:
            return bcast(c.c_skip, x_0) * x_t + bcast(c.c_out, x_0) * out

        return _Prediction(t, density_weight, eps, out, (v + 1) / 2, x_hat)

    return predict
