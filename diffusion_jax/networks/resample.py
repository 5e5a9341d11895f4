"""Resampling with finite impulse response (FIR) filters: the `upfirdn2d` of StyleGAN2 (1912.04958), used by NCSN++.

Zhang (1904.11486) filters before subsampling so that a small shift of the input is a small change of the output;
score SDEs (2011.13456, Appendix H) take the same filters for up-sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

FIR_KERNEL = (1, 3, 3, 1)


def upfirdn_2d(
    x: Float[Array, "batch height width channels"],
    kernel: Sequence[float | int],
    *,
    up: int = 1,
    down: int = 1,
    pad: tuple[int, int] = (0, 0),
    gain: float = 1.0,
) -> Float[Array, "batch new_height new_width channels"]:
    """Insert zeros, pad, filter, subsample.

    Each pixel is followed by `up - 1` zeros, the result is padded with `pad = (before, after)` zeros on both axes,
    convolved with `gain * outer(kernel, kernel) / sum(kernel)**2`, and every `down`-th pixel is kept. The new side is
    (side * up + before + after - len(kernel)) // down + 1.
    """
    taps = np.asarray(kernel, np.float64)[::-1] * np.sqrt(gain) / np.sum(kernel)
    channels = x.shape[-1]
    padding = (pad[0], pad[1] + up - 1)
    for axis in (0, 1):
        shape = (len(taps), 1, 1, 1) if axis == 0 else (1, len(taps), 1, 1)
        along = (lambda value, rest: (value, rest)) if axis == 0 else (lambda value, rest: (rest, value))
        x = jax.lax.conv_general_dilated(
            x,
            jnp.broadcast_to(jnp.asarray(taps, x.dtype).reshape(shape), (*shape[:3], channels)),
            window_strides=along(down, 1),
            padding=along(padding, (0, 0)),
            lhs_dilation=along(up, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
    return x


def upsample_2d(
    x: Float[Array, "batch height width channels"], kernel: Sequence[float | int] = FIR_KERNEL
) -> Float[Array, "batch new_height new_width channels"]:
    """Double the sides. Constant images stay constant away from the border; outside the image is zero."""
    pad = len(kernel) - 2
    return upfirdn_2d(x, kernel, up=2, pad=((pad + 1) // 2 + 1, pad // 2), gain=4.0)


def downsample_2d(
    x: Float[Array, "batch height width channels"], kernel: Sequence[float | int] = FIR_KERNEL
) -> Float[Array, "batch new_height new_width channels"]:
    """Halve the sides. Constant images stay constant away from the border; outside the image is zero."""
    pad = len(kernel) - 2
    return upfirdn_2d(x, kernel, down=2, pad=((pad + 1) // 2, pad // 2))


def upsample_conv_2d(
    x: Float[Array, "batch height width channels"],
    weight: Float[Array, "size size channels out_channels"],
    kernel: Sequence[float | int] = FIR_KERNEL,
) -> Float[Array, "batch new_height new_width out_channels"]:
    """Double the sides by a transposed convolution with `weight` (HWIO), then filter. `size` is odd."""
    size = weight.shape[0]
    x = jax.lax.conv_general_dilated(
        x,
        weight,
        window_strides=(1, 1),
        padding=((size - 1, size - 1),) * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    pad = len(kernel) - 2 - (size - 1)
    return upfirdn_2d(x, kernel, pad=((pad + 1) // 2 + 1, pad // 2 + 1), gain=4.0)


def conv_downsample_2d(
    x: Float[Array, "batch height width channels"],
    weight: Float[Array, "size size channels out_channels"],
    kernel: Sequence[float | int] = FIR_KERNEL,
) -> Float[Array, "batch new_height new_width out_channels"]:
    """Filter, then halve the sides by a convolution of stride 2 with `weight` (HWIO). `size` is odd."""
    pad = len(kernel) - 2 + weight.shape[0] - 1
    x = upfirdn_2d(x, kernel, pad=((pad + 1) // 2, pad // 2))
    return jax.lax.conv_general_dilated(
        x, weight, window_strides=(2, 2), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
