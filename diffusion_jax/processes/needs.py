"""Whether a process meets the needs that a part declares, such as alpha > 0 where a solver steps."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.processes.base import time_derivative
from diffusion_jax.types import BridgeProcess, Needs, Process

NO_TIMES = np.zeros(0, np.float32)
_CATEGORICAL = {
    "masked": "a categorical process with a mask",
    "log_ratios": "a categorical process in continuous time without a mask",
    "jump_rates": "a categorical process in continuous time, whose jumps have rates",
}


class Unmet(NamedTuple):
    """A need that a process does not meet, what it has instead (both in words), and the times at which this is so."""

    need: str
    has: str
    times: np.ndarray


def unmet(
    needs: Needs, process: Process | BridgeProcess, starts: np.ndarray, ends: np.ndarray = NO_TIMES
) -> Unmet | None:
    """The first of the `needs` that `process` does not meet, for steps from the times `starts` to `ends`."""
    starts, ends = np.asarray(starts, np.float32), np.asarray(ends, np.float32)
    if isinstance(process, BridgeProcess) or needs.bridge:
        return _unmet_by_bridge(needs, process, starts, ends)
    if needs.categorical or not hasattr(process, "sigma"):
        return _unmet_categorical(needs, process)
    alpha, sigma = np.asarray(process.alpha(jnp.asarray(starts))), np.asarray(process.sigma(jnp.asarray(starts)))
    if needs.num_steps and process.num_steps is None:
        return Unmet("a discrete process", "is continuous", NO_TIMES)
    for needed, met, need, symbol, values, times in (
        (needs.unit_alpha, alpha == 1, "alpha = 1", "alpha", alpha, starts),
        (needs.alpha, alpha > 0, "alpha > 0", "alpha", alpha, starts),
        (needs.sigma, sigma > 0, "sigma > 0", "sigma", sigma, starts),
        (needs.time, starts > 0, "t > 0", "t", starts, starts),
    ):
        if needed and not met.all():
            first = np.argmin(met)
            has = f"has {symbol} = {values[first]:g} at t = {times[first]:g}"
            return Unmet(need, has, times[~met])
    if needs.alpha_after and ends.size:
        met = np.asarray(process.alpha(jnp.asarray(ends))) > 0
        if not met.all():
            return Unmet("alpha > 0 where a step ends", f"has alpha = 0 at t = {ends[np.argmin(met)]:g}", ends[~met])
    rising = ends > starts if ends.size == starts.size else NO_TIMES > 0
    if needs.falling_times and rising.any():
        first = np.argmax(rising)
        return Unmet("times that fall", f"is taken from t = {starts[first]:g} to {ends[first]:g}", starts[rising])
    if needs.derivatives:
        slopes = [np.asarray(time_derivative(f, jnp.asarray(starts))[1]) for f in (process.alpha, process.sigma)]
        met = np.isfinite(slopes).all(0)
        if not met.all():
            has = f"has infinite ones at t = {starts[np.argmin(met)]:g}"
            return Unmet("finite derivatives of alpha and sigma", has, starts[~met])
    if needs.final_derivatives:
        slopes = [time_derivative(f, jnp.float32(1))[1] for f in (process.alpha, process.sigma)]
        if not np.isfinite(slopes).all():
            return Unmet("finite derivatives of alpha and sigma at t = 1", "has infinite ones there", NO_TIMES)
    lowest = float(process.sigma(jnp.float32(0)))
    if needs.least_sigma is not None and not lowest > needs.least_sigma:
        return Unmet(f"sigma(0) > {needs.least_sigma:.4g}", f"has sigma(0) = {lowest:.4g}", NO_TIMES)
    return None


def _unmet_by_bridge(
    needs: Needs, process: Process | BridgeProcess, starts: np.ndarray, ends: np.ndarray
) -> Unmet | None:
    if not isinstance(process, BridgeProcess):
        return Unmet("a bridge, whose paths end in a second data set", "ends in noise", NO_TIMES)
    if not needs.bridge:
        return Unmet("a process that ends in noise", "is a bridge that ends in a second data set", NO_TIMES)
    for needed, times, need in (
        (needs.sigma, starts, "sigma > 0 where a step starts, such as a first step with noise (churn > 0)"),
        (needs.sigma_after, ends, "sigma > 0 where a step ends"),
    ):
        sigma = np.asarray(process.sigma(jnp.asarray(times)))
        if needed and not (sigma > 0).all():
            at = times[np.argmin(sigma > 0)]
            return Unmet(need, f"has sigma = 0 at t = {at:g}, where all paths between x_0 and x_1 meet", NO_TIMES)
    return None


def _unmet_categorical(needs: Needs, process: Process) -> Unmet | None:
    """The same if the part or the process is categorical."""
    if not hasattr(process, "log_posterior"):
        return Unmet("a categorical process", "is one of real numbers", NO_TIMES)
    coefficients = (needs.unit_alpha, needs.alpha, needs.alpha_after, needs.sigma, needs.derivatives)
    if any(coefficients) or needs.final_derivatives or needs.least_sigma is not None:
        return Unmet("a process of real numbers", "is categorical", NO_TIMES)
    if needs.num_steps and process.num_steps is None:
        return Unmet("a discrete process", "is continuous", NO_TIMES)
    for method in needs.categorical:
        if not hasattr(process, method):
            return Unmet(_CATEGORICAL.get(method, f"a categorical process with {method}"), "has none", NO_TIMES)
    return None
