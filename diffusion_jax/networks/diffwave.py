"""The network of DiffWave: dilated convolutions over a noisy waveform, under a mel spectrogram (arXiv:2009.09761)."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Condition, Conditions
from diffusion_jax.networks.conv1d import Conv1d
from diffusion_jax.types import Embedded, Spec, check

_EMBEDDING = 128  # of the step, before its two dense layers
_WIDTH = 512  # of these
_SLOPE = 0.4  # of the upsampler's leaky ReLU
_KERNEL = 3  # over mels, of the upsampler


class DiffWave(DenoisingNetwork):
    """DiffWave: residual layers of dilated convolutions, [batch, length, c] -> [batch, length, c].

    Layer i is y = h + W_t emb(step); a convolution of 3 entries `2^(i mod cycle)` samples apart to twice the width,
    plus a projection of the condition; sigmoid times tanh; and a projection to the next layer and the output, which is
    the sum of all layers over the square root of their number. The output starts at zero. The condition is the mel
    spectrogram "mel" [length / hop, num_mels] with hop = prod(upsample), or a class "label", or none.

    Attributes have the names of the authors' PyTorch module lmnt-com/diffwave. c_noise is the timestep, 0 the first; of
    a fractional one the embedding is interpolated, as there. With num_mels=80, the paper's vocoder of LJSpeech, the
    defaults have 2,619,971 parameters (base), and residual_channels=128 has 6,885,315 (large).

    Args:
        shape: (length, c) of an example: a waveform has one channel, and the frames of a log-mel spectrogram, of which
            DiffSinger's denoiser is such a network (arXiv:2105.02446), have as many as mels.
        residual_channels: width.
        residual_layers: number of layers.
        dilation_cycle: layers until the dilation is 1 again.
        num_mels: of the condition "mel"; 0 for none.
        upsample: factors by which the mel spectrogram is stretched to samples, one transposed convolution for each.
        num_classes: of the condition "label"; 0 for none.
        remat: compute the activations of a layer again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: examples that are no sequences, a length that the hop does not divide, an odd factor, or both
            conditions.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (16_000, 1),
        residual_channels: int = 64,
        residual_layers: int = 30,
        dilation_cycle: int = 10,
        num_mels: int = 0,
        upsample: tuple[int, ...] = (16, 16),
        num_classes: int = 0,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        length = check_sequence(shape)
        check(residual_layers >= 1 and dilation_cycle >= 1, "dilation_cycle", dilation_cycle, "at least 1, as layers")
        check(not (num_mels and num_classes), "num_classes", num_classes, f"0 with num_mels={num_mels}")
        check(all(factor % 2 == 0 for factor in upsample), "upsample", upsample, "even factors")
        self.input_shape = tuple(shape)
        self.remat = remat
        self.conditions = mel_conditions(length, num_mels, upsample) | Conditions(num_classes=num_classes)
        self.input_projection = Conv1d(shape[-1], residual_channels, rngs=rngs)
        self.diffusion_embedding = DiffusionEmbedding(rngs=rngs)
        self.spectrogram_upsampler = SpectrogramUpsampler(upsample, rngs=rngs) if num_mels else None
        self.class_embedding = nnx.Embed(num_classes + 1, _EMBEDDING, rngs=rngs) if num_classes else None
        width = num_mels or (_EMBEDDING if num_classes else 0)
        self.residual_layers = nnx.List(
            [
                ResidualBlock(width, residual_channels, 2 ** (i % dilation_cycle), rngs=rngs)
                for i in range(residual_layers)
            ]
        )
        self.skip_projection = Conv1d(residual_channels, residual_channels, rngs=rngs)
        self.output_projection = Conv1d(residual_channels, shape[-1], scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch length c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch length c"]:
        h = jax.nn.relu(self.input_projection(x))
        emb = self.diffusion_embedding(c_noise, x.dtype)
        condition = None if cond.vector is None else cond.vector[:, None]
        if self.spectrogram_upsampler is not None:
            condition = self.spectrogram_upsampler(cond.others["mel"])
        total = jnp.zeros_like(h)
        for layer in self.residual_layers:
            h, skip = layers.call_block(layer, h, emb, condition, rngs=None, remat=self.remat)
            total = total + skip
        h = jax.nn.relu(self.skip_projection(total / math.sqrt(len(self.residual_layers))))
        return self.output_projection(h)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self.class_embedding)


class DiffusionEmbedding(nnx.Module):
    """sin and cos of 10^(4 i / 63) times the step, i = 0..63, and two dense layers with SiLU: [batch] -> [batch, 512].

    Between two integers the sines and cosines are interpolated linearly.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.projection1 = layers.linear(_EMBEDDING, _WIDTH, rngs=rngs)
        self.projection2 = layers.linear(_WIDTH, _WIDTH, rngs=rngs)

    def __call__(self, step: Float[Array, "batch"], dtype: jnp.dtype) -> Float[Array, "batch c"]:
        encoding = step_encoding(step.astype(jnp.float32)).astype(dtype)
        return jax.nn.silu(self.projection2(jax.nn.silu(self.projection1(encoding))))


def step_encoding(step: Float[Array, "batch"]) -> Float[Array, "batch 128"]:
    """sin and cos of 10^(4 i / 63) times the step, interpolated between integers."""
    half = _EMBEDDING // 2
    rates = 10.0 ** (jnp.arange(half) * 4 / (half - 1))
    low = jnp.floor(step)

    def sinusoids(step: Float[Array, "batch"]) -> Float[Array, "batch 128"]:
        angles = step[:, None] * rates
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    share = (step - low)[:, None]
    return (1 - share) * sinusoids(low) + share * sinusoids(low + 1)


class SpectrogramUpsampler(nnx.Module):
    """Transposed convolutions [3, 2 f] over mels and frames that stretch the frames by each factor f.

    [batch, frames, mels] -> [batch, frames prod(f), mels]. Modules are called conv1, conv2, ... with kernels
    [3, 2 f], and each is followed by a leaky ReLU.
    """

    def __init__(self, factors: tuple[int, ...], *, rngs: nnx.Rngs):
        self.factors = tuple(factors)
        for i, factor in enumerate(factors):
            setattr(self, f"conv{i + 1}", TransposedConv(factor, rngs=rngs))

    def __call__(self, mel: Float[Array, "batch frames mels"]) -> Float[Array, "batch length mels"]:
        for i in range(len(self.factors)):
            mel = jax.nn.leaky_relu(getattr(self, f"conv{i + 1}")(mel), _SLOPE)
        return mel


class TransposedConv(nnx.Module):
    """torch.nn.ConvTranspose2d(1, 1, [3, 2 f], stride=[1, f], padding=[1, f / 2]) over [mels, frames]."""

    def __init__(self, factor: int, *, rngs: nnx.Rngs):
        self.factor = factor
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(), out_axis=())
        self.kernel = nnx.Param(init(rngs.params(), (_KERNEL, 2 * factor)))
        self.bias = nnx.Param(jnp.zeros(1))

    def __call__(self, mel: Float[Array, "batch frames mels"]) -> Float[Array, "batch length mels"]:
        kernel, bias = self.kernel[...].astype(mel.dtype), self.bias[...].astype(mel.dtype)
        batch, frames, mels = mel.shape
        # out[m, f n + j - f / 2] += kernel[k, j] mel[m + k - 1, n]: mels by shifts, frames by two overlapping halves.
        padded = jnp.pad(mel, ((0, 0), (0, 0), (1, 1)))
        summed = sum(
            padded[:, :, None, _KERNEL - 1 - k : _KERNEL - 1 - k + mels] * kernel[k][:, None] for k in range(_KERNEL)
        )
        first, second = (half.reshape(batch, -1, mels) for half in jnp.split(summed, 2, axis=2))
        rest = ((0, 0), (0, self.factor), (0, 0)), ((0, 0), (self.factor, 0), (0, 0))
        whole = jnp.pad(first, rest[0]) + jnp.pad(second, rest[1])
        start = self.factor // 2
        return jax.lax.slice_in_dim(whole, start, start + frames * self.factor, axis=1) + bias


class ResidualBlock(nnx.Module):
    """One layer: (h, emb, condition) -> (the next h, what the output adds up). A gated dilated convolution."""

    def __init__(self, condition: int, channels: int, dilation: int, *, rngs: nnx.Rngs):
        self.dilated_conv = Conv1d(channels, 2 * channels, 3, dilation=dilation, rngs=rngs)
        self.diffusion_projection = layers.linear(_WIDTH, channels, rngs=rngs)
        self.conditioner_projection = Conv1d(condition, 2 * channels, rngs=rngs) if condition else None
        self.output_projection = Conv1d(channels, 2 * channels, rngs=rngs)

    def __call__(
        self,
        h: Float[Array, "batch length c"],
        emb: Float[Array, "batch c2"],
        condition: Float[Array, "batch _ c3"] | None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "batch length c"], Float[Array, "batch length c"]]:
        y = self.dilated_conv(h + self.diffusion_projection(emb)[:, None])
        if self.conditioner_projection is not None:
            y = y + self.conditioner_projection(condition)
        gate, filtered = jnp.split(y, 2, axis=-1)
        residual, skip = jnp.split(self.output_projection(jax.nn.sigmoid(gate) * jnp.tanh(filtered)), 2, axis=-1)
        return (h + residual) / math.sqrt(2), skip


def check_sequence(shape: tuple[int, ...]) -> int:
    """The length of examples [length, channels]. Raises ValueError for others."""
    if len(shape) != 2:
        raise ValueError(f"examples of shape {shape} are no waveforms, [length, 1]; config.data.name='audio' has some")
    return shape[0]


def mel_conditions(length: int, num_mels: int, factors: tuple[int, ...]) -> Conditions:
    """The condition "mel" [length / hop, num_mels] with hop = prod(factors); none for num_mels = 0.

    Raises ValueError for a hop that does not divide the length.
    """
    if not num_mels:
        return Conditions()
    hop = math.prod(factors)
    if length % hop:
        raise ValueError(f"the factors {factors}: their product {hop} must divide the {length} samples of an example")
    return Conditions({"mel": Condition(Spec((length // hop, num_mels)))})
