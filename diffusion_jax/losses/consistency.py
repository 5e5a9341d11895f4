"""Losses of consistency models: distances of two points of a trajectory, and the tangent of continuous time.

A consistency function f(x_t, t) carries every point of a trajectory of the probability-flow ODE to its beginning. It is
learned by comparing f at two neighbouring points, d(f(x_t, t), stop_gradient f(x_s, s)) (arXiv:2303.01469), or by its
derivative along the trajectory (arXiv:2410.11081). f(x, t_min) = x / alpha holds by the parameterization.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.losses.denoising import row_mean
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes.base import bcast, row_dot, time_derivative
from diffusion_jax.types import Denoiser, Params, Process, check, check_choice

Time = Float[Array, "batch"]
Examples = Float[Array, "batch *shape"]


def _no_params(key: Key[Array, ""]) -> Params:
    return {}


def _equal(process: Process, t: Time, s: Time) -> Time:
    return jnp.ones_like(t)


def inverse_gap(process: Process, t: Time, s: Time) -> Time:
    """1 / (sigma_t / alpha_t - sigma_s / alpha_s), and 0 where s = t (arXiv:2310.14189, section 3.1; 2406.14548)."""
    upper, lower = (process.sigma(end) / process.alpha(end) for end in (t, s))
    return jnp.where(upper > lower, 1 / jnp.where(upper > lower, upper - lower, 1), 0)


WEIGHTS = {"equal": _equal, "inverse_gap": inverse_gap}


class Distance(NamedTuple):
    """A distance of examples: `measure(params, a, b) -> [batch]`, its parameters, and the weight of a pair (t, s)."""

    measure: Callable[[Params, Examples, Examples], Float[Array, "batch"]]
    weight: Callable[[Process, Time, Time], Time] = _equal
    init: Callable[[Key[Array, ""]], Params] = _no_params


def _weighting(weight: str) -> Callable[[Process, Time, Time], Time]:
    check_choice("weight", weight, WEIGHTS)
    return WEIGHTS[weight]


def l2(weight: str = "equal") -> Distance:
    """The mean of (a - b)^2. `weight` is one of `WEIGHTS`, otherwise ValueError."""
    return Distance(lambda params, a, b: row_mean(jnp.square(a - b)), _weighting(weight))


def l1(weight: str = "equal") -> Distance:
    """The mean of |a - b|. `weight` is one of `WEIGHTS`, otherwise ValueError."""
    return Distance(lambda params, a, b: row_mean(jnp.abs(a - b)), _weighting(weight))


def huber(c: float = 0.0, weight: str = "equal", entrywise: bool = False) -> Distance:
    """Pseudo-Huber: sqrt(|a - b|^2 + c^2) - c with the norm of the whole example (arXiv:2310.14189, section 3.3).

    The default, `c` = 0, is 0.00054 sqrt(d) for d numbers in an example, as in the paper. A tiny c gives the norm
    itself, as easy consistency tuning uses. With `entrywise` it is the mean over the entries of the same with the
    absolute value of each, as in the code of latent consistency models, which has c = 0.001: another loss, without the
    weight 1 / |a - b| of the gradient that adapts to each example. Raises ValueError for a negative c, or a `weight`
    that is not one of `WEIGHTS`.
    """
    check(c >= 0, "c", c, "at least 0, where 0 is 0.00054 sqrt(d)")
    check(c > 0 or not entrywise, "c", c, "positive with entrywise=True")

    def measure(params: Params, a: Examples, b: Examples) -> Float[Array, "batch"]:
        if entrywise:
            return row_mean(jnp.sqrt(jnp.square(a - b) + c**2) - c)
        width = c or 0.00054 * math.sqrt(a[0].size)
        return jnp.sqrt(row_dot(a - b, a - b) + width**2) - width

    return Distance(measure, _weighting(weight))


def carried(process: Process, f: Denoiser, x: Examples, t: Time, s: Time) -> Examples:
    """x_s = alpha_s f + sigma_s / sigma_t (x_t - alpha_t f): a step of DDIM with f(x_t, t), from t to s <= t.

    It is x for s = t, and what a multistep consistency model compares, with the beginning s of the segment of t
    (arXiv:2403.06807; arXiv:2405.18407). sigma_t must be positive.
    """
    x_0 = f(x, t)
    rest = x - bcast(process.alpha(t), x) * x_0
    return bcast(process.alpha(s), x) * x_0 + bcast(process.sigma(s) / process.sigma(t), x) * rest


class Tangent(NamedTuple):
    """The output F of a network at (x_t, t), and the tangent g = cos(theta) df / dtheta of its consistency function."""

    output: Examples
    tangent: Examples


def angle(process: Process, t: Float[Array, "*n"], sigma_data: float) -> Float[Array, "*n"]:
    """TrigFlow's time theta = arctan(sigma / (alpha sigma_data)) in [0, pi / 2]."""
    return jnp.arctan2(process.sigma(t), sigma_data * process.alpha(t))


def tangent(
    network: Callable[[Examples, Time], Examples],
    param: Parameterization,
    process: Process,
    x: Examples,
    t: Time,
    velocity: Examples,
    sigma_data: float,
    rate: float | Float[Array, ""] = 1.0,
) -> Tangent:
    """The derivative of f(x_t, t) = c_skip x_t + c_out F(c_in x_t, c_noise) along a trajectory with dx / dt = velocity.

    g = cos(theta) (c_skip dx + c_out' F + rate (c_skip' x + c_out dF)), with derivatives by theta, see `angle`; it is
    0 for the exact f. On the process `Trig` with EDM's preconditioning it is algorithm 1 of arXiv:2410.11081, for the
    network -F of the paper, whose r is `rate`: the terms that it multiplies are unstable early in training.

    Args:
      network: F(c_in x, c_noise) with its parameters, conditions and dropout bound; it is differentiated forward.
      velocity: dx / dt in the time t of the process, of the teacher's ODE or of a pair (x_0, eps).
    """
    c, dc = jax.jvp(lambda t: param(process, t), (t,), (jnp.ones_like(t),))

    def output(x: Examples, t: Time) -> Examples:
        at = param(process, t)
        return network(bcast(at.c_in, x) * x, at.c_noise)

    F, dF = jax.jvp(output, (x, t), (velocity, jnp.ones_like(t)))
    theta, speed = time_derivative(lambda t: angle(process, t, sigma_data), t)
    steady = bcast(c.c_skip, x) * velocity + bcast(dc.c_out, x) * F
    unstable = bcast(dc.c_skip, x) * x + bcast(c.c_out, x) * dF
    return Tangent(F, bcast(jnp.cos(theta) / speed, x) * (steady + rate * unstable))


def normalised(g: Examples, c: float = 0.1) -> Examples:
    """g / (|g| + c) with the norm of each example (arXiv:2410.11081, section 4.1)."""
    return g / bcast(jnp.sqrt(row_dot(g, g)) + c, g)


def tangent_loss(output: Examples, target: Tangent, c: float = 0.1) -> Float[Array, "batch"]:
    """The mean of (F - F^- + g / (|g| + c))^2: its gradient is that of f times df / dtheta, normalised.

    `output` is F, through which the gradient flows, and `target` has no gradient: F^- = F as a number.
    """
    held, g = jax.lax.stop_gradient(target)
    return row_mean(jnp.square(output - held + normalised(g, c)))
