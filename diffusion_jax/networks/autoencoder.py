"""The convolutional encoder and decoder that first stages share (arXiv:2012.09841, arXiv:2112.10752)."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import SelfAttention
from diffusion_jax.networks.unet import Downsample, ResnetBlock, Upsample


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """Arguments of both `AutoencoderKL` and `VQModel`, named as in diffusers.

    Attributes:
        image_size: side of the images; None takes any that `factor` divides.
        in_channels: channels of x.
        out_channels: channels of the output; None: `in_channels`.
        block_out_channels: channels of each level, from the full resolution on.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels of the latent.
        norm_num_groups: groups of every GroupNorm.
        attention_levels: levels with self-attention after each residual block, 0 being the full resolution.
        mid_block_add_attention: whether there is self-attention at the lowest resolution.

    Raises:
        ValueError: a size that is not positive, a level that does not exist, or an image that `factor` does not divide.
    """

    image_size: int | None = None
    in_channels: int = 3
    out_channels: int | None = None
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    attention_levels: tuple[int, ...] = ()
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        widths, layers_per_block, latent_channels = self.block_out_channels, self.layers_per_block, self.latent_channels
        if not widths or min(*widths, layers_per_block, latent_channels) < 1:
            raise ValueError(
                f"block_out_channels={widths}, {layers_per_block=}, {latent_channels=}: all must be at least 1."
            )
        if not set(self.attention_levels) <= set(range(len(widths))):
            raise ValueError(
                f"attention_levels={self.attention_levels} must be among the levels 0..{len(widths) - 1}, one for each "
                f"of block_out_channels={widths}."
            )
        if self.image_size is not None:
            layers.check_divides("image_size", self.image_size, self.factor)

    @property
    def factor(self) -> int:
        """f = 2^(levels - 1), the ratio of the sides of an image and of its latent."""
        return 2 ** (len(self.block_out_channels) - 1)

    def encoder(self, out_channels: int, *, rngs: nnx.Rngs) -> Encoder:
        """The encoder of images, with `out_channels` of its output."""
        return Encoder(self, self.in_channels, out_channels, rngs=rngs)

    def decoder(self, *, rngs: nnx.Rngs) -> Decoder:
        """The decoder of latents."""
        return Decoder(self, self.latent_channels, self.out_channels or self.in_channels, rngs=rngs)


class Encoder(nnx.Module):
    """[batch, h, w, in_channels] -> [batch, h / f, w / f, out_channels] with f = 2^(levels - 1).

    Attribute names are those of diffusers' Encoder.
    """

    def __init__(self, spec: AutoencoderSpec, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.conv_in = layers.conv(in_channels, spec.block_out_channels[0], rngs=rngs)
        options = dict(norm_num_groups=spec.norm_num_groups, rngs=rngs)
        before = (spec.block_out_channels[0], *spec.block_out_channels)
        self.down_blocks = nnx.List(
            Level(
                before[i],
                width,
                num_layers=spec.layers_per_block,
                attention=i in spec.attention_levels,
                down=i + 1 < len(spec.block_out_channels),
                **options,
            )
            for i, width in enumerate(spec.block_out_channels)
        )
        self.mid_block = MidBlock(spec.block_out_channels[-1], attention=spec.mid_block_add_attention, **options)
        self.conv_norm_out = layers.GroupNorm(spec.block_out_channels[-1], num_groups=spec.norm_num_groups)
        self.conv_out = layers.conv(spec.block_out_channels[-1], out_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 out"]:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nnx.Module):
    """[batch, h, w, in_channels] -> [batch, f h, f w, out_channels], the mirror of `Encoder`.

    It has one more residual block per level.
    """

    def __init__(self, spec: AutoencoderSpec, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        widths = spec.block_out_channels[::-1]
        self.conv_in = layers.conv(in_channels, widths[0], rngs=rngs)
        options = dict(norm_num_groups=spec.norm_num_groups, rngs=rngs)
        self.mid_block = MidBlock(widths[0], attention=spec.mid_block_add_attention, **options)
        before = (widths[0], *widths)
        self.up_blocks = nnx.List(
            Level(
                before[i],
                width,
                num_layers=spec.layers_per_block + 1,
                attention=len(widths) - 1 - i in spec.attention_levels,
                up=i + 1 < len(widths),
                **options,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = layers.GroupNorm(widths[-1], num_groups=spec.norm_num_groups)
        self.conv_out = layers.conv(widths[-1], out_channels, rngs=rngs)

    def __call__(self, z: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 out"]:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))


class Level(nnx.Module):
    """Residual blocks at one resolution, with self-attention after each if `attention`, then a change of resolution."""

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
            SelfAttention(out_channels, num_groups=norm_num_groups, rngs=rngs) for _ in inputs if attention
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
    """Residual block, optional attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, *, norm_num_groups: int, attention: bool, rngs: nnx.Rngs):
        self.resnets = nnx.List(_resnet(channels, channels, norm_num_groups, rngs) for _ in range(2))
        self.attentions = nnx.List(
            [SelfAttention(channels, num_groups=norm_num_groups, rngs=rngs)] if attention else []
        )

    def __call__(self, h: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        h = self.resnets[0](h)
        for attention in self.attentions:
            h = attention(h)
        return self.resnets[1](h)


def _resnet(in_channels: int, out_channels: int, num_groups: int, rngs: nnx.Rngs) -> ResnetBlock:
    return ResnetBlock(in_channels, out_channels, None, num_groups=num_groups, dropout=0.0, rngs=rngs)
