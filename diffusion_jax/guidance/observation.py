"""Known values of a series: the condition "known", and guidance of an unconditional model by it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.guidance.measurement import Times, measured
from diffusion_jax.guidance.methods import Linearised, Method
from diffusion_jax.guidance.operators import Operator
from diffusion_jax.guidance.steering import Guidance, Model
from diffusion_jax.networks.conditions import Condition, Conditions
from diffusion_jax.types import Cond, Needs, Solver, Spec, check, check_choice

KNOWN = "known"  # [*shape], NaN where a value is not known
LEVEL = "level"  # quantile level of a row, in (0, 1); the system draws it


def interpolation(known: Float[Array, "batch length channels"]) -> Float[Array, "batch length channels"]:
    """Linear interpolation in time of what is NaN, the nearest known value at the ends, 0 where nothing is known."""
    length = known.shape[1]
    present = jnp.isfinite(known)
    at = jnp.arange(length)[:, None]
    before = jax.lax.cummax(jnp.where(present, at, -1), axis=1)
    after = jax.lax.cummin(jnp.where(present, at, length), axis=1, reverse=True)
    # Beyond the first and the last known value both are that value.
    left, right = jnp.where(before < 0, after, before), jnp.where(after == length, before, after)
    left, right = jnp.clip(left, 0, length - 1), jnp.clip(right, 0, length - 1)
    values = jnp.where(present, known, 0)
    low, high = (jnp.take_along_axis(values, index, axis=1) for index in (left, right))
    share = (at - left) / jnp.maximum(right - left, 1)
    return jnp.where(present, known, low + share * (high - low))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed(Operator):
    """The values of a series that are known, as a measurement y = mask x whose entry is x with NaN elsewhere.

    Attributes:
        horizon: number of steps at the end that `measure` hides.
        missing: with horizon 0 the fraction of the present values that it hides, at random.
    """

    horizon: int = 0
    missing: float = 0.0

    def split(self, entry: Float[Array, "batch *shape"]) -> tuple[Array, Array]:
        """(y, mask) of known values, y being 0 where nothing is known."""
        present = jnp.isfinite(entry)
        return jnp.where(present, entry, 0), present.astype(entry.dtype)

    @property
    def entry(self) -> tuple[int, ...]:
        """Shape of the known values of one example."""
        return self.shape

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of y."""
        return self.shape

    def measure(self, x: Float[np.ndarray, "n *shape"], seed: int = 0) -> Float[np.ndarray, "n *shape"]:
        """`x` with NaN for what is hidden; what is random depends on `seed` and the number of the example only."""
        known = np.array(x)
        if self.horizon:
            known[:, -self.horizon :] = np.nan
            return known
        for i, row in enumerate(known):
            present = np.flatnonzero(np.isfinite(row))
            rng = np.random.default_rng((seed, i))
            row.reshape(-1)[rng.permutation(present)[: round(len(present) * self.missing)]] = np.nan
        return known


def observed(shape: tuple[int, ...], horizon: int = 0, missing: float = 0.0, noise: float = 0.0) -> Observed:
    """The operator of known values of series of `shape`, see `Observed`. Raises ValueError for what is out of range."""
    check(0 <= horizon < shape[0], "horizon", horizon, f"at least 0 and less than the {shape[0]} steps of a series")
    check(0 <= missing < 1, "missing", missing, "in [0, 1), a fraction of the values")
    return Observed(
        shape=shape,
        apply=lambda x, mask: mask * x,
        gram=lambda v, mask, f: f(mask) * v,
        inverse=lambda y, mask: mask * y,
        noise=noise,
        horizon=horizon,
        missing=missing,
    )


def known_values(operator: Observed) -> Condition:
    """The condition "known" of series, optional; held-out series give it with what `operator` hides."""
    return Condition(Spec(operator.shape), math.nan, optional=True, operator=operator)


def self_guidance(loss: str, scale: float, level: Array | None = None) -> Method:
    """TSDiff's observation self-guidance: D + scale sigma^2 / alpha times the gradient of -loss(D at known values).

    `loss` is "mse", the sum of (y - D)^2, or "quantile", the sum of the pinball losses at the quantile `level` of each
    row, (y - D) (level - 1[y < D]). Samples of one row at all levels have the spread of an asymmetric Laplace
    distribution instead of a normal one. arXiv:2307.11494, eq. 6 to 8; it shifts the mean of a step by scale times the
    posterior variance times the gradient.
    """

    def weigh(at: Linearised) -> Array:
        if loss == "mse":
            return 2 * scale * at.adjoint(at.residual)
        levels = level.reshape(-1, *(1,) * (at.y.ndim - 1))
        return scale * at.adjoint(levels - (at.residual < 0))

    return Method(weigh, lambda at, w: at.covariance(w), vjps=1, differentiable=True)


def observation(
    shape: tuple[int, ...],
    *,
    loss: str = "quantile",
    scale: float = 4.0,
    method: Method | None = None,
    noise: float = 0.0,
    times: Times | None = None,
) -> Guidance:
    """Guidance of an unconditional model of series by the condition "known".

    By default TSDiff's `self_guidance`; `method` is one of `guidance.measurement.METHODS` instead, for known values
    with noise of standard deviation `noise`. Raises ValueError for another loss, or a negative scale.
    """
    check_choice("loss", loss, ("quantile", "mse"))
    check(scale >= 0, "scale", scale, "at least 0")
    operator = observed(shape, noise=noise)
    how = method or self_guidance(loss, scale)
    how.check(operator)

    def given(cond: Cond) -> bool:
        return cond is not None and KNOWN in cond

    def steer(numbers: dict, model: Model) -> Model:
        if not given(model.given):
            return model
        own = how
        if method is None:
            known = jnp.asarray(model.given[KNOWN])
            level = jnp.asarray(model.given.get(LEVEL, jnp.full(known.shape[:1], 0.5)))
            own = self_guidance(loss, scale, level)
        grid = times(model.process) if own.steps else None
        D = measured(model.D, operator, jnp.asarray(model.given[KNOWN]), own, model.process, grid)
        return model._replace(D=D)

    def around(solver: Solver, cond: Cond) -> Solver:
        if how.around is None or not given(cond):
            return solver
        return how.around(solver, operator, *operator.split(jnp.asarray(cond[KNOWN])))

    return Guidance(
        load=dict,
        steer=steer,
        around=around,
        conditions=Conditions({KNOWN: known_values(operator)}),
        needs=Needs(alpha=True),
        values={"vjps": how.vjps, **({} if method else {"scale": scale})},
    )
