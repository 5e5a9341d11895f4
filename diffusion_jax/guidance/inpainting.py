"""Inpainting and colourisation with a model that was trained for neither, by replacing what is known at every step."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.guidance.editing import Editing, Encode, keeping, kept, painted, with_image, with_mask
from diffusion_jax.solvers.grids import time_travel
from diffusion_jax.solvers.replacement import Keep
from diffusion_jax.types import LUMA, Cond, Process, Solver
from diffusion_jax.types import check as check_number


def replacement(image: str = "", mask: str = "") -> Editing:
    """Inpainting by replacement: before every step the known pixels are those of the image with noise of that time.

    Pixels are painted where the condition "mask" is at least 0; the others are those of the condition "image" in the
    end, exactly. With the solver `predictor_corrector` this is the inpainting of score SDEs, arXiv:2011.13456, appendix
    I.2. It is biased, whatever the number of steps, see `solvers.replaced`: `repaint` is less so. `image` and `mask`
    are files, see `Editing.files`.
    """
    return repaint(1, 1, image, mask)


def repaint(length: int = 10, repeats: int = 10, image: str = "", mask: str = "") -> Editing:
    """RePaint: `replacement`, in which every stretch of `length` steps is taken `repeats` times (resampling).

    In between, the state is noised again by the forward process, so that painted pixels have more steps to agree with
    the known ones. Steps are those of `grids.time_travel`: with 250 steps and the defaults, which are the paper's, 2410
    evaluations of D. `length` should be small compared with the number of steps, as 5 is for 50. With `repeats` = 1 it
    is `replacement`. arXiv:2201.09865, algorithm 1.

    Raises ValueError for numbers below 1, a length that is not less than the number of steps, and solvers with memory.
    """
    check_number(length >= 1, "length", length, "at least 1")
    check_number(repeats >= 1, "repeats", repeats, "at least 1")

    def start(
        process: Process, encode: Encode, keys: Array, x_T: Array, times: Float[Array, "num_times"], cond: Cond
    ) -> tuple[Array, Array]:
        return x_T, time_travel(times, length, repeats)

    return keeping(
        kept,
        repeats,
        start=start,
        check=lambda steps, solver, shape: time_travel(jnp.zeros(steps + 1), length, repeats),
        conditions=with_mask,
        files={"image": image, "mask": mask},
        visible=_without_painted,
    )


def _without_painted(cond: Cond) -> Cond:
    """`cond` with painted pixels of the image in grey."""
    return {**cond, "image": jnp.where(painted(cond), 0, jnp.asarray(cond["image"]))}


def colorization(weights: tuple[float, ...] = LUMA, image: str = "") -> Editing:
    """Colourisation by replacement: the grey value of each pixel is kept, its colour is sampled.

    The grey value is the sum of the channels times `weights`; the default is luma, (1/3, 1/3, 1/3) the mean. In
    coordinates that begin with the unit vector u along `weights`, and are orthonormal, it is `replacement` of the first
    one: x <- x + u u^T (known - x), as noise is the same in all coordinates. arXiv:2011.13456, appendix I.3, with the
    mean. The condition "image" is the picture, in colours or grey. Channels of latents have no grey value.

    Raises ValueError for weights that are not positive, and for samples of another number of channels.
    """
    if not weights or min(weights) <= 0:
        raise ValueError(f"weights={weights} must be positive, one for each channel")
    norm = sum(w**2 for w in weights) ** 0.5
    unit = tuple(w / norm for w in weights)

    def check(steps: int, solver: Solver, shape: tuple[int, ...]) -> None:
        if shape[-1] != len(weights):
            raise ValueError(
                f"weights={weights} are of {len(weights)} channels of pixels; samples have the shape {shape}"
            )

    files = {"image": image}
    return keeping(lambda cond: grey_of(unit), check=check, conditions=with_image, files=files, latents=False)


def grey_of(unit: tuple[float, ...]) -> Keep:
    """Takes the projection of each pixel on the unit vector `unit` from the second argument."""

    def keep(
        x: Float[Array, "batch *spatial c"], known: Float[Array, "batch *spatial c"]
    ) -> Float[Array, "batch *spatial c"]:
        u = jnp.asarray(unit, x.dtype)
        return x + (known - x) @ u[:, None] * u

    return keep
