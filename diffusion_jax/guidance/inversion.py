"""Editing of encoded images: the probability-flow ODE takes them to latents, which are decoded otherwise, or mixed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.guidance.editing import Check, Editing, Encode, accept, remaining_steps, with_image
from diffusion_jax.networks.conditions import Condition, Conditions
from diffusion_jax.networks.conditions import image as image_condition
from diffusion_jax.solvers import interpolation
from diffusion_jax.types import Cond, Needs, Process, Solver, Spec

PATHS = {"slerp": interpolation.slerp, "lerp": interpolation.lerp}
SOURCE = "source_"  # prefix of the conditions of the network under which an image is encoded


def inversion(strength: float = 1.0, image: str = "") -> Editing:
    """Inversion: encode the image by the sampler's ODE without guidance, then decode it under another condition.

    The image is encoded under the conditions "source_label", or whatever the network reads, and decoded under those of
    the sample, with guidance: another class or caption keeps pose and style. Under the same ones, without guidance, it
    is a reconstruction, up to the error of the solver. With `strength` < 1 it is encoded only to the time after the
    first 1 - strength share of the steps. arXiv:2010.02502, section 4.3; arXiv:2105.05233, appendix F.

    Raises ValueError for a strength outside [0, 1] or one that leaves no step, and for solvers that do not invert.
    """
    remaining = remaining_steps(strength)

    def start(
        process: Process, encode: Encode, keys: Array, x_T: Array, times: Float[Array, "num_times"], cond: Cond
    ) -> tuple[Array, Array]:
        times = times[len(times) - 1 - remaining(len(times) - 1) :]
        return encode(process.alpha(times[-1]) * jnp.asarray(cond["image"]), times), times

    return encoding(
        start=start,
        check=lambda steps, solver, shape: remaining(steps),
        conditions=with_image,
        files={"image": image},
        source=source_of,
    )


def between(path: str = "slerp", image: str = "", other: str = "") -> Editing:
    """Interpolation: a point between two encoded images, the conditions "image" and "other", decoded.

    The latents are x = path(encode(image), encode(other), weight), where the condition "weight" in [0, 1] is 0 at the
    image and 1 at the other one. `path` is "slerp", which keeps the norm that latents have, or "lerp".
    arXiv:2010.02502, section 5.3. Raises ValueError for another path, and for solvers that do not invert.
    """
    if path not in PATHS:
        raise ValueError(f"path is {path!r}; choose {' or '.join(PATHS)}")

    def start(
        process: Process, encode: Encode, keys: Array, x_T: Array, times: Float[Array, "num_times"], cond: Cond
    ) -> tuple[Array, Array]:
        a, b = (encode(process.alpha(times[-1]) * jnp.asarray(cond[name]), times) for name in ("image", "other"))
        mixed = jax.vmap(lambda a, b, w: PATHS[path](a[None], b[None], w)[0])
        return mixed(a, b, jnp.asarray(cond["weight"])), times

    def conditions(shape: tuple[int, ...]) -> Conditions:
        return Conditions({"other": image_condition(shape), "weight": Condition(Spec(()))}, image_shape=shape)

    return encoding(start=start, conditions=conditions, files={"image": image, "other": other})


def encoding(*, check: Check = accept, **fields: Any) -> Editing:
    """An Editing of encoded images, with the `fields` of `Editing`. It refuses solvers and times that do not encode."""

    def check_solver(steps: int, solver: Solver, shape: tuple[int, ...]) -> None:
        check(steps, solver, shape)
        check_inverts(solver)

    return Editing(check=check_solver, needs=Needs(sigma=True), **fields)


def source_of(cond: Cond) -> Cond:
    """The conditions that an image is encoded under, without their prefix; None without any."""
    return {name.removeprefix(SOURCE): value for name, value in cond.items() if name.startswith(SOURCE)} or None


def check_inverts(solver: Solver) -> None:
    """Raises ValueError for a solver that does not take steps to more noise, because it adds noise of its own."""
    if solver.needs.falling_times:
        raise ValueError(
            "encoding an image needs a solver of the probability-flow ODE, such as ddim, dpm_solver or heun"
        )
