"""Methods of inverse problems that change the denoiser: choices of C and R in the formula of `measurement`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.guidance.operators import Mask, Operator, reciprocal
from diffusion_jax.processes.base import bcast, row_dot
from diffusion_jax.solvers.base import posterior
from diffusion_jax.solvers.replacement import check_alone, replaced
from diffusion_jax.types import Process, Solver, check

_TINY = 1e-20
_SOLVED = 20  # iterations of conjugate gradients for A A^T of an operator whose singular values are not known


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
        """(q^2 I + r^2 A A^T)^-1 v, see `solved`."""
        return solved(self.operator, self.mask, v, r_2)


def solved(
    operator: Operator, mask: Mask, v: Float[Array, "batch *out"], r_2: Array | float
) -> Float[Array, "batch *out"]:
    """(q^2 I + r^2 A A^T)^-1 v, the component in the range of A where q = 0; r^2 is a scalar or [batch]."""
    q_2 = operator.noise**2
    if operator.gram is not None:
        inverse = lambda e: reciprocal(q_2 + bcast(r_2, e) * e, e) if q_2 == 0 else 1 / (q_2 + bcast(r_2, e) * e)  # noqa: E731
        return operator.gram(v, mask, inverse)
    matrix = lambda v: q_2 * v + bcast(r_2, v) * operator(operator.transpose(v, mask), mask)  # noqa: E731
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


# around(solver, operator, y, mask) -> solver
Around = Callable[[Solver, Operator, Array, Mask], Solver]


class Method(NamedTuple):
    """A method: what it does to the denoiser, and to the solver.

    `weigh(at)` = A^T (q^2 I + A R A^T)^-1 (y - A D) and `spread(at, w)` = C w are the correction of D; None: D stays.
    `around(solver, operator, y, mask)` is the solver that samples under y; None: the solver stays.

    `vjps` are those of the network for one evaluation of D_y. `linear`, `differentiable`, `pinv`, `solvable` (linear or
    with a pseudo-inverse), `gram` (linear with known singular values), `noisy` (q > 0) and `noisy_if_nonlinear` say
    what it needs of the operator, `steps` that it needs the times of the grid. `check_solver` raises ValueError for a
    solver that it cannot change.
    """

    weigh: Callable[[Linearised], Array] | None = None
    spread: Callable[[Linearised, Array], Array] | None = None
    around: Around | None = None
    vjps: int = 0
    linear: bool = False
    differentiable: bool = False
    pinv: bool = False
    solvable: bool = False
    gram: bool = False
    noisy: bool = False
    noisy_if_nonlinear: bool = False
    steps: bool = False
    check_solver: Callable[[Solver], object] = lambda solver: None

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
        if self.gram and operator.gram is None:
            raise ValueError("the method needs a linear operator with known singular values, and this one has none")
        noisy = self.noisy or (self.noisy_if_nonlinear and not operator.linear)
        if noisy and not operator.noise:
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


def mcg(scale: float = 1.0) -> Method:
    """Manifold constrained gradient: the gradient of `dps` for what was not measured, and y itself for what was.

    A^+ A x of the state is replaced by A^+ y with the noise of its time, as by `solvers.replacement.replaced`, so
    A x_0 = y in the end. Noise of y stays in the samples. arXiv:2206.00941, eq. 14 and 15, with the norm instead of its
    square, as its code has it. Raises ValueError for a negative scale.
    """
    gradient = dps(scale)

    def spread(at: Linearised, w: Array) -> Array:
        measured = at.operator.pinv(at.y, at.mask) - _within(at.operator, at.mask, at.D)
        shift = gradient.spread(at, w)
        return shift - _within(at.operator, at.mask, shift) + measured

    def around(solver: Solver, operator: Operator, y: Array, mask: Mask) -> Solver:
        keep = lambda x, known: x - _within(operator, mask, x) + _within(operator, mask, known)  # noqa: E731
        return replaced(solver, operator.pinv(y, mask), keep)

    return gradient._replace(spread=spread, around=around, linear=True, pinv=True, check_solver=check_alone)


def _within(operator: Operator, mask: Mask, x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
    """A^+ A x, the component of x that is measured."""
    return operator.pinv(operator(x, mask), mask)
