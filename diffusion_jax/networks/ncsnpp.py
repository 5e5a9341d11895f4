"""NCSN++ and DDPM++, the networks of score SDEs (arXiv:2011.13456)."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers, resample
from diffusion_jax.networks.attention import SelfAttention
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Embedded, check_choice


class NCSNpp(DenoisingNetwork):
    """NCSN++ (2011.13456, Appendix H): [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    A U-Net whose level i has `nf * ch_mult[i]` channels at resolution `image_size / 2^i`. The defaults are NCSN++ for
    CIFAR-10 (VE). DDPM++ (VP, sub-VP) is `fir=False, progressive_input="none", embedding="positional"`; "deep" is
    `num_res_blocks=8`. At 256 x 256 the paper takes `ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2,
    progressive="output_skip", progressive_input="input_skip"`. With `scale_by_sigma` the original divides the output by
    sigma; here that belongs to the parameterization.

    Args:
        image_size: height and width of x that the resolutions of attention refer to; the levels must divide those of x.
        in_channels: channels of x.
        out_channels: channels of the output; None: `in_channels`.
        nf: channels of the first level before its factor.
        ch_mult: one factor per level.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention; the middle always has it.
        dropout: rate, before the last convolution of each residual block.
        resamp_with_conv: whether resampling of "ddpm" blocks has a convolution.
        fir: resample with `fir_kernel` instead of repetition and averages.
        fir_kernel: taps of the filter along each axis.
        skip_rescale: divide every sum of a residual and a skip connection by sqrt(2).
        resblock_type: "biggan" (resampling inside residual blocks) or "ddpm" (between them).
        progressive: "none", or "output_skip": the output is a sum over levels, upsampled from the lowest.
        progressive_input: "none", or the downsampled x enters every level through a 1 x 1 convolution ("input_skip"),
            or as a chain of convolutions with residuals ("residual").
        progressive_combine: "sum" or "cat": how "input_skip" joins x and the activations.
        conditional: False drops the embedding of c_noise.
        embedding: "fourier" (c_noise is log sigma) or "positional" (c_noise is 999 t).
        fourier_scale: standard deviation of the Fourier frequencies.
        num_classes: of the condition "label"; 0 for an unconditional network, which ignores cond. `num_classes` is the
            null class, and that of cond=None.
        attention_implementation: see `attention.dot_product_attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if an option is unknown, `nf` is not a multiple of 4, `num_res_blocks` < 1, the levels do not divide
            the image's size, no level has a resolution with attention, or the groups of a normalisation do not
            divide its channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        nf: int = 128,
        ch_mult: tuple[int, ...] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        resamp_with_conv: bool = True,
        fir: bool = True,
        fir_kernel: tuple[float | int, ...] = resample.FIR_KERNEL,
        skip_rescale: bool = True,
        resblock_type: str = "biggan",
        progressive: str = "none",
        progressive_input: str = "residual",
        progressive_combine: str = "sum",
        conditional: bool = True,
        embedding: str = "fourier",
        fourier_scale: float = 16.0,
        num_classes: int = 0,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        check_choice("resblock_type", resblock_type, ("biggan", "ddpm"))
        check_choice("progressive", progressive, ("none", "output_skip"))
        check_choice("progressive_input", progressive_input, ("none", "input_skip", "residual"))
        check_choice("progressive_combine", progressive_combine, ("sum", "cat"))
        if nf < 4 or nf % 4:
            raise ValueError(f"nf={nf} must be a positive multiple of 4, the smallest number of channels per group.")
        if num_res_blocks < 1:
            raise ValueError(f"num_res_blocks={num_res_blocks} must be at least 1.")
        self.input_shape = (None, None, in_channels)
        self.divisor = 2 ** (len(ch_mult) - 1)
        self.conditions = Conditions(num_classes=num_classes)
        self.progressive = progressive
        self.progressive_input = progressive_input
        self.rescale = math.sqrt(0.5) if skip_rescale else 1.0
        self.fir_kernel = tuple(fir_kernel) if fir else None
        self.remat = remat
        resolutions = layers.level_resolutions(image_size, len(ch_mult), attn_resolutions, "attn_resolutions")
        out_channels = out_channels or in_channels
        emb_dim = 4 * nf if conditional or num_classes else 0

        def resnet(c_in: int, c_out: int, resampling: str = "none") -> ResnetBlock:
            return ResnetBlock(
                c_in,
                c_out,
                emb_dim,
                resampling=resampling,
                fir_kernel=self.fir_kernel,
                dropout=dropout,
                rescale=self.rescale,
                rngs=rngs,
            )

        def resampler(c: int, resampling: str) -> ResnetBlock | Resample:
            if resblock_type == "biggan":
                return resnet(c, c, resampling)
            return Resample(c, c, resampling, with_conv=resamp_with_conv, fir_kernel=self.fir_kernel, rngs=rngs)

        def attention(c: int, present: bool) -> SelfAttention | None:
            if not present:
                return None
            return SelfAttention(c, num_groups=num_groups(c), implementation=attention_implementation, rngs=rngs)

        def output(c: int) -> Output:
            return Output(c, out_channels, rngs=rngs)

        time_embedding = layers.TimeEmbedding(nf, 4 * nf, embedding=embedding, fourier_scale=fourier_scale, rngs=rngs)
        self.time_embedding = time_embedding if conditional else None
        self.class_embedding = nnx.Embed(num_classes + 1, 4 * nf, rngs=rngs) if num_classes else None
        self.conv_in = layers.conv(in_channels, nf, rngs=rngs)

        widths = [nf * mult for mult in ch_mult]
        skips = [nf]
        c = nf
        pyramid = in_channels
        down = []
        for level, (width, resolution) in enumerate(zip(widths, resolutions, strict=True)):
            blocks = []
            for _ in range(num_res_blocks):
                blocks.append(Stage(resnet(c, width), attention(width, resolution in attn_resolutions)))
                c = width
                skips.append(c)
            downsampler, combiner = None, None
            if level < len(widths) - 1:
                downsampler = resampler(c, "down")
                if progressive_input == "input_skip":
                    combiner = Combine(in_channels, c, progressive_combine, rngs=rngs)
                    c *= 2 if progressive_combine == "cat" else 1
                elif progressive_input == "residual":
                    combiner = Resample(pyramid, c, "down", with_conv=True, fir_kernel=self.fir_kernel, rngs=rngs)
                    pyramid = c
                skips.append(c)
            down.append(DownLevel(blocks, downsampler, combiner))
        self.down = nnx.List(down)

        self.mid = nnx.List([Stage(resnet(c, c), attention(c, True)), Stage(resnet(c, c), None)])

        up = []
        for level, (width, resolution) in reversed(list(enumerate(zip(widths, resolutions, strict=True)))):
            blocks = []
            for i in range(num_res_blocks + 1):
                attend = i == num_res_blocks and resolution in attn_resolutions
                blocks.append(Stage(resnet(c + skips.pop(), width), attention(width, attend)))
                c = width
            head = output(c) if progressive == "output_skip" else None
            up.append(UpLevel(blocks, head, resampler(c, "up") if level else None))
        self.up = nnx.List(up)
        self.output = output(c) if progressive == "none" else None

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        def call(block: nnx.Module, h: Array) -> Array:
            return layers.call_block(block, h, emb, rngs=rngs, remat=self.remat)

        parts = [] if self.time_embedding is None else [self.time_embedding(c_noise, x.dtype)]
        parts += [] if cond.vector is None else [cond.vector]
        emb = jax.nn.silu(sum(parts)) if parts else None
        h = self.conv_in(x)
        pyramid = x
        skips = [h]
        for level in self.down:
            for block in level.blocks:
                h = call(block, h)
                skips.append(h)
            if level.downsampler is not None:
                h = call(level.downsampler, h)
                if self.progressive_input == "input_skip":
                    pyramid = downsample(pyramid, self.fir_kernel)
                    h = level.combiner(pyramid, h)
                elif self.progressive_input == "residual":
                    h = pyramid = (level.combiner(pyramid) + h) * self.rescale
                skips.append(h)
        for block in self.mid:
            h = call(block, h)
        result = None
        for level in self.up:
            for block in level.blocks:
                h = call(block, jnp.concatenate([h, skips.pop()], -1))
            if level.output is not None:
                head = level.output(h)
                result = head if result is None else upsample(result, self.fir_kernel) + head
            if level.upsampler is not None:
                h = call(level.upsampler, h)
        return result if self.output is None else self.output(h)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self.class_embedding)


class ResnetBlock(nnx.Module):
    """(shortcut(r(x)) + conv2(drop(silu(norm2(conv1(r(silu(norm1(x)))) + proj(emb)))))) * rescale.

    r resamples by `resampling`, "none", "up" or "down", inside the block as in BigGAN (1809.11096). The shortcut is a
    1 x 1 convolution if the channels or the resolution change. emb is already activated; `emb_dim=0`: there is none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        *,
        resampling: str,
        fir_kernel: tuple[float | int, ...] | None,
        dropout: float,
        rescale: float,
        rngs: nnx.Rngs,
    ):
        self.resampling = resampling
        self.fir_kernel = fir_kernel
        self.dropout = dropout
        self.rescale = rescale
        self.norm1 = layers.GroupNorm(in_channels, num_groups=num_groups(in_channels))
        self.conv1 = layers.conv(in_channels, out_channels, rngs=rngs)
        self.time_emb_proj = layers.linear(emb_dim, out_channels, rngs=rngs) if emb_dim else None
        self.norm2 = layers.GroupNorm(out_channels, num_groups=num_groups(out_channels))
        self.conv2 = layers.conv(out_channels, out_channels, scale=0.0, rngs=rngs)
        same = in_channels == out_channels and resampling == "none"
        self.conv_shortcut = None if same else layers.conv(in_channels, out_channels, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch h w c"], emb: Float[Array, "batch emb"] | None, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch h2 w2 out"]:
        h = jax.nn.silu(self.norm1(x))
        if self.resampling != "none":
            change = upsample if self.resampling == "up" else downsample
            h, x = change(h, self.fir_kernel), change(x, self.fir_kernel)
        h = self.conv1(h)
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(emb)[:, None, None]
        h = self.conv2(layers.dropout(jax.nn.silu(self.norm2(h)), self.dropout, rngs))
        return (h + (x if self.conv_shortcut is None else self.conv_shortcut(x))) * self.rescale


class Stage(nnx.Module):
    """A residual block, followed by self-attention or nothing."""

    def __init__(self, resnet: ResnetBlock, attention: SelfAttention | None):
        self.resnet = resnet
        self.attention = attention

    def __call__(
        self, x: Float[Array, "batch h w c"], emb: Float[Array, "batch emb"] | None, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch h w out"]:
        h = self.resnet(x, emb, rngs=rngs)
        return h if self.attention is None else self.attention(h) * self.resnet.rescale


class Resample(nnx.Module):
    """Double ("up") or halve ("down") the resolution, with a 3 x 3 convolution or without.

    There is no filter if `fir_kernel` is None. emb and rngs are ignored, so that the module can replace a residual
    block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resampling: str,
        *,
        with_conv: bool,
        fir_kernel: tuple[float | int, ...] | None,
        rngs: nnx.Rngs,
    ):
        self.resampling = resampling
        self.fir_kernel = fir_kernel
        stride = 2 if resampling == "down" and fir_kernel is None else 1
        self.conv = layers.conv(in_channels, out_channels, stride=stride, rngs=rngs) if with_conv else None

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        emb: Float[Array, "batch emb"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h2 w2 out"]:
        up = self.resampling == "up"
        if self.conv is None:
            return upsample(x, self.fir_kernel) if up else downsample(x, self.fir_kernel)
        if self.fir_kernel is None:
            return self.conv(upsample(x, None) if up else x)
        change = resample.upsample_conv_2d if up else resample.conv_downsample_2d
        return change(x, self.conv.kernel[...], self.fir_kernel) + self.conv.bias[...]


class Combine(nnx.Module):
    """Join the downsampled input, after a 1 x 1 convolution, with the activations by "sum" or "cat"."""

    def __init__(self, in_channels: int, out_channels: int, method: str, *, rngs: nnx.Rngs):
        self.method = method
        self.conv = layers.conv(in_channels, out_channels, 1, rngs=rngs)

    def __call__(
        self, pyramid: Float[Array, "batch h w c"], h: Float[Array, "batch h w d"]
    ) -> Float[Array, "batch h w out"]:
        pyramid = self.conv(pyramid)
        return pyramid + h if self.method == "sum" else jnp.concatenate([pyramid, h], -1)


class Output(nnx.Module):
    """conv(silu(norm(h))), starting at zero."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.norm = layers.GroupNorm(in_channels, num_groups=num_groups(in_channels))
        self.conv = layers.conv(in_channels, out_channels, scale=0.0, rngs=rngs)

    def __call__(self, h: Float[Array, "batch h w c"]) -> Float[Array, "batch h w out"]:
        return self.conv(jax.nn.silu(self.norm(h)))


class DownLevel(nnx.Module):
    """The modules of one level of the encoder path; the last level has no downsampler."""

    def __init__(
        self, blocks: list[Stage], downsampler: ResnetBlock | Resample | None, combiner: Combine | Resample | None
    ):
        self.blocks = nnx.List(blocks)
        self.downsampler = downsampler
        self.combiner = combiner


class UpLevel(nnx.Module):
    """The modules of one level of the decoder path; the first level has no upsampler."""

    def __init__(self, blocks: list[Stage], output: Output | None, upsampler: ResnetBlock | Resample | None):
        self.blocks = nnx.List(blocks)
        self.output = output
        self.upsampler = upsampler


def upsample(
    x: Float[Array, "batch h w c"], fir_kernel: tuple[float | int, ...] | None
) -> Float[Array, "batch h2 w2 c"]:
    """Double the resolution, by repetition if there is no filter."""
    return layers.upsample_nearest(x) if fir_kernel is None else resample.upsample_2d(x, fir_kernel)


def downsample(
    x: Float[Array, "batch h w c"], fir_kernel: tuple[float | int, ...] | None
) -> Float[Array, "batch h2 w2 c"]:
    """Halve the resolution, by averages over 2 x 2 pixels if there is no filter."""
    return layers.average_2x2(x) if fir_kernel is None else resample.downsample_2d(x, fir_kernel)


def num_groups(channels: int) -> int:
    """At least 4 channels per group, at most 32 groups."""
    return min(channels // 4, 32)
