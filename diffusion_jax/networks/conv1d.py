"""Convolutions over the samples of a waveform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Conv1d(nnx.Module):
    """A convolution [batch, length, in] -> [batch, length, out] with an odd kernel, dilation and zeros at the ends.

    It is a sum of matrix products of shifted inputs, which XLA compiles to fast code for dilated kernels too. The
    initialiser is He's for normal weights (arXiv:1502.01852), as in DiffWave's implementation, and zeros for `scale` 0.

    Args:
        in_features, out_features: channels.
        kernel_size: odd.
        dilation: samples between the entries of the kernel.
        scale: of the variance of the initial kernel.
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        scale: float = 2.0,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.variance_scaling(scale, "fan_in", "normal") if scale else nnx.initializers.zeros_init()
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, in_features, out_features)))
        self.bias = nnx.Param(jnp.zeros(out_features))
        self.dilation = dilation

    def __call__(self, x: Float[Array, "batch length c"]) -> Float[Array, "batch length c2"]:
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        size, length = kernel.shape[0], x.shape[1]
        reach = size // 2 * self.dilation
        padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
        shifted = [
            jax.lax.slice_in_dim(padded, i * self.dilation, i * self.dilation + length, axis=1) for i in range(size)
        ]
        stacked = jnp.concatenate(shifted, axis=-1) if size > 1 else x
        return stacked @ kernel.reshape(-1, kernel.shape[-1]) + bias
