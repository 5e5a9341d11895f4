"""Editing: where sampling starts, and what is kept on the way, such as an image from which samples begin (SDEdit)."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax.guidance.steering import Model
from diffusion_jax.networks.conditions import NO_CONDITIONS, Condition, Conditions, Request
from diffusion_jax.processes.base import row_normal
from diffusion_jax.solvers.replacement import Keep, check_alone, check_memory, replaced, travelling
from diffusion_jax.types import NOTHING, Cond, Needs, Process, Solver, Spec

# encode(x, times) -> x at times[0], by the sampler's solver on the times from the last to the first.
Encode = Callable[[Float[Array, "batch *shape"], Float[Array, "num_times"]], Float[Array, "batch *shape"]]
Start = Callable[
    [Process, Encode, Array, Array, Array, Cond],
    tuple[Float[Array, "batch *shape"], Float[Array, "num_times"]],
]
_BLACK = -0.9  # of a pixel of which no part is painted, after resizing
# check(steps, solver, shape) raises ValueError for what does not fit.
Check = Callable[[int, Solver, tuple[int, ...]], object]
NO_FILES: Mapping[str, str] = types.MappingProxyType({})


def from_prior(
    process: Process,
    encode: Encode,
    keys: Key[Array, "batch"],
    x_T: Array,
    times: Float[Array, "num_times"],
    cond: Cond,
) -> tuple[Array, Array]:
    """The start of ordinary sampling: the noise x_T, and all times."""
    return x_T, times


def accept(steps: int, solver: Solver, shape: tuple[int, ...]) -> None:
    """The check of an Editing that fits everything."""


class Editing(NamedTuple):
    """What sampling does with given data, as pure functions.

    `start(process, encode, keys, x_T, times, cond) -> (x, times)` is the state that sampling starts from and the times
    that it takes, which may rise in between. `keys` [batch] are those that the noise of x_T was drawn by;
    `encode(x, times)` is the latent at times[0] of images x, by the sampler's solver. Entries "image" and "mask" of
    `cond` have the height and width of x, such as those of the latents of a first stage.
    `around(solver, cond) -> solver` changes the solver, `steer(model, cond) -> model` the model after guidance, and
    `finish(x, cond) -> x` what was drawn.
    `conditions(shape)` are those that it reads, in addition to those of the network, for samples of `shape`. `files`
    are the files, or names of regions, that the user gives for them, by the name of the condition.
    `visible(cond)` is what of the conditions a first stage may encode. `source(cond)` are the conditions of the network
    under which `encode` encodes; None: those of the sample.
    `check(steps, solver, shape)` raises ValueError for a number of steps, a solver or a shape of samples that it does
    not fit; `needs` are those at all times of the grid. `latents`: it has a meaning for the latents of a first stage.
    """

    start: Start = from_prior
    around: Callable[[Solver, Cond], Solver] = lambda solver, cond: solver
    steer: Callable[[Model, Cond], Model] = lambda model, cond: model
    finish: Callable[[Array, Cond], Array] = lambda x, cond: x
    conditions: Callable[[tuple[int, ...]], Conditions] = lambda shape: NO_CONDITIONS
    files: Mapping[str, str] = NO_FILES
    visible: Callable[[Cond], Cond] = lambda cond: cond
    source: Callable[[Cond], Cond] | None = None
    check: Check = accept
    needs: Needs = NOTHING
    latents: bool = True

    @property
    def reads_image(self) -> bool:
        """Whether "image" is among the conditions, for systems that encode it."""
        return bool(self.conditions((1, 1, 1)).image_shape)


def none() -> Editing:
    """No editing: sampling starts from the prior."""
    return Editing()


def sdedit(strength: float = 0.8, repeats: int = 1, region: bool = False, image: str = "", mask: str = "") -> Editing:
    """SDEdit: start from the image of the condition "image", noised, and take the last `strength` share of the steps.

    x = alpha(t) image + sigma(t) eps at the time t after the first (1 - strength) share of the steps: a small strength
    keeps the image, 1 forgets all of it that the process does. With `repeats` the result is noised and denoised again,
    so many times in all. With a `region`, or a `mask`, only the pixels where the condition "mask" is at least 0 change:
    the others are replaced by the image with the noise of each step, and are those of the image in the end.
    arXiv:2108.01073, algorithms 1 and 2. `image` and `mask` are files, see `Editing.files`.

    Raises ValueError for a strength outside [0, 1] or repeats below 1, and for a strength that leaves none of the
    steps.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1")
    remaining, region = remaining_steps(strength), region or bool(mask)

    def start(
        process: Process, encode: Encode, keys: Key[Array, "batch"], x_T: Array, times: Array, cond: Cond
    ) -> tuple[Array, Array]:
        steps = len(times) - 1
        times = times[steps - remaining(steps) :]
        x = process.alpha(times[0]) * jnp.asarray(cond["image"])
        return x + process.sigma(times[0]) * row_normal(keys, x_T), jnp.tile(times, repeats)

    return keeping(
        kept if region else None,
        repeats,
        start=start,
        check=lambda steps, solver, shape: remaining(steps),
        conditions=with_mask if region else with_image,
        files={"image": image, "mask": mask},
    )


def keeping(keep: Callable[[Cond], Keep] | None, repeats: int = 1, *, check: Check = accept, **fields: Any) -> Editing:
    """An Editing that keeps what `keep(cond)` takes from the image, at every step and, exactly, in the end.

    None keeps nothing. With `repeats` above 1 times may rise in between. `check` and `fields` are those of `Editing`;
    solvers that do not fit are refused in addition.
    """

    def around(solver: Solver, cond: Cond) -> Solver:
        solver = replaced(solver, jnp.asarray(cond["image"]), keep(cond)) if keep else solver
        return travelling(solver) if repeats > 1 else solver

    def finish(x: Float[Array, "batch *shape"], cond: Cond) -> Float[Array, "batch *shape"]:
        return keep(cond)(x, jnp.asarray(cond["image"]).astype(x.dtype)) if keep else x

    def check_solver(steps: int, solver: Solver, shape: tuple[int, ...]) -> None:
        check(steps, solver, shape)
        if keep:
            check_alone(solver)
        if repeats > 1:
            check_memory(solver)

    return Editing(around=around, finish=finish, check=check_solver, **fields)


def remaining_steps(strength: float) -> Callable[[int], int]:
    """steps -> the number of steps that are taken, the last `strength` share of them.

    Raises ValueError for a strength outside [0, 1]; the function for one that leaves none of the steps.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength} must be in [0, 1]")

    def remaining(steps: int) -> int:
        taken = min(int(steps * strength), steps)
        if taken < 1:
            raise ValueError(f"strength={strength} leaves none of the {steps} steps")
        return taken

    return remaining


def with_image(shape: tuple[int, ...]) -> Conditions:
    """The condition "image", like samples of `shape`."""
    return Conditions(image_shape=shape)


def with_mask(shape: tuple[int, ...]) -> Conditions:
    """The conditions "image", like samples of `shape`, and "mask" [height, width, 1], painted where at least 0."""
    return Conditions({"mask": Condition(Spec((*shape[:-1], 1)), read=_read_mask)}, image_shape=shape)


def _read_mask(request: Request, values: Any, spec: Spec) -> np.ndarray:
    """Masks of -1 and 1, from bool or 8-bit arrays, floats in [-1, 1], or paths of images that are white where painted.

    Raises ValueError for floats of which some are 0 and none is negative: 0 may mean either.
    """
    if not isinstance(values, np.ndarray):
        return np.where(request.image(values, spec.shape) > _BLACK, 1, -1).astype(np.float32)
    if values.dtype == np.uint8:
        return np.where(values >= 128, 1, -1).astype(np.float32)
    if values.dtype != bool and values.size and values.min() >= 0 and (values == 0).any():
        raise ValueError(f"values from {values.min():g} to {values.max():g}; give a bool array, or -1 and 1")
    return np.where(values if values.dtype == bool else values >= 0, 1, -1).astype(np.float32)


def painted(cond: Cond) -> Array:
    """The pixels that are painted anew, bool [batch, height, width, 1]: where the condition "mask" is at least 0."""
    return jnp.asarray(cond["mask"]) >= 0


def kept(cond: Cond) -> Keep:
    """Takes the pixels that are not painted from the second argument."""
    return lambda x, known: jnp.where(painted(cond), x, known)
