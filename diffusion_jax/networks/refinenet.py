"""The RefineNets of NCSN (arXiv:1907.05600) and NCSNv2 (arXiv:2006.09011)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.types import Embedded, check_choice

# Per level: factor of ngf, whether it halves the image, and the dilation that later levels use instead of halving.
LEVELS = {
    "shallow": ((1, False, 1), (2, True, 1), (2, False, 2)),
    "standard": ((1, False, 1), (2, True, 1), (2, False, 2), (2, False, 4)),
    "deeper": ((1, False, 1), (2, True, 1), (2, True, 1), (4, False, 2), (4, False, 4)),
    "deepest": ((1, False, 1), (2, True, 1), (2, True, 1), (2, True, 1), (4, False, 2), (4, False, 4)),
}


class NCSN(DenoisingNetwork):
    """Noise conditional score network: [batch, h, w, channels] and a noise level to the score, same shape as x.

    A RefineNet with dilated residual blocks whose every convolution follows a conditional instance normalisation++
    (1907.05600, Appendix A). The output is the score itself, without a division by sigma. x is in [-1, 1] plus noise;
    the original takes [0, 1] and rescales it inside. With `ngf=128` and 10 levels this is the paper's CIFAR-10 network.

    c_noise is the index of the noise level, 0..num_levels - 1, 0 the largest sigma; it is rounded to the nearest
    integer, and an index out of range gives NaN. cond and rngs are ignored: the network has neither labels nor dropout.

    Args:
        num_levels: number of noise levels.
        in_channels: channels of x and of the score.
        ngf: channels of the first level, at least 2.
        depth: "standard" is the paper's; "shallow" leaves out the level of dilation 4, whose kernels reach past images
            of 8 x 8; "deeper" and "deepest" are NCSNv2's.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `num_levels` < 1, `ngf` < 2, `depth` is unknown, or the levels do not divide the size of x.
    """

    def __init__(
        self,
        *,
        num_levels: int = 10,
        in_channels: int = 3,
        ngf: int = 128,
        depth: str = "standard",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if num_levels < 1:
            raise ValueError(f"num_levels={num_levels} must be at least 1.")
        self.input_shape, self.divisor = (None, None, in_channels), level_divisor(depth)
        self.refinenet = RefineNet(in_channels, ngf, num_levels, depth=depth, remat=remat, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w c"]:
        return self.refinenet(x, jnp.round(c_noise).astype(jnp.int32))


class NCSNv2(DenoisingNetwork):
    """The unconditional RefineNet of NCSNv2: [batch, h, w, channels] -> same shape, sigma times the score.

    Only the residual blocks have instance normalisation++, without conditioning (2006.09011, Appendix B). c_noise
    is ignored: the parameterization divides the output by sigma (Technique 3). So are cond and rngs. x is in [-1, 1]
    plus noise; the original takes [0, 1] and rescales it inside.

    Args:
        in_channels: channels of x and of the output.
        ngf: channels of the first level, at least 2; 128 in the paper.
        depth: "standard" for 32 and 64 pixels, "deeper" for 96 and 128, "deepest" for 256; "shallow" leaves out the
            level of dilation 4, whose kernels reach past images of 8 x 8.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `ngf` < 2, `depth` is unknown, or the levels do not divide the size of x.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        ngf: int = 128,
        depth: str = "standard",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.input_shape, self.divisor = (None, None, in_channels), level_divisor(depth)
        self.refinenet = RefineNet(in_channels, ngf, 0, depth=depth, remat=remat, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w c"]:
        return self.refinenet(x, None)


class RefineNet(nnx.Module):
    """Cascaded RefineNet (1611.06612) of dilated residual blocks; `num_levels=0` makes it unconditional.

    The encoder path has two residual blocks per level. Then one refine block per level, lowest first, fuses the level's
    output with the previous refine block's.
    """

    def __init__(self, in_channels: int, ngf: int, num_levels: int, *, depth: str, remat: bool, rngs: nnx.Rngs):
        if ngf < 2:
            raise ValueError(f"ngf={ngf} must be at least 2: instance normalisation++ compares channels.")
        self.remat = remat
        widths = [ngf * mult for mult, _, _ in LEVELS[depth]]

        self.begin_conv = conv(in_channels, ngf, rngs=rngs)
        res = []
        for i, (width, (_, halve, dilation)) in enumerate(zip(widths, LEVELS[depth], strict=True)):
            first = ResidualBlock(
                widths[max(i - 1, 0)], width, num_levels, new_level=i > 0, halve=halve, dilation=dilation, rngs=rngs
            )
            second = ResidualBlock(width, width, num_levels, dilation=dilation, rngs=rngs)
            res.append(nnx.List([first, second]))
        self.res = nnx.List(res)
        refine = []
        for i in reversed(range(len(widths))):
            inputs = [widths[i]] if i == len(widths) - 1 else [widths[i], widths[i]]
            refine.append(RefineBlock(inputs, widths[max(i - 1, 0)], num_levels, last=i == 0, rngs=rngs))
        self.refine = nnx.List(refine)
        self.normalizer = instance_norm_plus(ngf, num_levels, rngs=rngs)
        self.end_conv = conv(ngf, in_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"], y: Int[Array, "batch"] | None) -> Float[Array, "batch h w c"]:
        h = self.begin_conv(x)
        outputs = []
        for level in self.res:
            for block in level:
                h = self._call(block, h, y)
            outputs.append(h)
        h = self._call(self.refine[0], [outputs.pop()], y)
        for block in self.refine[1:]:
            h = self._call(block, [outputs.pop(), h], y)
        return self.end_conv(jax.nn.elu(self.normalizer(h, y)))

    def _call(self, block: nnx.Module, *args: Array | list[Array] | None) -> Array:
        return jax.checkpoint(block)(*args) if self.remat else block(*args)


class InstanceNormPlus(nnx.Module):
    """Instance normalisation++ (1907.05600, Appendix A), which keeps the relative means of the channels.

    z_k = gamma_k ((x_k - mu_k) / sigma_k + alpha_k (mu_k - m) / v) + beta_k, where mu_k and sigma_k are over the pixels
    of channel k, m and v the mean and standard deviation (unbiased) of the mu_k over the channels. The released code
    multiplies alpha by gamma, the paper does not.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.alpha = nnx.Param(1 + 0.02 * jax.random.normal(rngs.params(), (channels,)))
        self.gamma = nnx.Param(1 + 0.02 * jax.random.normal(rngs.params(), (channels,)))
        self.beta = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "batch h w c"], y: Int[Array, "batch"] | None) -> Float[Array, "batch h w c"]:
        return _normalize(x, self.gamma[None], self.alpha[None], self.beta[None])


class ConditionalInstanceNormPlus(nnx.Module):
    """Instance normalisation++ with one (gamma, alpha, beta) per noise level; `embed` holds them side by side."""

    def __init__(self, channels: int, num_levels: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(num_levels, 3 * channels, embedding_init=_embedding_init, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"], y: Int[Array, "batch"]) -> Float[Array, "batch h w c"]:
        return _normalize(x, *jnp.split(self.embed(y), 3, axis=-1))


def instance_norm_plus(
    channels: int, num_levels: int, *, rngs: nnx.Rngs
) -> InstanceNormPlus | ConditionalInstanceNormPlus:
    """The conditional normalisation, or the unconditional one for `num_levels=0`."""
    if num_levels:
        return ConditionalInstanceNormPlus(channels, num_levels, rngs=rngs)
    return InstanceNormPlus(channels, rngs=rngs)


class ResidualBlock(nnx.Module):
    """shortcut(x) + conv2(elu(norm2(conv1(elu(norm1(x)))))).

    A block that starts a level changes the channels in conv2 and has a convolution as shortcut; with `halve` mean
    pooling follows both. The others have an identity as shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_levels: int,
        *,
        new_level: bool = False,
        halve: bool = False,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ):
        self.halve = halve
        self.normalize1 = instance_norm_plus(in_channels, num_levels, rngs=rngs)
        self.conv1 = conv(in_channels, in_channels, dilation=dilation, rngs=rngs)
        self.normalize2 = instance_norm_plus(in_channels, num_levels, rngs=rngs)
        self.conv2 = conv(in_channels, out_channels, dilation=dilation, rngs=rngs)
        size = 1 if halve else 3
        self.shortcut = conv(in_channels, out_channels, size, dilation=dilation, rngs=rngs) if new_level else None

    def __call__(self, x: Float[Array, "batch h w c"], y: Int[Array, "batch"] | None) -> Float[Array, "batch h2 w2 d"]:
        h = self.conv1(jax.nn.elu(self.normalize1(x, y)))
        h = self.conv2(jax.nn.elu(self.normalize2(h, y)))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        return nnx.avg_pool(h, (2, 2), (2, 2)) if self.halve else h


class RCUBlock(nnx.Module):
    """Residual convolution units: `num_blocks` times x + conv(elu(conv(elu(x)))), conditionally normalised."""

    def __init__(self, channels: int, num_blocks: int, num_levels: int, *, rngs: nnx.Rngs):
        units = range(2 * num_blocks)
        self.norms = nnx.List(
            [ConditionalInstanceNormPlus(channels, num_levels, rngs=rngs) for _ in units if num_levels]
        )
        self.convs = nnx.List([conv(channels, channels, use_bias=False, rngs=rngs) for _ in units])

    def __call__(self, x: Float[Array, "batch h w c"], y: Int[Array, "batch"] | None) -> Float[Array, "batch h w c"]:
        for i in range(0, len(self.convs), 2):
            h = x
            for j in (i, i + 1):
                h = self.norms[j](h, y) if self.norms else h
                h = self.convs[j](jax.nn.elu(h))
            x = x + h
        return x


class MSFBlock(nnx.Module):
    """Multi-scale fusion: the sum of conv(x_i), each resized bilinearly to the size of the first."""

    def __init__(self, in_channels: list[int], out_channels: int, num_levels: int, *, rngs: nnx.Rngs):
        self.norms = nnx.List(
            [ConditionalInstanceNormPlus(c, num_levels, rngs=rngs) for c in in_channels if num_levels]
        )
        self.convs = nnx.List([conv(c, out_channels, rngs=rngs) for c in in_channels])

    def __call__(self, xs: list[Array], y: Int[Array, "batch"] | None) -> Float[Array, "batch h w d"]:
        height, width = xs[0].shape[1:3]
        total = 0.0
        for i, x in enumerate(xs):
            x = self.norms[i](x, y) if self.norms else x
            total = total + resize_bilinear(self.convs[i](x), height, width)
        return total


class CRPBlock(nnx.Module):
    """Chained residual pooling: h = elu(x); twice, path = conv(pool(path)) is added to h.

    The pool over 5 x 5 pixels is the maximum in NCSNv2, and the mean, after a normalisation, in the conditional NCSN.
    """

    def __init__(self, channels: int, num_levels: int, *, rngs: nnx.Rngs):
        self.norms = nnx.List(
            [ConditionalInstanceNormPlus(channels, num_levels, rngs=rngs) for _ in range(2) if num_levels]
        )
        self.convs = nnx.List([conv(channels, channels, use_bias=False, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Float[Array, "batch h w c"], y: Int[Array, "batch"] | None) -> Float[Array, "batch h w c"]:
        path = x = jax.nn.elu(x)
        for i in range(2):
            path = mean_pool_5x5(self.norms[i](path, y)) if self.norms else max_pool_5x5(path)
            path = self.convs[i](path)
            x = x + path
        return x


class RefineBlock(nnx.Module):
    """Adapt every input by residual units, fuse them, pool in a chain, and adapt the result (1611.06612, Figure 3)."""

    def __init__(self, in_channels: list[int], out_channels: int, num_levels: int, *, last: bool, rngs: nnx.Rngs):
        self.adapt_convs = nnx.List([RCUBlock(c, 2, num_levels, rngs=rngs) for c in in_channels])
        self.msf = MSFBlock(in_channels, out_channels, num_levels, rngs=rngs) if len(in_channels) > 1 else None
        self.crp = CRPBlock(out_channels, num_levels, rngs=rngs)
        self.output_convs = RCUBlock(out_channels, 3 if last else 1, num_levels, rngs=rngs)

    def __call__(self, xs: list[Array], y: Int[Array, "batch"] | None) -> Float[Array, "batch h w d"]:
        xs = [adapt(x, y) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        h = xs[0] if self.msf is None else self.msf(xs, y)
        return self.output_convs(self.crp(h, y), y)


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    dilation: int = 1,
    use_bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution that keeps the size; kernel and bias start from U(-a, a), a = 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(in_channels * kernel_size**2)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        kernel_dilation=dilation,
        padding="SAME",
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        rngs=rngs,
    )


def level_divisor(depth: str) -> int:
    """What the levels of a network of this `depth` divide the sides of an image by; ValueError if it is unknown."""
    check_choice("depth", depth, LEVELS)
    return 2 ** sum(halve for _, halve, _ in LEVELS[depth])


def max_pool_5x5(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
    """The maximum over 5 x 5 pixels, with stride 1; the border has fewer pixels."""
    return _combine_5x5(x, jnp.maximum, -jnp.inf)


def mean_pool_5x5(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
    """The mean over 5 x 5 pixels, with stride 1; pixels outside the image count as zeros."""
    return _combine_5x5(x, jnp.add, 0.0) / 25


def _combine_5x5(x: Array, combine: Callable[[Array, Array], Array], outside: float) -> Array:
    # Shifted slices: the gradient of XLA's windowed maximum takes ten times as long on CPU.
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(4)], constant_values=outside)
        x = functools.reduce(combine, [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(5)])
    return x


def resize_bilinear(
    x: Float[Array, "batch h w c"], height: int, width: int
) -> Float[Array, "batch {height} {width} c"]:
    """Bilinear interpolation that maps the centers of the corner pixels onto each other ("align corners")."""
    for axis, size in ((1, height), (2, width)):
        if x.shape[axis] != size:
            source = np.arange(x.shape[axis])
            position = np.linspace(0, x.shape[axis] - 1, size)
            weight = jnp.asarray(np.maximum(0, 1 - np.abs(position[:, None] - source)), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(weight, x, (1, axis)), 0, axis)
    return x


def _normalize(x: Array, gamma: Array, alpha: Array, beta: Array) -> Array:
    """The equation of `InstanceNormPlus` with coefficients [batch or 1, channels]; statistics in float32."""
    x32 = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
    gamma, alpha, beta = (a.astype(jnp.float32)[:, None] for a in (gamma, alpha, beta))
    mean, var = layers.moments(x32)
    relative = (mean - mean.mean(-1, keepdims=True)) * jax.lax.rsqrt(mean.var(-1, keepdims=True, ddof=1) + 1e-5)
    out = (x32 - mean) * (gamma * jax.lax.rsqrt(var + 1e-5)) + gamma * alpha * relative + beta
    return out.astype(x.dtype).reshape(x.shape)


def _embedding_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """gamma and alpha from N(1, 0.02^2), beta zero."""
    channels = shape[1] // 3
    normal = 1 + 0.02 * jax.random.normal(key, (shape[0], 2 * channels), dtype)
    return jnp.concatenate([normal, jnp.zeros((shape[0], channels), dtype)], -1)
