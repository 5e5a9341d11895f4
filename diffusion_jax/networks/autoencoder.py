"""The convolutional encoder and decoder that first stages share (arXiv:2012.09841, arXiv:2112.10752)."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.unet import Downsample, ResnetBlock, Upsample


class Encoder(nnx.Module):
    """[batch, h, w, in_channels] -> [batch, h / f, w / f, out_channels] with f = 2^(levels - 1).

    Attribute names and arguments are those of diffusers' Encoder. `attention_levels` counts from the full resolution:
    every residual block of these levels is followed by self-attention.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        norm_num_groups: int,
        attention_levels: tuple[int, ...],
        mid_block_add_attention: bool,
        rngs: nnx.Rngs,
    ):
        self.conv_in = layers.conv(in_channels, block_out_channels[0], rngs=rngs)
        options = dict(norm_num_groups=norm_num_groups, rngs=rngs)
        before = (block_out_channels[0], *block_out_channels)
        self.down_blocks = nnx.List(
            Level(
                before[i],
                width,
                num_layers=layers_per_block,
                attention=i in attention_levels,
                down=i + 1 < len(block_out_channels),
                **options,
            )
            for i, width in enumerate(block_out_channels)
        )
        self.mid_block = MidBlock(block_out_channels[-1], attention=mid_block_add_attention, **options)
        self.conv_norm_out = layers.GroupNorm(block_out_channels[-1], num_groups=norm_num_groups)
        self.conv_out = layers.conv(block_out_channels[-1], out_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 out"]:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nnx.Module):
    """[batch, h, w, in_channels] -> [batch, f h, f w, out_channels], the mirror of `Encoder`.

    The arguments are those of the `Encoder` that it belongs to; it has one more residual block per level.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        norm_num_groups: int,
        attention_levels: tuple[int, ...],
        mid_block_add_attention: bool,
        rngs: nnx.Rngs,
    ):
        widths = block_out_channels[::-1]
        self.conv_in = layers.conv(in_channels, widths[0], rngs=rngs)
        options = dict(norm_num_groups=norm_num_groups, rngs=rngs)
        self.mid_block = MidBlock(widths[0], attention=mid_block_add_attention, **options)
        before = (widths[0], *widths)
        self.up_blocks = nnx.List(
            Level(
                before[i],
                width,
                num_layers=layers_per_block + 1,
                attention=len(widths) - 1 - i in attention_levels,
                up=i + 1 < len(widths),
                **options,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = layers.GroupNorm(widths[-1], num_groups=norm_num_groups)
        self.conv_out = layers.conv(widths[-1], out_channels, rngs=rngs)

    def __call__(self, z: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 out"]:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))


class Level(nnx.Module):
    """Residual blocks at one resolution, each followed by self-attention with `attention`; then half or twice of it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        norm_num_groups: int,
        attention: bool,
        down: bool = False,
        up: bool = False,
        rngs: nnx.Rngs,
    ):
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nnx.List(_resnet(c, out_channels, norm_num_groups, rngs) for c in inputs)
        self.attentions = nnx.List(
            layers.SelfAttention(out_channels, num_groups=norm_num_groups, rngs=rngs) for _ in inputs if attention
        )
        self.downsamplers = nnx.List([Downsample(out_channels, with_conv=True, rngs=rngs)] if down else [])
        self.upsamplers = nnx.List([Upsample(out_channels, with_conv=True, rngs=rngs)] if up else [])

    def __call__(self, h: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 out"]:
        for i, resnet in enumerate(self.resnets):
            h = resnet(h)
            if self.attentions:
                h = self.attentions[i](h)
        for resample in (*self.downsamplers, *self.upsamplers):
            h = resample(h)
        return h


class MidBlock(nnx.Module):
    """Residual block, attention or none, residual block at the lowest resolution."""

    def __init__(self, channels: int, *, norm_num_groups: int, attention: bool, rngs: nnx.Rngs):
        self.resnets = nnx.List(_resnet(channels, channels, norm_num_groups, rngs) for _ in range(2))
        self.attentions = nnx.List(
            [layers.SelfAttention(channels, num_groups=norm_num_groups, rngs=rngs)] if attention else []
        )

    def __call__(self, h: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        h = self.resnets[0](h)
        for attention in self.attentions:
            h = attention(h)
        return self.resnets[1](h)


def check_arguments(
    image_size: int | None,
    block_out_channels: tuple[int, ...],
    layers_per_block: int,
    latent_channels: int,
    attention_levels: tuple[int, ...],
) -> int:
    """The factor f = 2^(levels - 1) between the sides of an image and of its latent.

    Raises:
        ValueError: a size is not positive, a level is none of the network, or f does not divide `image_size`.
    """
    if not block_out_channels or min(*block_out_channels, layers_per_block, latent_channels) < 1:
        raise ValueError(f"{block_out_channels=}, {layers_per_block=}, {latent_channels=}: all must be at least 1.")
    if not set(attention_levels) <= set(range(len(block_out_channels))):
        raise ValueError(
            f"attention_levels={attention_levels} must be among the levels 0..{len(block_out_channels) - 1}, one for "
            f"each of block_out_channels={block_out_channels}."
        )
    factor = 2 ** (len(block_out_channels) - 1)
    if image_size is not None:
        layers.check_divides("image_size", image_size, factor)
    return factor


def _resnet(in_channels: int, out_channels: int, num_groups: int, rngs: nnx.Rngs) -> ResnetBlock:
    return ResnetBlock(in_channels, out_channels, None, num_groups=num_groups, dropout=0.0, rngs=rngs)
