"""Guidance by a measurement y = A x_0 + n, n ~ N(0, q^2 I): an unconditional model as the prior of an inverse problem.

One formula from denoiser to denoiser holds the methods, so that solver and grid are chosen apart from them:

    D_y(x, t) = D + C A^T (q^2 I + A R A^T)^-1 (y - A D)    (arXiv:2402.02149, eq. 1 of its survey)

| method | C | R | q |
|---|---|---|---|
| `mmps` (arXiv:2405.13712) | V | V, by conjugate gradients | true |
| `tmpd` (arXiv:2310.06721) | V | row sums of A V A^T | true |
| `pigdm` (ICLR 2023) | V | r^2 I, r^2 = d sigma^2 / (sigma^2 + alpha^2 d) | true |
| `dps` (arXiv:2209.14687) | V | 0 | true, or a rule for the norm of the gradient |
| `diffpir` (arXiv:2305.08995) | r^2 I | r^2 I, r^2 = sigma^2 / (lambda alpha^2) | true |
| `ddnm` (arXiv:2212.00490) | I | I | 0 |

V = Cov[x_0 | x_t] = sigma^2 / alpha dD/dx, exactly for the exact denoiser of any data, so that C = R = V is exact for
Gaussian data. A product with V is one vector-Jacobian product of the network.

`mcg` (arXiv:2206.00941) adds replacement to `dps`. `ddrm` (arXiv:2201.11793) and `daps` (arXiv:2407.01521) leave D as
it is and change the solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.guidance import methods
from diffusion_jax.guidance.daps import daps
from diffusion_jax.guidance.ddrm import ddrm
from diffusion_jax.guidance.methods import Linearised, Method
from diffusion_jax.guidance.operators import Operator
from diffusion_jax.guidance.steering import Guidance, Model
from diffusion_jax.networks.conditions import Condition, Conditions, Request, numbers
from diffusion_jax.parameterizations import corrected, mapped
from diffusion_jax.types import Cond, Denoiser, Needs, Process, Solver, Spec

_ROUNDING = 1e-6  # relative, of times
Times = Callable[[Process], Float[Array, "num_times"]]  # of the sampling grid

METHODS = {
    "mmps": methods.mmps,
    "tmpd": methods.tmpd,
    "pigdm": methods.pigdm,
    "dps": methods.dps,
    "diffpir": methods.diffpir,
    "ddnm": methods.ddnm,
    "mcg": methods.mcg,
    "ddrm": ddrm,
    "daps": daps,
}


def measured(
    D: Denoiser,
    operator: Operator,
    measurement: Float[Array, "batch *entry"],
    method: Method,
    process: Process,
    times: Float[Array, "num_times"] | None = None,
    clip: bool = False,
) -> Denoiser:
    """D_y(x, t, cond), next to the prediction without the measurement, see `parameterizations.Corrected`.

    Args:
        D: the denoiser of the prior, D(x, t, cond).
        operator: A, and the standard deviation q of the noise.
        measurement: y of each row, with its mask as the last channel if the operator has one.
        method: which C and R; one of `METHODS`. Those that change the solver, by `Method.around`, may leave D as it is.
        process: that of D, alpha(t) > 0.
        times: those of the sampling grid, for methods with a rule per step.
        clip: limit D to [-1, 1] before the correction, outside of its derivative.

    Raises ValueError for a method that needs something else of the operator, or the times.
    """
    method.check(operator)
    if method.steps and times is None:
        raise ValueError("times is None; a method with a rule per step needs the times of the sampling grid")
    if method.weigh is None:
        return mapped(D, lambda x: jnp.clip(x, -1, 1)) if clip else D
    y, mask = operator.split(measurement)

    def guided(outputs: Callable, x: Float[Array, "batch *shape"], t: Array, cond: Cond) -> tuple[Array, ...]:
        def predicted(x: Array) -> tuple[Array, tuple[Array, ...]]:
            x_0, *rest = outputs(x, t, cond)
            return x_0, tuple(rest)

        x_0, pull, rest = jax.vjp(predicted, x, has_aux=True)
        at = Linearised(
            operator=operator,
            mask=mask,
            process=process,
            t=t,
            s=None if times is None else _next(times, t),
            y=y,
            D=jnp.clip(x_0, -1, 1) if clip else x_0,
            pull=lambda w: pull(w)[0],
        )
        return at.D + method.spread(at, method.weigh(at)), at.D, *rest

    return corrected(D, guided)


def _next(times: Float[Array, "num_times"], t: Array) -> Array:
    """The largest of the times below t, by more than rounding; t itself if there is none."""
    below = jnp.where(times < (1 - _ROUNDING) * jnp.asarray(t)[..., None], times, -1).max(-1)
    return jnp.where(below < 0, t, below)


def condition_of(operator: Operator) -> Condition:
    """The condition "measurement": numbers, or for a y that is an image of any size the path of an image file.

    An operator with a mask takes the paths of an image and a mask, which is white where the image is unknown.
    """

    def read(request: Request, values: Any, spec: Spec) -> np.ndarray:
        paths = not isinstance(values, np.ndarray) and all(map(_names_files, values))
        if not (paths and operator.gives_images):
            return numbers(request, values, spec)
        pictures = request.image(values, spec.shape)
        if not operator.draw:
            return pictures
        known = (pictures[..., -1:] < 0).astype(pictures.dtype)
        return np.concatenate([pictures[..., :-1] * known, known], -1)

    return Condition(Spec(operator.entry), read=read, operator=operator)


def _names_files(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def measurement(operator: Operator, method: Method, times: Times | None = None, clip: bool = False) -> Guidance:
    """`measured`, and the method's own solver, by the condition "measurement". Raises ValueError as `measured` does."""
    method.check(operator)

    def steer(numbers: dict, model: Model) -> Model:
        if model.given is None:
            return model
        grid = times(model.process) if method.steps else None
        entry = jnp.asarray(model.given["measurement"])
        return model._replace(D=measured(model.D, operator, entry, method, model.process, grid, clip))

    def around(solver: Solver, cond: Cond) -> Solver:
        if method.around is None or cond is None:
            return solver
        return method.around(solver, operator, *operator.split(jnp.asarray(cond["measurement"])))

    return Guidance(
        load=dict,
        steer=steer,
        around=around,
        conditions=Conditions({"measurement": condition_of(operator)}),
        needs=Needs(alpha=True),
        values={"noise": operator.noise, "vjps": method.vjps},
    )
