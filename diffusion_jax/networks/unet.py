"""The U-Net of DDPM (arXiv:2006.11239), with conditioning of any kind."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import SelfAttention, head_count
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditioning import CrossAttention, TokenEncoder, VectorEmbedding
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Embedded, check_choice

Context = tuple[Array, Array | None] | None  # what cross-attention attends to, and its mask


class UNet(DenoisingNetwork):
    """The U-Net of DDPM (arXiv:2006.11239, appendix B): [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    Level i has `channels * channel_mult[i]` channels at resolution `image_size / 2^i`. Attention follows the residual
    blocks of the levels named in `attention_resolutions`, and the first one of the middle. The output convolution and
    the last layer of every residual branch start at zero. Attribute names follow UNet2DModel of diffusers. CIFAR-10's
    network of the paper has 35.7 M parameters: `channels=128, channel_mult=(1, 2, 2, 2), attention_resolutions=(16,)`.
    Unconditional latent diffusion (arXiv:2112.10752) has `norm_eps=1e-5, downsample_padding=1, flip_sin_to_cos=True,
    freq_shift=0.0`, as have networks that diffusers makes without further options.

    See `Conditions` for what each condition is. Labels and vectors are added to the embedding of c_noise, tokens are
    read by cross-attention after every self-attention, and an image, of the same size as x, is concatenated to x.

    Args:
        image_size: height and width of x that the resolutions of attention refer to; the levels must divide those of x.
        in_channels: channels of x.
        out_channels: channels of the output; None: `in_channels`.
        channels: channels of the first level.
        channel_mult: one factor per level; the products are rounded to whole numbers of channels.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: resolutions with self-attention.
        mid_block_add_attention: whether the middle has attention.
        num_heads: attention heads if `head_dim` is None.
        head_dim: channels per head; decides the number of heads if given.
        num_groups: groups of every GroupNorm.
        norm_eps: their epsilon.
        dropout: rate, before the last convolution of each residual block.
        resample_with_conv: whether a convolution follows nearest upsampling and replaces average pooling.
        embedding: "positional" (c_noise is a timestep in 0..999) or "fourier" (c_noise is log sigma, say).
        fourier_scale: standard deviation of the Fourier frequencies.
        flip_sin_to_cos: of the positional embedding, see `layers.sinusoidal_embedding`.
        freq_shift: likewise, its `downscale_freq_shift`.
        downsample_padding: of the convolutions that halve the resolution: 0 pads the bottom and the right, 1 all sides.
        kernel_init: of kernels: "fan_avg" as in DDPM, or "fan_in" (LeCun normal) as in VDM (arXiv:2107.00630).
        residual_input: add x to the output, the base measure of VDM: its first `out_channels`.
        zero_emb: the projections of the embedding in the residual blocks have no bias and start at zero, as in VDM.
        num_classes: of the condition "label"; 0 for none. A network without conditions ignores cond; one with
            conditions takes cond=None as the null condition.
        vector_dim: of the condition "vector"; 0 for none.
        token_dim: width of the condition "tokens", or of their encoding if there is a `vocabulary`; 0 for none.
        vocabulary: number of ids of "tokens", which a transformer encodes; 0 if they are vectors with a "mask".
        max_tokens: length of "tokens".
        pool_tokens: whether their mean is also added to the embedding of c_noise, as the whole text in GLIDE
            (arXiv:2112.10741, section 4).
        image_channels: of the condition "image"; 0 for none.
        attention_implementation: see `attention.dot_product_attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if the levels do not divide the image's size, no level has a resolution with attention,
            the groups or heads do not divide the channels, or there are no tokens to pool.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        channels: int = 128,
        channel_mult: tuple[float | int, ...] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (16,),
        mid_block_add_attention: bool = True,
        num_heads: int = 1,
        head_dim: int | None = None,
        num_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        resample_with_conv: bool = True,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        flip_sin_to_cos: bool = False,
        freq_shift: float = 1.0,
        downsample_padding: int = 0,
        kernel_init: str = "fan_avg",
        residual_input: bool = False,
        zero_emb: bool = False,
        num_classes: int = 0,
        vector_dim: int = 0,
        token_dim: int = 0,
        vocabulary: int = 0,
        max_tokens: int = 0,
        pool_tokens: bool = False,
        image_channels: int = 0,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.input_shape = (None, None, in_channels)
        self.divisor = 2 ** (len(channel_mult) - 1)
        self.conditions = Conditions(
            num_classes=num_classes,
            vector_dim=vector_dim,
            token_dim=token_dim,
            vocabulary=vocabulary,
            max_tokens=max_tokens,
            image_shape=(image_size, image_size, image_channels) if image_channels else (),
        )
        self.remat = remat
        check_choice("kernel_init", kernel_init, layers.KERNEL_INITS)
        self.residual_channels = (out_channels or in_channels) if residual_input else 0
        if self.residual_channels > in_channels:
            raise ValueError(
                f"residual_input=True needs at least out_channels={out_channels} channels of x, not {in_channels}."
            )
        resolutions = layers.level_resolutions(
            image_size, len(channel_mult), attention_resolutions, "attention_resolutions"
        )

        def resnet(c_in: int, c_out: int) -> ResnetBlock:
            options = dict(
                num_groups=num_groups, dropout=dropout, epsilon=norm_eps, zero_emb=zero_emb, init=kernel_init
            )
            return ResnetBlock(c_in, c_out, 4 * channels, **options, rngs=rngs)

        def heads(c: int) -> int:
            return head_count(c, num_heads, head_dim, "head_dim")

        def attention(c: int) -> SelfAttention:
            return SelfAttention(
                c,
                num_heads=heads(c),
                num_groups=num_groups,
                epsilon=norm_eps,
                init=kernel_init,
                implementation=attention_implementation,
                rngs=rngs,
            )

        def cross_attention(c: int) -> CrossAttention:
            norm = layers.GroupNorm(c, num_groups=num_groups, epsilon=norm_eps)
            return CrossAttention(c, token_dim, num_heads=heads(c), norm=norm, rngs=rngs)

        def attentions(c: int, count: int) -> tuple[list[SelfAttention], list[CrossAttention]]:
            return [attention(c) for _ in range(count)], [cross_attention(c) for _ in range(count if token_dim else 0)]

        self.time_embedding = layers.TimeEmbedding(
            channels,
            4 * channels,
            embedding=embedding,
            fourier_scale=fourier_scale,
            flip_sin_to_cos=flip_sin_to_cos,
            downscale_freq_shift=freq_shift,
            init=kernel_init,
            rngs=rngs,
        )
        self.class_embedding = nnx.Embed(num_classes + 1, 4 * channels, rngs=rngs) if num_classes else None
        self.add_embedding = VectorEmbedding(vector_dim, 4 * channels, rngs=rngs) if vector_dim else None
        self.token_encoder = TokenEncoder(vocabulary, max_tokens, token_dim, rngs=rngs) if vocabulary else None
        if pool_tokens and not token_dim:
            raise ValueError("pool_tokens needs tokens, of a width token_dim.")
        self.token_pool = layers.linear(token_dim, 4 * channels, rngs=rngs) if pool_tokens else None
        self.conv_in = layers.conv(in_channels + image_channels, channels, init=kernel_init, rngs=rngs)

        if downsample_padding not in (0, 1):
            raise ValueError(f"downsample_padding={downsample_padding} must be 0 or 1.")
        resample = dict(with_conv=resample_with_conv, init=kernel_init)
        downsample = dict(**resample, padding="SAME" if downsample_padding == 0 else 1)
        widths = [round(channels * mult) for mult in channel_mult]
        skips = [channels]
        c = channels
        down_blocks = []
        for width, resolution in zip(widths, resolutions, strict=True):
            c_in = [c] + [width] * (num_res_blocks - 1)
            last = resolution == resolutions[-1]
            down_blocks.append(
                DownBlock(
                    [resnet(n, width) for n in c_in],
                    *attentions(width, len(c_in) if resolution in attention_resolutions else 0),
                    downsamplers=[] if last else [Downsample(width, **downsample, rngs=rngs)],
                )
            )
            skips += [width] * (num_res_blocks + (not last))
            c = width
        self.down_blocks = nnx.List(down_blocks)
        self.mid_block = MidBlock([resnet(c, c), resnet(c, c)], *attentions(c, int(mid_block_add_attention)))

        up_blocks = []
        for width, resolution in zip(widths[::-1], resolutions[::-1], strict=True):
            c_in = [n + skips.pop() for n in [c] + [width] * num_res_blocks]
            last = resolution == resolutions[0]
            up_blocks.append(
                UpBlock(
                    [resnet(n, width) for n in c_in],
                    *attentions(width, len(c_in) if resolution in attention_resolutions else 0),
                    upsamplers=[] if last else [Upsample(width, **resample, rngs=rngs)],
                )
            )
            c = width
        self.up_blocks = nnx.List(up_blocks)
        self.conv_norm_out = layers.GroupNorm(c, num_groups=num_groups, epsilon=norm_eps)
        self.conv_out = layers.conv(c, out_channels or in_channels, scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        h = self.activations(x, c_noise, cond, rngs=rngs)[-1]
        out = self.conv_out(jax.nn.silu(self.conv_norm_out(h)))
        return out + x[..., : self.residual_channels] if self.residual_channels else out

    def activations(
        self, x: Float[Array, "batch h w c"], c_noise: Float[Array, "batch"], cond: Embedded, *, rngs: nnx.Rngs | None
    ) -> list[Float[Array, "batch _ _ _"]]:
        """The outputs of the levels of the decoder path, in their order."""
        emb = self.time_embedding(c_noise, x.dtype)
        emb = jax.nn.silu(emb if cond.vector is None else emb + cond.vector)
        context = None if cond.context is None else (cond.context, cond.mask)

        h = self.conv_in(x if cond.image is None else jnp.concatenate([x, cond.image.astype(x.dtype)], -1))
        skips = [h]
        for block in self.down_blocks:
            h, new = layers.call_block(block, h, emb, context, rngs=rngs, remat=self.remat)
            skips += new
        h = layers.call_block(self.mid_block, h, emb, context, rngs=rngs, remat=self.remat)
        decoded = []
        for block in self.up_blocks:
            used = [skips.pop() for _ in block.resnets]
            h = layers.call_block(block, h, used, emb, context, rngs=rngs, remat=self.remat)
            decoded.append(h)
        return decoded

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        readers = dict(label=self.class_embedding, vector=self.add_embedding, tokens=self.token_encoder)
        return readers | dict(pool=self.token_pool)


class ResnetBlock(nnx.Module):
    """Residual block: x + conv2(drop(silu(norm2(conv1(silu(norm1(x))) + proj(emb))))), emb already activated.

    With `emb_dim=None` there is no emb, as in autoencoders; with `zero_emb` proj has no bias and starts at zero. `init`
    is that of the kernels, see `layers.conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int | None,
        *,
        num_groups: int,
        dropout: float,
        epsilon: float = 1e-6,
        zero_emb: bool = False,
        init: str = "fan_avg",
        rngs: nnx.Rngs,
    ):
        self.dropout = dropout
        self.norm1 = layers.GroupNorm(in_channels, num_groups=num_groups, epsilon=epsilon)
        self.conv1 = layers.conv(in_channels, out_channels, init=init, rngs=rngs)
        options = dict(scale=0.0, use_bias=False) if zero_emb else dict(init=init)
        self.time_emb_proj = None if emb_dim is None else layers.linear(emb_dim, out_channels, **options, rngs=rngs)
        self.norm2 = layers.GroupNorm(out_channels, num_groups=num_groups, epsilon=epsilon)
        self.conv2 = layers.conv(out_channels, out_channels, scale=0.0, rngs=rngs)
        same = in_channels == out_channels
        self.conv_shortcut = None if same else layers.conv(in_channels, out_channels, 1, init=init, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        emb: Float[Array, "batch emb"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(emb)[:, None, None, :]
        h = self.conv2(layers.dropout(jax.nn.silu(self.norm2(h)), self.dropout, rngs))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nnx.Module):
    """Halve the resolution, by a convolution of stride 2 (see `layers.conv` for its padding) or by average pooling."""

    def __init__(
        self, channels: int, *, with_conv: bool, padding: str | int = "SAME", init: str = "fan_avg", rngs: nnx.Rngs
    ):
        options = dict(stride=2, padding=padding, init=init)
        self.conv = layers.conv(channels, channels, **options, rngs=rngs) if with_conv else None

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
        return layers.average_2x2(x) if self.conv is None else self.conv(x)


class Upsample(nnx.Module):
    """Double the resolution by repetition, with or without a convolution after it."""

    def __init__(self, channels: int, *, with_conv: bool, init: str = "fan_avg", rngs: nnx.Rngs):
        self.conv = layers.conv(channels, channels, init=init, rngs=rngs) if with_conv else None

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
        x = layers.upsample_nearest(x)
        return x if self.conv is None else self.conv(x)


class Stage(nnx.Module):
    """Residual blocks at one resolution, each followed by attention to itself and to the context, where there is any.

    Args:
        resnets: the residual blocks.
        attentions: one for each of them, or none.
        cross_attentions: likewise, to the context.
    """

    def __init__(
        self,
        resnets: Sequence[ResnetBlock],
        attentions: Sequence[SelfAttention],
        cross_attentions: Sequence[nnx.Module],
    ):
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List(attentions)
        self.cross_attentions = nnx.List(cross_attentions)

    def apply_block(
        self,
        i: int,
        h: Float[Array, "batch h w c"],
        emb: Float[Array, "batch emb"],
        context: Context,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "batch h w d"]:
        """h after residual block i and the attention that follows it."""
        h = self.resnets[i](h, emb, rngs=rngs)
        h = self.attentions[i](h) if self.attentions else h
        return self.cross_attentions[i](h, *context) if self.cross_attentions else h


class DownBlock(Stage):
    """One level of the encoder; returns its output and all activations that the decoder will read.

    `parts` are the arguments of `Stage`.
    """

    def __init__(self, *parts: Sequence[nnx.Module], downsamplers: Sequence[Downsample]):
        super().__init__(*parts)
        self.downsamplers = nnx.List(downsamplers)

    def __call__(
        self,
        h: Float[Array, "batch h w c"],
        emb: Float[Array, "batch emb"],
        context: Context = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "batch h2 w2 c2"], list[Array]]:
        skips = []
        for i in range(len(self.resnets)):
            h = self.apply_block(i, h, emb, context, rngs)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h)
            skips.append(h)
        return h, skips


class MidBlock(Stage):
    """Residual block, attention, residual block at the lowest resolution."""

    def __call__(
        self,
        h: Float[Array, "batch h w c"],
        emb: Float[Array, "batch emb"],
        context: Context = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w c"]:
        h = self.apply_block(0, h, emb, context, rngs)
        return self.resnets[1](h, emb, rngs=rngs)


class UpBlock(Stage):
    """One level of the decoder; each residual block reads one activation of the encoder, latest first.

    `parts` are the arguments of `Stage`.
    """

    def __init__(self, *parts: Sequence[nnx.Module], upsamplers: Sequence[Upsample]):
        super().__init__(*parts)
        self.upsamplers = nnx.List(upsamplers)

    def __call__(
        self,
        h: Float[Array, "batch h w c"],
        skips: list[Array],
        emb: Float[Array, "batch emb"],
        context: Context = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h2 w2 c2"]:
        for i in range(len(self.resnets)):
            h = self.apply_block(i, jnp.concatenate([h, skips[i]], -1), emb, context, rngs)
        for upsample in self.upsamplers:
            h = upsample(h)
        return h
