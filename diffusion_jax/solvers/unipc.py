"""UniPC: a predictor and a corrector of exponential multistep form, at one evaluation of D per step."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_jax.solvers.exponential import (
    History,
    check_order,
    coefficients,
    half_log_snr,
    select,
)
from diffusion_jax.solvers.multistep import difference, exponential_correction, predictions
from diffusion_jax.types import Denoiser, Needs, Process, Solver, check_choice


class _Carry(NamedTuple):
    base: Array  # the latest step from its corrected start, to first order
    order: Int[Array, ""]  # of the latest step; 0 if there is nothing to correct
    history: History


def unipc(order: int = 3, variant: str = "bh2", prediction: str = "x0", num_steps: int | None = None) -> Solver:
    """UniPC-p of arXiv:2302.04867, p = `order` from 1 to 4. Converges with order p + 1; inverts.

    Each step evaluates D at the predicted x_t, corrects x_t with it (UniC-p), and predicts x_s (UniP-p). The last x
    is not corrected, as nothing is evaluated there. `prediction` is the quantity whose polynomial is integrated, D
    (`x0`) or eps. `variant` is B(h) = h (`bh1`) or e^h - 1 (`bh2`), which matters to the predictor of order 2 and the
    corrector of order 1 alone, since from three values on the polynomial decides.

    A step much longer than those before it has lower order, see `exponential.reliable`. A step that ends where
    sigma = 0, or starts where alpha = 0, is DDIM's. `num_steps` is the number of steps of the whole solve. Raises
    ValueError for another order, variant or prediction, or for fewer steps than the order.
    """
    check_order("unipc", order, 4, num_steps)
    check_choice("variant", variant, ("bh1", "bh2"))
    check_choice("prediction", prediction, ("x0", "eps"))

    def init(x: Array) -> _Carry:
        return _Carry(jnp.zeros_like(x), jnp.zeros((), jnp.int32), History.empty(x, order))

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array, carry: _Carry):
        base, last_order, history = carry
        x_0, eps = predictions(process, D, x, t)
        M = x_0 if prediction == "x0" else eps
        here, h = half_log_snr(process, t), half_log_snr(process, s) - half_log_snr(process, t)

        x = jnp.where(last_order > 0, base - _correction(process, t, here, M, history, last_order), x)
        # What is kept stays as it was evaluated; the other one of D and eps follows the corrected x.
        alpha_t = process.alpha(t)
        if prediction == "x0":
            eps = (x - alpha_t * x_0) / process.sigma(t)
        else:
            x_0 = jnp.where(alpha_t > 0, (x - process.sigma(t) * eps) / jnp.where(alpha_t > 0, alpha_t, 1), x_0)
        base = process.alpha(s) * x_0 + process.sigma(s) * eps

        older = history._replace(coordinates=history.coordinates[:-1], predictions=history.predictions[:-1])
        correction, count = exponential_correction(process, s, h, here, M, older, prediction, variant)
        return base - correction, _Carry(base, jnp.where(jnp.isfinite(h), count + 1, 0), history.push(here, M))

    def _correction(process, t, here, M, history, last_order):
        """What UniC subtracts from `base` at t, from M at t and `last_order` values at earlier times."""
        latest, last = history.coordinates[0], history.predictions[0]
        corrects = last_order > 0
        h = jnp.where(corrects, here - latest, 1)
        z, scale = (-h, process.alpha(t)) if prediction == "x0" else (h, process.sigma(t))
        nodes = history.nodes(jnp.where(corrects, latest, 0), h)[1:]
        c = select(last_order, [jnp.ones_like(h), *nodes], lambda used: coefficients(used, z, variant))
        return scale * difference(c, last, history._replace(predictions=(M, *history.predictions[1:])))

    return Solver(init=init, step=step, needs=Needs(sigma=True, distinct_times=True))
