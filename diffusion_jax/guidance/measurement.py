"""Guidance by a measurement y = A x_0 + n, n ~ N(0, q^2 I): an unconditional model as the prior of an inverse problem.

One formula from denoiser to denoiser holds the methods, so that each goes with every solver and grid:

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
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.guidance.operators import Mask, Operator, reciprocal
from diffusion_jax.guidance.steering import Guidance, Model
from diffusion_jax.networks.conditions import Condition, Conditions, Request, numbers
from diffusion_jax.parameterizations import corrected
from diffusion_jax.processes.base import bcast, row_dot
from diffusion_jax.solvers.base import posterior
from diffusion_jax.types import Cond, Denoiser, Needs, Process, Spec, check

_TINY = 1e-20
_ROUNDING = 1e-6  # relative, of times
_SOLVED = 20  # iterations of conjugate gradients for A A^T of an operator whose singular values are not known
Times = Callable[[Process], Float[Array, "num_times"]]  # of the sampling grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linearised:
    """The measurement at one x_t: the denoiser's prediction D, how far A D is from y, and what is linear around D."""

    operator: Operator
    mask: Mask
    process: Process
    t: Array
    s: Array | None  # the next time of the grid, for rules of a step; None if it is not known
    y: Array
    D: Float[Array, "batch *shape"]
    pull: Callable[[Array], Array]  # w -> J^T w, J = dD/dx

    @property
    def residual(self) -> Float[Array, "batch *out"]:
        """y - A(D)."""
        return self.y - self.operator(self.D, self.mask)

    @property
    def noise(self) -> float:
        """q."""
        return self.operator.noise

    def adjoint(self, v: Float[Array, "batch *out"]) -> Float[Array, "batch *shape"]:
        """A^T v; of an operator that is not linear, of its derivative at D."""
        return jax.vjp(lambda x: self.operator(x, self.mask), self.D)[1](v)[0]

    def ratio(self) -> Array:
        """(sigma / alpha)^2, a scalar or [batch]."""
        return (self.process.sigma(self.t) / self.process.alpha(self.t)) ** 2

    def covariance(self, w: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """V w = sigma^2 / alpha J^T w."""
        return bcast(self.process.sigma(self.t) ** 2 / self.process.alpha(self.t), w) * self.pull(w)

    def variance(self, of_data: float) -> Array:
        """V of data N(m, d I), d = `of_data`: d sigma^2 / (sigma^2 + alpha^2 d)."""
        sigma_2, alpha_2 = self.process.sigma(self.t) ** 2, self.process.alpha(self.t) ** 2
        return of_data * sigma_2 / (sigma_2 + alpha_2 * of_data)

    def solve(self, v: Float[Array, "batch *out"], r_2: Array) -> Float[Array, "batch *out"]:
        """(q^2 I + r^2 A A^T)^-1 v, the component in the range of A where q = 0; r^2 is a scalar or [batch]."""
        q_2 = self.noise**2
        if self.operator.gram is not None:
            inverse = lambda e: reciprocal(q_2 + bcast(r_2, e) * e, e) if q_2 == 0 else 1 / (q_2 + bcast(r_2, e) * e)  # noqa: E731
            return self.operator.gram(v, self.mask, inverse)
        matrix = lambda v: q_2 * v + bcast(r_2, v) * self.operator(self.adjoint(v), self.mask)  # noqa: E731
        return conjugate_gradients(matrix, v, _SOLVED, q_2)


def conjugate_gradients(
    matrix: Callable[[Array], Array], b: Float[Array, "batch *out"], iterations: int, least: float
) -> Float[Array, "batch *out"]:
    """matrix^-1 b for each row, by `iterations` products with a symmetric matrix of eigenvalues at least `least`.

    A learned covariance may have negative curvature in a direction: it counts as `least` then, and with least = 0 the
    row is left as it is.
    """
    solution, residual, direction = jnp.zeros_like(b), b, b
    for _ in range(iterations):
        product, size, length = matrix(direction), row_dot(residual, residual), row_dot(direction, direction)
        curvature = jnp.maximum(row_dot(direction, product), least * length)
        step = jnp.where(curvature > _TINY, size / jnp.maximum(curvature, _TINY), 0)
        solution = solution + bcast(step, b) * direction
        residual = residual - bcast(step, b) * product
        share = row_dot(residual, residual) / jnp.maximum(size, _TINY)
        direction = residual + bcast(share, b) * direction
    return solution


class Method(NamedTuple):
    """One row of the table: `weigh(at)` = A^T (q^2 I + A R A^T)^-1 (y - A D), and `spread(at, w)` = C w.

    `vjps` are those of the network for one evaluation of D_y. `linear`, `differentiable`, `pinv`, `solvable` (linear or
    with a pseudo-inverse) and `noisy` (q > 0) say what it needs of the operator, `steps` that it needs the times of the
    grid.
    """

    weigh: Callable[[Linearised], Array]
    spread: Callable[[Linearised, Array], Array]
    vjps: int = 0
    linear: bool = False
    differentiable: bool = False
    pinv: bool = False
    solvable: bool = False
    noisy: bool = False
    steps: bool = False

    def check(self, operator: Operator) -> None:
        """Raises ValueError unless the operator is what the method needs."""
        if self.linear and not operator.linear:
            raise ValueError("the method needs a linear operator, and this one is not")
        if self.differentiable and not operator.differentiable:
            raise ValueError("the method needs a differentiable operator, and this one is not")
        if self.pinv and not operator.has_pinv:
            raise ValueError("the method needs an operator with a pseudo-inverse, and this one has none")
        if self.solvable and not (operator.linear or operator.has_pinv):
            raise ValueError("the method needs an operator that is linear or has a pseudo-inverse; this one is neither")
        if self.noisy and not operator.noise:
            raise ValueError("the method divides by the variance of the noise, operator.noise=0; it must be positive")


def _covariance(at: Linearised, w: Array) -> Array:
    return at.covariance(w)


def mmps(iterations: int = 1) -> Method:
    """C = R = V by conjugate gradients: exact for Gaussian data if the `iterations` are as many as y has numbers.

    One more vector-Jacobian product than iterations. Raises ValueError for fewer than one.
    """
    check(iterations >= 1, "iterations", iterations, "at least 1")

    def weigh(at: Linearised) -> Array:
        through = lambda w: jax.jvp(lambda x: at.operator(x, at.mask), (at.D,), (w,))[1]  # noqa: E731
        matrix = lambda v: at.noise**2 * v + through(at.covariance(at.adjoint(v)))  # noqa: E731
        return at.adjoint(conjugate_gradients(matrix, at.residual, iterations, at.noise**2))

    return Method(weigh, _covariance, vjps=iterations + 1, linear=True, differentiable=True)


def tmpd(variance: float = 1.0, floor: float = 0.1) -> Method:
    """C = V, R diagonal with the row sums of A V A^T. Exact for Gaussian data if A V A^T is diagonal.

    Row sums of pixels that are anti-correlated are not positive: they are at least `floor` of those with V = r^2 I, as
    in `pigdm` with this `variance`. Raises ValueError unless both numbers are positive.
    """
    check(variance > 0, "variance", variance, "positive")
    check(floor > 0, "floor", floor, "positive")

    def weigh(at: Linearised) -> Array:
        ones = at.adjoint(at.operator.known(at.y, at.mask))
        sums = at.operator(at.covariance(ones), at.mask)
        least = floor * bcast(at.variance(variance), sums) * jnp.abs(at.operator(ones, at.mask))
        denominator = at.noise**2 + jnp.maximum(sums, least)
        return at.adjoint(at.residual / jnp.maximum(denominator, _TINY))

    return Method(weigh, _covariance, vjps=2, linear=True, differentiable=True)


def pigdm(variance: float = 1.0, per_step: float = 0.0) -> Method:
    """C = V, R = r^2 I with the variance of data N(m, `variance` I): exact for those.

    1 is 1 - alpha^2 of a variance-preserving process, as published; the mean variance of a pixel is the better choice.
    With `per_step` > 0 a step of `ancestral` is shifted by per_step alpha_s alpha_t J^T (A^+ y - A^+ A D) instead,
    which is the paper's rule at 1: it adds a term per step, so it depends on their number. Raises ValueError for a
    variance that is not positive, or a negative per_step.
    """
    check(variance > 0, "variance", variance, "positive")
    check(per_step >= 0, "per_step", per_step, "at least 0")

    def pinv(at: Linearised) -> Array:
        return at.operator.pinv(at.y, at.mask) - at.operator.pinv(at.operator(at.D, at.mask), at.mask)

    if per_step:

        def shifted(at: Linearised, w: Array) -> Array:
            return bcast(per_step * at.process.alpha(at.s) * at.process.alpha(at.t), w) * at.pull(w)

        return Method(pinv, _per_step(shifted), vjps=1, pinv=True, steps=True)

    def weigh(at: Linearised) -> Array:
        r_2 = at.variance(variance)
        if at.noise == 0 and at.operator.has_pinv:
            w = pinv(at)
            return w / bcast(r_2, w)
        return at.adjoint(at.solve(at.residual, r_2))

    return Method(weigh, _covariance, vjps=1, solvable=True)


def dps(scale: float = 1.0, per_step: bool = True) -> Method:
    """C = V, R = 0. As published, a step of `ancestral` is shifted by -scale times the gradient of |y - A D|.

    That is a rule per step, not per time: the product of scale and steps has to be kept. With `per_step` False it is
    the gradient of the log-likelihood with the true 1 / q^2, times `scale`, which is biased towards y since R is
    missing. Raises ValueError for a negative scale.
    """
    check(scale >= 0, "scale", scale, "at least 0")
    if not per_step:
        return Method(
            lambda at: scale * at.adjoint(at.residual) / at.noise**2,
            _covariance,
            vjps=1,
            differentiable=True,
            noisy=True,
        )

    def weigh(at: Linearised) -> Array:
        residual = at.residual
        length = jnp.sqrt(jnp.maximum(row_dot(residual, residual), _TINY))  # the gradient of a norm at 0 is not finite
        return at.adjoint(residual / bcast(length, residual))

    return Method(weigh, _per_step(lambda at, w: scale * at.pull(w)), vjps=1, differentiable=True, steps=True)


def _per_step(shift: Callable[[Linearised, Array], Array]) -> Callable[[Linearised, Array], Array]:
    """The change of D by which a step of `ancestral` from t to the next time of the grid changes by `shift`."""

    def spread(at: Linearised, w: Array) -> Array:
        _, weight, _ = posterior(at.process, at.t, at.s)
        inside = at.s < at.t
        return jnp.where(bcast(inside, w), shift(at, w) / bcast(jnp.where(inside, weight, 1), w), 0)

    return spread


def diffpir(ratio: float = 1.0) -> Method:
    """C = R = r^2 I with r^2 = sigma^2 / (ratio alpha^2): the proximal step of a plug-and-play method, without vjps.

    `ratio` is the paper's lambda. For solvers with renoising, `solvers.renoised(eps="corrected")`. Raises ValueError
    unless it is positive.
    """
    check(ratio > 0, "ratio", ratio, "positive")

    def weigh(at: Linearised) -> Array:
        return at.adjoint(at.solve(at.residual, at.ratio() / ratio))

    return Method(weigh, lambda at, w: bcast(at.ratio() / ratio, w) * w, linear=True, differentiable=True)


def ddnm(plus: bool = False) -> Method:
    """C = R = I, q = 0: D_y = D + A^+ y - A^+ A D, which has A D_y = y. For `solvers.renoised(eps="raw")`.

    With `plus` the correction is multiplied by min(1, sigma / (alpha q)), which keeps the noise of y out of the last
    steps (DDNM+). Its noise is not taken from that of the solver.
    """

    def weigh(at: Linearised) -> Array:
        w = at.operator.pinv(at.y, at.mask) - at.operator.pinv(at.operator(at.D, at.mask), at.mask)
        if plus and at.noise:
            w = bcast(jnp.minimum(1, jnp.sqrt(at.ratio()) / at.noise), w) * w
        return w

    return Method(weigh, lambda at, w: w, pinv=True)


METHODS = {"mmps": mmps, "tmpd": tmpd, "pigdm": pigdm, "dps": dps, "diffpir": diffpir, "ddnm": ddnm}


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
        method: which C and R; one of `METHODS`.
        process: that of D, alpha(t) > 0.
        times: those of the sampling grid, for methods with a rule per step.
        clip: limit D to [-1, 1] before the correction, outside of its derivative.

    Raises ValueError for a method that needs something else of the operator, or the times.
    """
    method.check(operator)
    if method.steps and times is None:
        raise ValueError("times is None; a method with a rule per step needs the times of the sampling grid")
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
    """`measured` by the condition "measurement". Raises ValueError as it does."""
    method.check(operator)

    def steer(numbers: dict, model: Model) -> Model:
        if model.given is None:
            return model
        grid = times(model.process) if method.steps else None
        entry = jnp.asarray(model.given["measurement"])
        return model._replace(D=measured(model.D, operator, entry, method, model.process, grid, clip))

    return Guidance(
        load=dict,
        steer=steer,
        conditions=Conditions({"measurement": condition_of(operator)}),
        needs=Needs(alpha=True),
        values={"noise": operator.noise, "vjps": method.vjps},
    )
