"""The loss of bridge models: the error of the network on bridges between paired examples.

    L = |F(c_in x_t, c_noise) - (x_0 - c_skip x_t) / c_out|^2,    x_t = near x_0 + far x_1 + sigma eps

It is |D - x_0|^2 / c_out^2, the weight of I2SB (arXiv:2302.05872, eq. 12) and of DDBM (arXiv:2309.16948).
"""

from __future__ import annotations

import jax
from jaxtyping import Array

from diffusion_jax.losses.denoising import NORMS, Loss, Where, row_mean
from diffusion_jax.losses.times import Times
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes.base import bcast
from diffusion_jax.processes.bridge import perturb_between
from diffusion_jax.types import Apply, BridgeProcess, Cond, Params, check_choice, check_key


def bridge_loss(apply: Apply, param: Parameterization, process: BridgeProcess, times: Times, norm: str = "l2") -> Loss:
    """Build `loss(params, key, x_0, x_1, cond=None, where=None, *, train=True) -> ([batch], aux)`.

    The mean of L over dimensions, or over those that the mask `where` counts; with `norm` "l1" of absolute values.
    `times` are those of the reference process. aux holds the times `t` [batch]. `apply` is called as
    apply(params, x, c_noise, cond, key=key), the key being for dropout and None unless `train`.

    Raises ValueError for an unknown `norm`.
    """
    check_choice("norm", norm, NORMS)

    def loss(
        params: Params,
        key: Array,
        x_0: Array,
        x_1: Array,
        cond: Cond = None,
        where: Where = None,
        *,
        train: bool = True,
    ) -> tuple[Array, dict[str, Array]]:
        check_key(key)
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t, density_weight = times(process.reference, time_key, x_0.shape[0])
        x_t = perturb_between(process, noise_key, x_0, x_1, t)
        c = param(process, t)
        out = apply(params, bcast(c.c_in, x_t) * x_t, c.c_noise, cond, key=dropout_key if train else None)
        target = (x_0 - bcast(c.c_skip, x_t) * x_t) / bcast(c.c_out, x_t)
        return density_weight * row_mean(NORMS[norm](out - target), where), {"t": t}

    return loss
