"""The networks of EDM (arXiv:2206.00364, appendix F.2): those of score SDEs, and that of ADM."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import layers, ncsnpp
from diffusion_jax.networks.attention import head_count
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.edm_blocks import (
    DHARIWAL,
    SONG,
    UNetBlock,
    conv,
    decoder_modules,
    dense,
    encoder_modules,
    norm,
    resampled,
)
from diffusion_jax.types import Cond, Embedded, check_choice


class SongUNet(DenoisingNetwork):
    """DDPM++ and NCSN++ as EDM trains them: [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    The networks of `ncsnpp.NCSNpp` (arXiv:2011.13456) with other initial values, and with labels that are added to the
    embedding of c_noise. Attribute names are those of the authors' SongUNet. The defaults are DDPM++ for 64 x 64;
    NCSN++ is `embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=(1, 3, 3, 1)`.
    At 32 x 32 the paper takes `channel_mult=(2, 2, 2)`. c_noise is log(sigma) / 4.

    Args:
        image_size: height and width of x that the resolutions of attention refer to; the levels must divide those of x.
        in_channels: channels of x.
        out_channels: channels of the output; None: `in_channels`.
        num_classes: of the condition "label", 0 for none; `num_classes` is the null class.
        augment_dim: size of the augmentation labels cond["augment"], which the network is conditioned on; 0 for none.
            A cond without them is that of an x that is not augmented.
        model_channels: channels of a level before its factor.
        channel_mult: one factor per level.
        channel_mult_emb: size of the embedding over `model_channels`.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention; the middle always has it.
        dropout: rate, before the last convolution of each residual block.
        embedding_type: "positional" or "fourier", the embedding of c_noise.
        channel_mult_noise: size of that embedding over `model_channels`.
        encoder_type: "standard", or the downsampled x enters every level through a 1 x 1 convolution ("skip"), or as a
            chain of convolutions with residuals ("residual").
        decoder_type: "standard", or "skip": the output is a sum over levels, upsampled from the lowest.
        resample_filter: taps of the filter along each axis.
        attention_implementation: see `attention.dot_product_attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if an option is unknown, the levels do not divide the image's size, a resolution with attention is
            that of no level, or the groups of a normalisation do not divide its channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        num_classes: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: tuple[float | int, ...] = (1, 1),
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        check_choice("embedding_type", embedding_type, ("positional", "fourier"))
        check_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        check_choice("decoder_type", decoder_type, ("standard", "skip"))
        self.input_shape = (None, None, in_channels)
        self.divisor = 2 ** (len(channel_mult) - 1)
        self.conditions = Conditions(num_classes=num_classes)
        self.remat = remat
        self.resample_filter = tuple(resample_filter)
        self.noise_channels = noise_channels = model_channels * channel_mult_noise
        emb_channels = model_channels * channel_mult_emb
        resolutions = layers.level_resolutions(image_size, len(channel_mult), attn_resolutions, "attn_resolutions")
        style = dataclasses.replace(SONG, resample_filter=self.resample_filter)

        def block(c_in: int, c_out: int, *, resampling: str = "none", attends: bool = False) -> UNetBlock:
            options = dict(resampling=resampling, num_heads=int(attends), dropout=dropout)
            return UNetBlock(
                c_in, c_out, emb_channels, style, implementation=attention_implementation, rngs=rngs, **options
            )

        fourier = embedding_type == "fourier"
        self.map_noise = layers.FourierEmbedding(noise_channels // 2, rngs=rngs) if fourier else None
        self.map_label = dense(num_classes, noise_channels, style.init, rngs) if num_classes else None
        self.map_augment = (
            nnx.Linear(augment_dim, noise_channels, use_bias=False, kernel_init=style.init.kernel, rngs=rngs)
            if augment_dim
            else None
        )
        self.map_layer0 = dense(noise_channels, emb_channels, style.init, rngs)
        self.map_layer1 = dense(emb_channels, emb_channels, style.init, rngs)

        pyramid = in_channels

        def aux_down(res: int, c: int) -> dict[str, nnx.Module]:
            nonlocal pyramid
            if encoder_type == "skip":
                return {f"{res}x{res}_aux_skip": conv(in_channels, c, 1, style.init, rngs)}
            if encoder_type == "standard":
                return {}
            c_in, pyramid = pyramid, c
            part = ncsnpp.Resample(c_in, c, "down", with_conv=True, fir_kernel=self.resample_filter, rngs=rngs)
            return {f"{res}x{res}_aux_residual": part}

        def aux_up(res: int, c: int) -> dict[str, nnx.Module]:
            if decoder_type == "standard" and res != image_size:
                return {}
            head = conv(c, out_channels or in_channels, 3, style.init_zero, rngs)
            return {f"{res}x{res}_aux_norm": norm(c, style.epsilon), f"{res}x{res}_aux_conv": head}

        levels = [
            (model_channels * mult, res, res in attn_resolutions)
            for mult, res in zip(channel_mult, resolutions, strict=True)
        ]
        first = conv(in_channels, model_channels, 3, style.init, rngs)
        enc, skips = encoder_modules(first, model_channels, levels, num_blocks, block, aux_down)
        dec = decoder_modules(levels, num_blocks, skips, block, aux_up, last_attends_alone=True)
        self.enc, self.enc_names = nnx.Dict(enc), tuple(enc)
        self.dec, self.dec_names = nnx.Dict(dec), tuple(dec)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        positional = self.map_noise is None
        noise = layers.sinusoidal_embedding(c_noise, self.noise_channels) if positional else self.map_noise(c_noise)
        noise = noise.astype(x.dtype)
        emb = jax.nn.silu(self.map_layer0(noise if cond.vector is None else noise + cond.vector))
        emb = jax.nn.silu(self.map_layer1(emb))

        def call(block: nnx.Module, h: Array) -> Array:
            return layers.call_block(block, h, emb, rngs=rngs, remat=self.remat)

        h = pyramid = x
        skips = []
        for name in self.enc_names:
            part = self.enc[name]
            if name.endswith("aux_skip"):
                pyramid = resampled(pyramid, "down", self.resample_filter)
                h = skips[-1] = h + part(pyramid)
            elif name.endswith("aux_residual"):
                h = skips[-1] = pyramid = (h + part(pyramid)) * math.sqrt(0.5)
            else:
                h = call(part, h) if isinstance(part, UNetBlock) else part(h)
                skips.append(h)
        result = None
        for name in self.dec_names:
            part = self.dec[name]
            if name.endswith("aux_norm"):
                normed = part(h)
            elif name.endswith("aux_conv"):
                head = part(jax.nn.silu(normed))
                result = head if result is None else resampled(result, "up", self.resample_filter) + head
            else:
                h = call(part, jnp.concatenate([h, skips.pop()], -1) if "_block" in name else h)
        return result

    def embed(self, cond: Cond, batch: int | None = None, dtype: DTypeLike = jnp.float32) -> Embedded:
        embedded = super().embed(cond, batch, dtype)
        if self.map_augment is None or not isinstance(cond, dict) or "augment" not in cond:
            return embedded
        augment = self.map_augment(cond["augment"])
        return embedded._replace(vector=augment if embedded.vector is None else embedded.vector + augment)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self._embed_label)

    def _embed_label(self, label: Int[Array, "batch"]) -> Float[Array, "batch emb"]:
        num_classes = self.conditions.num_classes
        one_hot = jax.nn.one_hot(label, num_classes, dtype=self.map_label.kernel[...].dtype)
        return self.map_label(one_hot * math.sqrt(num_classes))


class DhariwalUNet(DenoisingNetwork):
    """ADM's U-Net (arXiv:2105.05233) as EDM trains it: [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    The network of `adm.ADM` with other initial values, and with the names and order of parameters of the authors'
    DhariwalUNet. The defaults are those for ImageNet at 64 x 64, without its classes. c_noise is log(sigma) / 4.

    Args:
        channels_per_head: channels of one attention head. See `SongUNet` for the others.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        num_classes: int = 0,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        channels_per_head: int = 64,
        dropout: float = 0.1,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.input_shape = (None, None, in_channels)
        self.divisor = 2 ** (len(channel_mult) - 1)
        self.conditions = Conditions(num_classes=num_classes)
        self.model_channels = model_channels
        self.remat = remat
        emb_channels = model_channels * channel_mult_emb
        resolutions = layers.level_resolutions(image_size, len(channel_mult), attn_resolutions, "attn_resolutions")
        init = DHARIWAL.init

        def block(c_in: int, c_out: int, *, resampling: str = "none", attends: bool = False) -> UNetBlock:
            num_heads = head_count(c_out, 1, channels_per_head, "channels_per_head") if attends else 0
            options = dict(resampling=resampling, num_heads=num_heads, dropout=dropout)
            return UNetBlock(
                c_in, c_out, emb_channels, DHARIWAL, implementation=attention_implementation, rngs=rngs, **options
            )

        self.map_layer0 = dense(model_channels, emb_channels, init, rngs)
        self.map_layer1 = dense(emb_channels, emb_channels, init, rngs)
        normal = nnx.initializers.normal(1.0)
        self.map_label = (
            nnx.Linear(num_classes, emb_channels, use_bias=False, kernel_init=normal, rngs=rngs)
            if num_classes
            else None
        )

        levels = [
            (model_channels * mult, res, res in attn_resolutions)
            for mult, res in zip(channel_mult, resolutions, strict=True)
        ]
        c = levels[0][0]
        enc, skips = encoder_modules(conv(in_channels, c, 3, init, rngs), c, levels, num_blocks, block)
        dec = decoder_modules(levels, num_blocks, skips, block)
        self.enc, self.enc_names = nnx.Dict(enc), tuple(enc)
        self.dec, self.dec_names = nnx.Dict(dec), tuple(dec)
        self.out_norm = norm(c, DHARIWAL.epsilon)
        self.out_conv = conv(c, out_channels or in_channels, 3, DHARIWAL.init_zero, rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        noise = layers.sinusoidal_embedding(
            c_noise, self.model_channels, flip_sin_to_cos=True, downscale_freq_shift=0.0
        ).astype(x.dtype)
        emb = self.map_layer1(jax.nn.silu(self.map_layer0(noise)))
        emb = jax.nn.silu(emb if cond.vector is None else emb + cond.vector)

        def call(block: nnx.Module, h: Array) -> Array:
            return layers.call_block(block, h, emb, rngs=rngs, remat=self.remat)

        h, skips = x, []
        for name in self.enc_names:
            part = self.enc[name]
            h = call(part, h) if isinstance(part, UNetBlock) else part(h)
            skips.append(h)
        for name in self.dec_names:
            h = call(self.dec[name], jnp.concatenate([h, skips.pop()], -1) if "_block" in name else h)
        return self.out_conv(jax.nn.silu(self.out_norm(h)))

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self._embed_label)

    def _embed_label(self, label: Int[Array, "batch"]) -> Float[Array, "batch emb"]:
        return self.map_label.kernel[...].at[label].get(mode="fill", fill_value=0)
