"""The blocks of EDM's networks, SongUNet and DhariwalUNet (arXiv:2206.00364, appendix F.2)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from diffusion_jax.networks import layers, ncsnpp
from diffusion_jax.networks.attention import fused_attention

Levels = list[tuple[int, int, bool]]  # channels, resolution, whether there is attention
Block = Callable[..., "UNetBlock"]
Aux = Callable[[int, int], dict[str, nnx.Module]]  # further modules of a level, from resolution, channels


def no_aux(res: int, c: int) -> dict[str, nnx.Module]:
    return {}


def encoder_modules(
    first: nnx.Module, c: int, levels: Levels, num_blocks: int, block: Block, aux: Aux = no_aux
) -> tuple[dict[str, nnx.Module], list[int]]:
    """The modules of the encoder path in their order, and the channels of each activation that the decoder reads.

    `first` has c channels in its output. The caller keeps the names, since a module does not know the order of its
    parts.
    """
    size = levels[0][1]
    enc, skips = {f"{size}x{size}_conv": first}, [c]
    for width, res, attends in levels:
        if res != size:
            enc[f"{res}x{res}_down"] = block(c, c, resampling="down")
            enc |= aux(res, c)
            skips.append(c)
        for i in range(num_blocks):
            enc[f"{res}x{res}_block{i}"] = block(c, width, attends=attends)
            c = width
            skips.append(c)
    return enc, skips


def decoder_modules(
    levels: Levels,
    num_blocks: int,
    skips: list[int],
    block: Block,
    aux: Aux = no_aux,
    *,
    last_attends_alone: bool = False,
) -> dict[str, nnx.Module]:
    """The modules of the middle and the decoder path in their order.

    Those called "block" read one activation of the encoder each.
    """
    c, lowest = levels[-1][:2]
    dec = {}
    for width, res, attends in reversed(levels):
        if res == lowest:
            dec[f"{res}x{res}_in0"] = block(c, c, attends=True)
            dec[f"{res}x{res}_in1"] = block(c, c)
        else:
            dec[f"{res}x{res}_up"] = block(c, c, resampling="up")
        for i in range(num_blocks + 1):
            here = attends and (i == num_blocks or not last_attends_alone)
            dec[f"{res}x{res}_block{i}"] = block(c + skips.pop(), width, attends=here)
            c = width
        dec |= aux(res, c)
    return dec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
    """The initialiser of a kernel, and of a bias: uniform up to `bias` / sqrt(number of inputs)."""

    kernel: nnx.Initializer
    bias: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """What differs between the blocks of the two families.

    Attributes:
        init, init_zero, init_attn: initial values in general, of the last layer of a residual branch, and of qkv.
        epsilon: of every normalisation.
        skip_scale: factor of every sum of a residual branch and its input.
        adaptive_scale: whether the embedding scales and shifts normalised activations, or is added before.
        resample_proj: whether every block that changes the resolution has a 1 x 1 convolution in its skip connection.
        resample_filter: taps of the filter along each axis.
    """

    init: Init
    init_zero: Init
    init_attn: Init
    epsilon: float
    skip_scale: float
    adaptive_scale: bool
    resample_proj: bool
    resample_filter: tuple[float | int, ...] = (1, 1)


SONG = Style(
    init=Init(kernel=layers.fan_avg_uniform()),
    init_zero=Init(kernel=layers.fan_avg_uniform(1e-10)),  # 1e-5 times the others
    init_attn=Init(kernel=layers.fan_avg_uniform(0.2)),
    epsilon=1e-6,
    skip_scale=math.sqrt(0.5),
    adaptive_scale=False,
    resample_proj=True,
)
_TORCH = Init(kernel=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), bias=1.0)  # PyTorch's default
DHARIWAL = Style(
    init=_TORCH,
    init_zero=Init(kernel=nnx.initializers.zeros_init()),
    init_attn=_TORCH,
    epsilon=1e-5,
    skip_scale=1.0,
    adaptive_scale=True,
    resample_proj=False,
)


class UNetBlock(nnx.Module):
    """Residual block: h = (skip(r(x)) + conv1(silu(norm1(conv0(r(silu(norm0(x)))) + affine(emb)))) s.

    With `adaptive_scale` affine(emb) scales and shifts the output of norm1 instead. Attention follows where there are
    heads: (h + proj(attention(qkv(norm2(h))))) s. r resamples by `resampling`, "none", "up" or "down"; s is
    `skip_scale`; emb is already activated.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        style: Style,
        *,
        resampling: str,
        num_heads: int,
        dropout: float,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        self.style = style
        self.resampling = resampling
        self.num_heads = num_heads
        self.dropout = dropout
        self.implementation = implementation
        self.norm0 = norm(in_channels, style.epsilon)
        self.conv0 = conv(in_channels, out_channels, 3, style.init, rngs)
        self.affine = dense(emb_channels, out_channels * (2 if style.adaptive_scale else 1), style.init, rngs)
        self.norm1 = norm(out_channels, style.epsilon)
        self.conv1 = conv(out_channels, out_channels, 3, style.init_zero, rngs)
        projects = in_channels != out_channels or (resampling != "none" and style.resample_proj)
        self.skip = conv(in_channels, out_channels, 1, style.init, rngs) if projects else None
        self.norm2 = norm(out_channels, style.epsilon) if num_heads else None
        self.qkv = dense(out_channels, 3 * out_channels, style.init_attn, rngs) if num_heads else None
        self.proj = dense(out_channels, out_channels, style.init_zero, rngs) if num_heads else None

    def __call__(
        self, x: Float[Array, "batch h w c"], emb: Float[Array, "batch emb"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch h2 w2 out"]:
        h, x = (
            resampled(part, self.resampling, self.style.resample_filter) for part in (jax.nn.silu(self.norm0(x)), x)
        )
        h, shift = self.conv0(h), self.affine(emb)[:, None, None]
        if self.style.adaptive_scale:
            scale, shift = jnp.split(shift, 2, -1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + shift)
        h = self.conv1(layers.dropout(jax.nn.silu(h), self.dropout, rngs))
        h = (h + (x if self.skip is None else self.skip(x))) * self.style.skip_scale
        if not self.num_heads:
            return h
        qkv = self.qkv(self.norm2(h).reshape(h.shape[0], -1, h.shape[-1]))
        attended = fused_attention(qkv, self.num_heads, "hc3", self.implementation)
        return (h + self.proj(attended).reshape(h.shape)) * self.style.skip_scale


def resampled(
    x: Float[Array, "batch h w c"], resampling: str, taps: tuple[float | int, ...]
) -> Float[Array, "batch h2 w2 c"]:
    """x with twice ("up"), half ("down") or the same resolution ("none")."""
    if resampling == "none":
        return x
    taps = None if taps == (1, 1) else taps  # (1, 1) is repetition, or averages
    return ncsnpp.upsample(x, taps) if resampling == "up" else ncsnpp.downsample(x, taps)


def conv(in_channels: int, out_channels: int, size: int, init: Init, rngs: nnx.Rngs) -> nnx.Conv:
    bias = _symmetric(init.bias / math.sqrt(in_channels * size**2))
    return nnx.Conv(in_channels, out_channels, (size, size), kernel_init=init.kernel, bias_init=bias, rngs=rngs)


def dense(in_features: int, out_features: int, init: Init, rngs: nnx.Rngs) -> nnx.Linear:
    bias = _symmetric(init.bias / math.sqrt(in_features))
    return nnx.Linear(in_features, out_features, kernel_init=init.kernel, bias_init=bias, rngs=rngs)


def norm(channels: int, epsilon: float) -> layers.GroupNorm:
    return layers.GroupNorm(channels, num_groups=ncsnpp.num_groups(channels), epsilon=epsilon)


def _symmetric(limit: float) -> nnx.Initializer:
    """U(-limit, limit)."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init
