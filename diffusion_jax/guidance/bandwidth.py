"""Bandwidth extension: the lower frequencies of a waveform as a measurement, and as what is kept at every step."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.guidance.editing import Editing, keeping
from diffusion_jax.guidance.operators import Operator, Shape, isotropic
from diffusion_jax.networks.conditions import Condition, Conditions
from diffusion_jax.types import Spec, check


def low_pass(shape: Shape, keep: float = 0.5, noise: float = 0.0) -> Operator:
    """The frequencies of waveforms [length, channels] below `keep` times half the sample rate: a projection.

    The waveform counts as a circle. Raises ValueError unless 0 < keep <= 1, and for other examples.
    """
    check(0 < keep <= 1, "keep", keep, "in (0, 1], the share of the frequencies that is known")
    if len(shape) != 2:
        raise ValueError(f"it measures waveforms [length, channels]; examples have the shape {shape}")
    length = shape[0]
    known = (np.arange(length // 2 + 1) < keep * length / 2)[:, None]

    def apply(x: Float[Array, "batch length c"], mask: None) -> Float[Array, "batch length c"]:
        return jnp.fft.irfft(jnp.fft.rfft(x, axis=1) * known, length, axis=1).astype(x.dtype)

    return Operator(shape=shape, apply=apply, gram=isotropic(1.0), noise=noise)


def bandwidth(keep: float = 0.5) -> Editing:
    """Bandwidth extension by replacement: frequencies below `keep` times half the sample rate are known.

    Before every step they are those of the condition "image", a low-passed waveform at the full sample rate, with noise
    of that time, x <- x + P (known - x) with the projection P of `low_pass`, and in the end they are its own, exactly.
    Noise is the same in all frequencies, so that this is inpainting by replacement (arXiv:2011.13456, appendix I.2) in
    another basis; arXiv:2210.15793 projects back at each step in the same way.

    Raises ValueError for a share outside of (0, 1], and for samples that are no waveforms.
    """
    check(0 < keep <= 1, "keep", keep, "in (0, 1], the share of the frequencies that is known")

    def keep_band(x: Float[Array, "batch length c"], known: Float[Array, "batch length c"]) -> Array:
        return x + low_pass(x.shape[1:], keep)(known - x)

    def conditions(shape: Shape) -> Conditions:
        operator = low_pass(shape, keep) if len(shape) == 2 else None
        return Conditions({"image": Condition(Spec(tuple(shape)), operator=operator)})

    return keeping(
        lambda cond: keep_band,
        check=lambda steps, solver, shape: low_pass(shape, keep),
        conditions=conditions,
        latents=False,
    )
