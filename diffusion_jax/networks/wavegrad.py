"""The network of WaveGrad: from a mel spectrogram up to samples, modulated by the noisy waveform (arXiv:2009.00713)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conv1d import Conv1d
from diffusion_jax.networks.diffwave import check_sequence, mel_conditions
from diffusion_jax.types import Embedded, check

_SLOPE = 0.2
_STEM = 32  # channels of the first convolution of the waveform


class WaveGrad(DenoisingNetwork):
    """WaveGrad: [batch, length, 1] -> [batch, length, 1] under the mel spectrogram "mel" [length / hop, num_mels].

    Upsampling blocks stretch the spectrogram by each of the `factors`, hop = prod(factors). Downsampling blocks shrink
    the waveform by the same factors. Where both have one length, FiLM gives the shift and the scale of the upsampling
    block from the waveform and the noise level. c_noise is this level itself, the continuous alpha of the process.

    Attributes have the names of the PyTorch module lmnt-com/wavegrad. 15,920,993 parameters with the defaults, the
    paper's base model; the details of blocks that the paper leaves open are those of that module.

    Args:
        shape: (length, 1) of the waveform.
        num_mels: of the condition "mel".
        factors: of the upsampling blocks.
        channels: of the upsampling blocks, one for each factor.
        first: channels of the convolution of the spectrogram.
        level_scale: factor of the noise level before its sines; 5000 in the paper, 1 in the module.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: examples that are no waveforms, a length that the hop does not divide, other numbers of factors and
            channels.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (7200, 1),
        num_mels: int = 128,
        factors: tuple[int, ...] = (5, 5, 3, 2, 2),
        channels: tuple[int, ...] = (512, 512, 256, 128, 128),
        first: int = 768,
        level_scale: float = 5000.0,
        rngs: nnx.Rngs,
    ):
        length = check_sequence(shape)
        check(shape[-1] == 1, "shape", shape, "(length, 1), that of a waveform")
        check(num_mels >= 1, "num_mels", num_mels, "at least 1: a vocoder reads a spectrogram")
        check(len(factors) == len(channels) >= 2, "channels", channels, f"at least 2, one for each of {factors}")
        self.input_shape = tuple(shape)
        self.conditions = mel_conditions(length, num_mels, factors)
        widths = (_STEM, *channels[:0:-1])  # of the waveform at each length, from the longest
        blocks = [DBlock(widths[i], widths[i + 1], factor, rngs=rngs) for i, factor in enumerate(factors[:0:-1])]
        self.downsample = nnx.List([Conv1d(1, _STEM, 5, rngs=rngs), *blocks])
        self.film = nnx.List([FiLM(a, b, level_scale, rngs=rngs) for a, b in zip(widths, channels[::-1], strict=True)])
        inputs = (first, *channels[:-1])
        self.upsample = nnx.List(
            [
                UBlock(inputs[i], channels[i], factor, (1, 2, 1, 2) if i < 2 else (1, 2, 4, 8), rngs=rngs)
                for i, factor in enumerate(factors)
            ]
        )
        self.first_conv = Conv1d(num_mels, first, 3, rngs=rngs)
        self.last_conv = Conv1d(channels[-1], 1, 3, scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch length 1"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch length 1"]:
        modulations, h = [], x
        for film, layer in zip(self.film, self.downsample, strict=True):
            h = layer(h)
            modulations.append(film(h, c_noise))
        h = self.first_conv(cond.others["mel"])
        for layer, (shift, scale) in zip(self.upsample, reversed(modulations), strict=True):
            h = layer(h, shift, scale)
        return self.last_conv(h)


class FiLM(nnx.Module):
    """Shift and scale of an upsampling block, from the waveform at its length and the sines of the noise level."""

    def __init__(self, in_features: int, out_features: int, level_scale: float, *, rngs: nnx.Rngs):
        self.level_scale = level_scale
        self.input_conv = Conv1d(in_features, in_features, 3, rngs=rngs)
        self.output_conv = Conv1d(in_features, 2 * out_features, 3, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch n c"], level: Float[Array, "batch"]
    ) -> tuple[Float[Array, "batch n c2"], Float[Array, "batch n c2"]]:
        x = jax.nn.leaky_relu(self.input_conv(x), _SLOPE)
        half = x.shape[-1] // 2
        rates = 10_000.0 ** (-jnp.arange(half) / half)
        angles = self.level_scale * level.astype(jnp.float32)[:, None] * rates
        encoding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(x.dtype)
        shift, scale = jnp.split(self.output_conv(x + encoding[:, None]), 2, axis=-1)
        return shift, scale


class UBlock(nnx.Module):
    """Two residual pairs of dilated convolutions, the first after stretching the input by `factor`."""

    def __init__(self, in_features: int, out_features: int, factor: int, dilations: tuple[int, ...], *, rngs: nnx.Rngs):
        self.factor = factor
        first, second, third, fourth = dilations
        self.block1 = Conv1d(in_features, out_features, rngs=rngs)
        self.block2 = nnx.List(
            [
                Conv1d(in_features, out_features, 3, dilation=first, rngs=rngs),
                Conv1d(out_features, out_features, 3, dilation=second, rngs=rngs),
            ]
        )
        self.block3 = nnx.List(
            [
                Conv1d(out_features, out_features, 3, dilation=third, rngs=rngs),
                Conv1d(out_features, out_features, 3, dilation=fourth, rngs=rngs),
            ]
        )

    def __call__(
        self, x: Float[Array, "batch n c"], shift: Float[Array, "batch m c2"], scale: Float[Array, "batch m c2"]
    ) -> Float[Array, "batch m c2"]:
        stretched = jnp.repeat(x, self.factor, axis=1)
        h = self.block2[0](jax.nn.leaky_relu(stretched, _SLOPE))
        h = self.block2[1](jax.nn.leaky_relu(shift + scale * h, _SLOPE))
        x = self.block1(stretched) + h
        h = self.block3[0](jax.nn.leaky_relu(shift + scale * x, _SLOPE))
        return x + self.block3[1](jax.nn.leaky_relu(shift + scale * h, _SLOPE))


class DBlock(nnx.Module):
    """Every `factor`-th sample, three dilated convolutions, and a residual connection."""

    def __init__(self, in_features: int, out_features: int, factor: int, *, rngs: nnx.Rngs):
        self.factor = factor
        self.residual_dense = Conv1d(in_features, out_features, rngs=rngs)
        self.conv = nnx.List(
            [Conv1d(out_features if i else in_features, out_features, 3, dilation=2**i, rngs=rngs) for i in range(3)]
        )

    def __call__(self, x: Float[Array, "batch n c"]) -> Float[Array, "batch m c2"]:
        x = x[:, :: self.factor]
        residual = self.residual_dense(x)
        for layer in self.conv:
            x = layer(jax.nn.leaky_relu(x, _SLOPE))
        return x + residual
