"""Layers shared by the networks.

Every layer follows the dtype of its input. Statistics, softmax and time embeddings are computed in float32.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks.streams import streams


def activation(name: str) -> Callable[[Array], Array]:
    """The pointwise nonlinearity called `name`: "silu", "relu", "elu", "gelu", "gelu_tanh" or "quick_gelu".

    The last, x sigmoid(1.702 x), is the approximation of arXiv:1606.08415, section 2.
    """
    table = {
        "silu": jax.nn.silu,
        "relu": jax.nn.relu,
        "elu": jax.nn.elu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    }
    if name not in table:
        raise ValueError(f"activation={name!r} is unknown; choose one of {sorted(table)}.")
    return table[name]


def fan_avg_uniform(scale: float = 1.0) -> nnx.Initializer:
    """U(-a, a) with a = sqrt(3 scale / mean(fan_in, fan_out)): the initialiser of DDPM; zeros for scale 0."""
    if scale == 0.0:
        return nnx.initializers.zeros_init()
    return nnx.initializers.variance_scaling(scale, "fan_avg", "uniform")


KERNEL_INITS: dict[str, Callable[[float], nnx.Initializer]] = {
    "fan_avg": fan_avg_uniform,
    "fan_in": lambda scale: nnx.initializers.lecun_normal() if scale else nnx.initializers.zeros_init(),
}


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    dilation: int = 1,
    scale: float = 1.0,
    use_bias: bool = True,
    padding: str | int = "SAME",
    init: str = "fan_avg",
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A two-dimensional convolution with DDPM's initialiser times `scale`, and a zero bias.

    `init` "fan_in" is Flax's initialiser (LeCun normal) instead, and zeros for scale 0.

    With stride 2 on even sizes, the padding "SAME" is at the bottom and the right only, as in DDPM; 1 is on all sides.
    """
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        kernel_dilation=dilation,
        padding=padding,
        use_bias=use_bias,
        kernel_init=KERNEL_INITS[init](scale),
        rngs=rngs,
    )


def linear(
    in_features: int,
    out_features: int,
    *,
    scale: float = 1.0,
    use_bias: bool = True,
    init: str = "fan_avg",
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A dense layer with DDPM's initialiser times `scale` and a zero bias; `init` as in `conv`."""
    kernel_init = KERNEL_INITS[init](scale)
    return nnx.Linear(in_features, out_features, use_bias=use_bias, kernel_init=kernel_init, rngs=rngs)


class GroupNorm(nnx.Module):
    """Group normalisation (arXiv:1803.08494) over the spatial axes and the channels of each group.

    Statistics are in float32 and in two passes: the mean and the centred second moment of each channel, combined into
    those of the group. The difference of moments E[x^2] - E[x]^2 would be wrong where the mean is large. Parameters:
    `scale` and `bias`, each [channels].

    Raises:
        ValueError: if `num_groups` does not divide `channels`.
    """

    def __init__(self, channels: int, *, num_groups: int = 32, epsilon: float = 1e-6):
        if num_groups < 1 or channels % num_groups:
            raise ValueError(
                f"num_groups={num_groups} must be a positive divisor of the number of channels, {channels}."
            )
        self.num_groups = num_groups
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "batch *spatial c"]) -> Float[Array, "batch *spatial c"]:
        x32 = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        mean, var = self._of_groups(*moments(x32))
        scale = jax.lax.rsqrt(var + self.epsilon) * self.scale[...].astype(jnp.float32)
        out = (x32 - mean) * scale + self.bias[...].astype(jnp.float32)
        return out.astype(x.dtype).reshape(x.shape)

    def _of_groups(self, mean: Float[Array, "batch 1 c"], var: Float[Array, "batch 1 c"]) -> tuple[Array, Array]:
        """Mean and variance of each group, for each of its channels, from those of the channels."""
        means, variances = (a.reshape(a.shape[0], self.num_groups, -1) for a in (mean, var))
        center = means.mean(-1, keepdims=True)
        spread = (variances + jnp.square(means - center)).mean(-1, keepdims=True)
        return tuple(jnp.broadcast_to(a, means.shape).reshape(mean.shape) for a in (center, spread))


def moments(x: Float[Array, "batch n c"]) -> tuple[Float[Array, "batch 1 c"], Float[Array, "batch 1 c"]]:
    """Mean and centred second moment of each channel over the second axis."""
    mean = x.mean(1, keepdims=True)
    return mean, jnp.square(x - mean).mean(1, keepdims=True)


def layer_norm(features: int, *, epsilon: float = 1e-6, affine: bool = True, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation over the channels with statistics in float32 and in two passes, as in `GroupNorm`."""
    return nnx.LayerNorm(
        features, epsilon=epsilon, use_bias=affine, use_scale=affine, use_fast_variance=False, rngs=rngs
    )


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
    """Zero each entry with probability `rate` and divide the others by 1 - rate; the identity if `rngs` is None."""
    if rngs is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(rngs.dropout(), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def sinusoidal_embedding(
    c_noise: Float[Array, "batch"],
    dim: int,
    *,
    max_period: float = 10_000.0,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1.0,
) -> Float[Array, "batch {dim}"]:
    """Positional embedding of a scalar, in float32 (arXiv:1706.03762 section 3.5, as used by arXiv:2006.11239).

    [sin(c w_i), cos(c w_i)] with w_i = max_period^(-i / (h - shift)), i = 0..h-1, h = dim // 2; an odd `dim` is padded
    with a zero. The defaults are DDPM's; DiT and ADM use `flip_sin_to_cos=True`, which puts the cosines first, and
    `downscale_freq_shift=0`.

    Args:
        c_noise: the label, usually a timestep in 0..999.
        dim: size of the embedding.
        max_period: period of the slowest wave, over 2 pi.
        flip_sin_to_cos: whether the cosines come first.
        downscale_freq_shift: shift in the formula above.
    """
    half = dim // 2
    if half - downscale_freq_shift <= 0:
        raise ValueError(f"dim={dim} is too small; half of it must exceed downscale_freq_shift={downscale_freq_shift}.")
    exponent = -math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - downscale_freq_shift)
    angle = c_noise.astype(jnp.float32)[:, None] * jnp.exp(exponent)
    waves = [jnp.cos(angle), jnp.sin(angle)] if flip_sin_to_cos else [jnp.sin(angle), jnp.cos(angle)]
    return jnp.pad(jnp.concatenate(waves, -1), ((0, 0), (0, dim % 2)))


class FourierEmbedding(nnx.Module):
    """Random Fourier features of a scalar: [sin(2 pi c w), cos(2 pi c w)], w ~ N(0, scale^2) (arXiv:2011.13456).

    `dim` frequencies give an embedding [batch, 2 dim] in float32. The frequencies are a parameter, `weight`, because
    checkpoints hold them, but receive no gradient and no weight decay. They are marked `full_precision`: rounded to
    bfloat16 they would shift the phases by about a radian.
    """

    def __init__(self, dim: int, *, scale: float = 16.0, rngs: nnx.Rngs):
        self.weight = nnx.Param(scale * jax.random.normal(rngs.params(), (dim,)), full_precision=True)

    def __call__(self, c_noise: Float[Array, "batch"]) -> Float[Array, "batch features"]:
        weight = jax.lax.stop_gradient(self.weight[...]).astype(jnp.float32)
        angle = 2 * jnp.pi * c_noise.astype(jnp.float32)[:, None] * weight
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class TimeEmbedding(nnx.Module):
    """An embedding of c_noise followed by two dense layers: [batch] -> [batch, out_features].

    Args:
        dim: size of the positional embedding, or number of Fourier frequencies.
        out_features: size of the result.
        embedding: "positional" (c_noise is a timestep in 0..999) or "fourier" (c_noise is of order 1, e.g. log sigma).
        fourier_scale: standard deviation of the Fourier frequencies.
        flip_sin_to_cos: of the positional embedding, see `sinusoidal_embedding`.
        downscale_freq_shift: likewise.
        init: of the kernels, see `conv`.
        cond_proj_dim: size of a further embedding, such as that of a guidance scale, which is projected, at first to
            zero, and added to that of c_noise; 0 for none.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `embedding` is unknown.
    """

    def __init__(
        self,
        dim: int,
        out_features: int,
        *,
        embedding: str,
        fourier_scale: float = 16.0,
        flip_sin_to_cos: bool = False,
        downscale_freq_shift: float = 1.0,
        init: str = "fan_avg",
        cond_proj_dim: int = 0,
        rngs: nnx.Rngs,
    ):
        if embedding not in ("positional", "fourier"):
            raise ValueError(f"embedding={embedding!r} is unknown; choose 'positional' or 'fourier'.")
        fourier = embedding == "fourier"
        self.dim = dim
        self.waves = dict(flip_sin_to_cos=flip_sin_to_cos, downscale_freq_shift=downscale_freq_shift)
        self.time_proj = FourierEmbedding(dim, scale=fourier_scale, rngs=rngs) if fourier else None
        self.linear_1 = linear(2 * dim if fourier else dim, out_features, init=init, rngs=rngs)
        self.linear_2 = linear(out_features, out_features, init=init, rngs=rngs)
        width = 2 * dim if fourier else dim
        self.cond_proj = linear(cond_proj_dim, width, scale=0.0, use_bias=False, rngs=rngs) if cond_proj_dim else None

    def __call__(
        self, c_noise: Float[Array, "batch"], dtype: jnp.dtype, cond: Float[Array, "batch c"] | None = None
    ) -> Float[Array, "batch features"]:
        if self.time_proj is None:
            emb = sinusoidal_embedding(c_noise, self.dim, **self.waves)
        else:
            emb = self.time_proj(c_noise)
        emb = emb.astype(dtype)
        if cond is not None:
            emb = emb + self.cond_proj(cond.astype(dtype))
        return self.linear_2(jax.nn.silu(self.linear_1(emb)))


def embed_times(
    time_embedding: Callable[..., Array],
    gap_embedding: Callable[..., Array] | None,
    c_noise: Float[Array, "batch *times"],
    dtype: jnp.dtype,
) -> Float[Array, "batch features"]:
    """The embedding of c_noise, [batch].

    A network of flow maps has a `gap_embedding`, and its c_noise may be [batch, 2]: the label of the time, and that of
    the gap to the time of arrival. Their embeddings are added. [batch] stands for gaps of 0, whose label is 0.
    """
    if gap_embedding is None:
        return time_embedding(c_noise, dtype)
    time, gap = (c_noise, jnp.zeros_like(c_noise)) if c_noise.ndim == 1 else (c_noise[:, 0], c_noise[:, 1])
    return time_embedding(time, dtype) + gap_embedding(gap, dtype)


def upsample_nearest(x: Float[Array, "batch h w c"], factor: int = 2) -> Float[Array, "batch h2 w2 c"]:
    """Repeat every pixel `factor` times along both spatial axes."""
    batch, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, h, factor, w, factor, c))
    return x.reshape(batch, h * factor, w * factor, c)


def average_2x2(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
    """Halve the resolution by averages over 2 x 2 pixels."""
    return nnx.avg_pool(x, (2, 2), (2, 2))


def call_block(block: Callable[..., Any], *args: Any, rngs: nnx.Rngs | None, remat: bool) -> Any:
    """`block(*args, rngs=rngs)`; with `remat` (checkpointing) the backward pass computes its activations again."""
    if not remat:
        return block(*args, rngs=rngs)
    key = None if rngs is None else rngs.dropout()

    def run(key: Array | None, *args: Any) -> Any:
        # The stream is built inside, since NNX forbids to advance an outer one within a transformed function.
        return block(*args, rngs=None if key is None else streams(dropout=key))

    return jax.checkpoint(run)(key, *args)


def check_divides(field: str, size: int, divisor: int) -> None:
    """Raises ValueError, naming `field`, unless `size` is a positive multiple of `divisor`."""
    if size < divisor or size % divisor:
        raise ValueError(f"{field}={size} must be a multiple of {divisor}: the levels of the network divide it.")


def level_resolutions(image_size: int, num_levels: int, chosen: tuple[int, ...], field: str) -> list[int]:
    """The resolution of every level, each half of the one before.

    Raises:
        ValueError: the levels do not divide the image's size, or one of `chosen`, the values of `field`, is not
            among them.
    """
    check_divides("image_size", image_size, 2 ** (num_levels - 1))
    resolutions = [image_size // 2**level for level in range(num_levels)]
    if not set(chosen) <= set(resolutions):
        raise ValueError(
            f"{field}={chosen} must be among the resolutions of the levels, {resolutions} for image_size={image_size} "
            f"and {num_levels} levels."
        )
    return resolutions
