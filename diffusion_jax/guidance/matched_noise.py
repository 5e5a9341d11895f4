"""Denoising at matched time: a noisy image is a state of the forward process, at the time of its signal-to-noise."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.guidance.editing import Editing, Encode
from diffusion_jax.guidance.measurement import condition_of
from diffusion_jax.guidance.operators import Operator, isotropic
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes.base import time_of_log_snr
from diffusion_jax.types import Cond, Process, check

NOISY = "noisy"  # the condition: the image to denoise


def denoising(noise: float = 0.1, image: str = "") -> Editing:
    """Denoising at matched time: start from the noisy image of the condition "noisy", at the time t* of its noise.

    An image y = x_0 + s n with s = `noise`, in the units of pixels in [-1, 1], has the law of x_t / alpha(t) at the t*
    with log SNR = -2 log s. So sampling starts from alpha(t*) y at t*, and takes all its steps below, in the spacing of
    the grid. Without further knowledge than the model of clean images,

    - D(alpha(t*) y, t*), one step of `ddim` on a grid that ends at t = 0, is E[x_0 | y], of least mean squared error;
    - the reverse SDE, such as `ancestral`, draws from p(x_0 | y), with twice that error in each draw.

    arXiv:2201.11760, for optical coherence tomography. Noise that multiplies the image is additive after a logarithm,
    of data and image alike. Where the process never has that much noise, or that little, t* is the nearest it has.
    `image` is a file, see `Editing.files`; without one, and without conditions in a file, held-out examples get the
    noise. Raises ValueError unless the noise is positive.
    """
    check(noise > 0, "noise", noise, "positive, in the units of x, which is in [-1, 1]")

    def start(
        process: Process, encode: Encode, keys: Key[Array, "batch"], x_T: Array, times: Array, cond: Cond
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, "num_times"]]:
        t = time_of_log_snr(process, jnp.float32(-2 * math.log(noise)))
        first, last = times[0], times[-1]
        t = jnp.maximum(t, last)
        below = last + (times - last) * (t - last) / (first - last)
        return process.alpha(t) * jnp.asarray(cond[NOISY], x_T.dtype), below

    def conditions(shape: tuple[int, ...]) -> Conditions:
        operator = Operator(shape=shape, apply=lambda x, mask: x, gram=isotropic(1.0), noise=noise)
        return Conditions({NOISY: condition_of(operator)})

    return Editing(start=start, conditions=conditions, files={NOISY: image}, latents=False)
