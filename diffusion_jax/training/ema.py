"""EMA: exponential moving averages of the trained parameters, in float32, with one or several rates."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.types import Params


def init(params: Params, rates: Sequence[float]) -> dict[str, Params]:
    """Returns for each rate, by name (`str(rate)`), a float32 copy of all groups of parameters except "frozen".

    Raises ValueError for a rate outside [0, 1) or two equal rates.
    """
    for rate in rates:
        if not 0 <= rate < 1:
            raise ValueError(f"ema rates={rate!r}: each must be in [0, 1), a decay per step such as 0.9999")
    if len(set(rates)) < len(rates):
        raise ValueError(f"ema rates={tuple(rates)!r}: each may occur once")
    trained = {group: tree for group, tree in params.items() if group != "frozen"}
    return {str(rate): jax.tree.map(lambda p: jnp.array(p, jnp.float32), trained) for rate in rates}


def follow(average: Params, params: Params, decay: float | Float[Array, ""]) -> Params:
    """One step of an average, e <- d e + (1 - d) p with the decay d, in the type of e."""
    # 1 - d is formed before float32 rounds d: 1 - float32(0.9999) is off by 5e-5 of itself.
    return jax.tree.map(lambda e, p: (e + (1 - decay) * (p - e)).astype(e.dtype), average, params)


def warmed_up(rate: float, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The decay min(rate, (1 + step) / (10 + step)), with which initial weights are forgotten in the first steps."""
    return jnp.minimum(rate, (1 + step) / (10 + step))


def update(
    ema: dict[str, Params],
    params: Params,
    step: Int[Array, ""] | int,
    rates: Sequence[float],
    warmup: bool = False,
    rampup: float = 0.0,
) -> dict[str, Params]:
    """Update the averages, see `follow`, with the decay d = rate per step.

    With `warmup`, d is that of `warmed_up`, and `step` the number of past updates. With `rampup` r > 0 the half-life is
    at most r times that number, d = min(rate, 2^(-1 / (r step))), as in EDM (arXiv:2206.00364), whose r is 0.05.
    """

    def average(rate: float) -> Params:
        decay = warmed_up(rate, step) if warmup else rate
        if rampup:
            decay = jnp.minimum(decay, jnp.exp2(-1 / (rampup * jnp.maximum(step, 1e-6))))
        old = ema[str(rate)]
        return follow(old, {group: params[group] for group in old}, decay)

    return {str(rate): average(rate) for rate in rates}


def decay_from_half_life(half_life_images: int | float, batch_size: int) -> float:
    """Returns the decay per step 2^(-batch_size / half_life_images) of an EMA with a half-life in images.

    EDM states half-lives (arXiv:2206.00364, table 7), for example 500,000 images for CIFAR-10.
    Raises ValueError unless both are positive.
    """
    if half_life_images <= 0 or batch_size <= 0:
        raise ValueError(f"{half_life_images=}, {batch_size=}: both must be positive")
    return 0.5 ** (batch_size / half_life_images)
