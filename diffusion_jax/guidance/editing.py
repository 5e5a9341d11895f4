"""Editing: where sampling starts, and what is kept on the way, such as an image from which samples begin (SDEdit)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.guidance.steering import Model
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.processes.base import row_normal
from diffusion_jax.types import Cond, Denoiser, Process, Solver

Start = Callable[
    [Process, Denoiser, Array, Array, Array, Cond],
    tuple[Float[Array, "batch *shape"], Float[Array, "num_times"]],
]


def from_prior(
    process: Process, D: Denoiser, keys: Key[Array, "batch"], x_T: Array, times: Float[Array, "num_times"], cond: Cond
) -> tuple[Array, Array]:
    """The start of ordinary sampling: the noise x_T, and all times."""
    return x_T, times


class Editing(NamedTuple):
    """What sampling does with given data, as pure functions.

    `start(process, D, keys, x_T, times, cond) -> (x, times)` is the state that sampling starts from and the times that
    are left. `keys` [batch] are those that the noise of x_T was drawn by. An entry "image" of `cond` is in the space of
    x, such as the latents of a first stage.
    `around(solver, cond) -> solver` changes the solver, `steer(model, cond) -> model` the model after guidance.
    `conditions(shape)` are those that it reads, in addition to those of the network, for samples of `shape`.
    `check(steps)` raises ValueError for a number of steps that the start does not fit.
    """

    start: Start = from_prior
    around: Callable[[Solver, Cond], Solver] = lambda solver, cond: solver
    steer: Callable[[Model, Cond], Model] = lambda model, cond: model
    conditions: Callable[[tuple[int, ...]], Conditions] = lambda shape: NO_CONDITIONS
    check: Callable[[int], object] = lambda steps: None

    @property
    def reads_image(self) -> bool:
        """Whether "image" is among the conditions, for systems that encode it."""
        return bool(self.conditions((1, 1, 1)).image_shape)


def none() -> Editing:
    """No editing: sampling starts from the prior."""
    return Editing()


def sdedit(strength: float = 0.8) -> Editing:
    """SDEdit: start from the image of the condition "image", noised, and take the last `strength` share of the steps.

    x = alpha(t) image + sigma(t) eps at the time t after the first (1 - strength) share of the steps: a small strength
    keeps the image, 1 forgets all of it that the process does. arXiv:2108.01073, algorithm 1.

    Raises ValueError for a strength outside [0, 1], and for one that leaves none of the steps.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength} must be in [0, 1]")

    def remaining(steps: int) -> int:
        """The number of steps that are taken, of `steps`."""
        taken = min(int(steps * strength), steps)
        if taken < 1:
            raise ValueError(f"strength={strength} leaves none of the {steps} steps")
        return taken

    def start(
        process: Process, D: Denoiser, keys: Key[Array, "batch"], x_T: Array, times: Array, cond: Cond
    ) -> tuple[Array, Array]:
        steps = len(times) - 1
        times = times[steps - remaining(steps) :]
        x = process.alpha(times[0]) * jnp.asarray(cond["image"])
        return x + process.sigma(times[0]) * row_normal(keys, x_T), times

    return Editing(
        start=start,
        conditions=lambda shape: Conditions(image_shape=shape),
        check=remaining,
    )
