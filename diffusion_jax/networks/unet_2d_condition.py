"""The U-Net of latent text-to-image models, Stable Diffusion among them (arXiv:2112.10752, arXiv:2307.01952)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditioning import GUIDANCE, VectorEmbedding
from diffusion_jax.networks.unet import DownBlock, Downsample, MidBlock, UpBlock, Upsample
from diffusion_jax.networks.unet_spec import EPSILON, UNetSpec
from diffusion_jax.types import Embedded, spread


class UNet2DConditionModel(DenoisingNetwork):
    """The U-Net of Stable Diffusion: [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    Level i has `block_out_channels[i]` channels at 1 / 2^i of the resolution. Every residual block of a level is
    followed by a transformer of `transformer_layers[i]` blocks, which read the condition "tokens"; 0 for none. Parts
    and arguments follow UNet2DConditionModel of diffusers, whose encoder path and middle are our `encoder`.

    The defaults are Stable Diffusion 1's, 859.5 M parameters. 2's (865.9 M): `token_dim=1024, num_attention_heads=(5,
    10, 20, 20), use_linear_projection=True`. SDXL's (2,567.5 M): `block_out_channels=(320, 640, 1280),
    transformer_layers=(0, 2, 10), num_attention_heads=(5, 10, 20), token_dim=2048, use_linear_projection=True,
    vector_dim=1280, num_sizes=6, sizes_dim=256`.

    AudioLDM's (arXiv:2301.12503; S, 185.0 M parameters) reads no tokens but an embedding of sound: `in_channels=8,
    block_out_channels=(128, 256, 384, 640), transformer_layers=(0, 1, 1, 1), num_attention_heads=(4, 8, 12, 20),
    cross_attention=False, vector_dim=512, vector_concat=True`.

    See `Conditions` for what each condition is: "tokens" are the states of a text encoder, all of which count unless
    there is a "mask"; "image", of the size of x, is concatenated to x (inpainting, InstructPix2Pix, upscaling); labels,
    and a "vector" with the sinusoidal embeddings of "sizes" next to it, are added to the embedding of c_noise, a
    timestep in 0..999.

    Args:
        spec: the fields of `UNetSpec`, each by its name.
        out_channels: channels of the output; None: `in_channels`.
        image_channels: of "image"; 0 for none.
        time_cond_proj_dim: size of the embedding of a guidance scale that is added to that of c_noise, see
            `conditioning.guided`, as in latent consistency models (arXiv:2310.04378); 0 for none.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: lists of other lengths than there are levels, a size that the levels do not divide, or heads or
            groups that do not divide the channels.
    """

    @spread(UNetSpec)
    def __init__(
        self,
        spec: UNetSpec,
        *,
        out_channels: int | None = None,
        image_channels: int = 0,
        time_cond_proj_dim: int = 0,
        rngs: nnx.Rngs,
    ):
        self.input_shape, self.divisor, self.remat = (None, None, spec.in_channels), spec.divisor, spec.remat
        image_shape = (spec.image_size, spec.image_size, image_channels) if image_channels else ()
        self.conditions = spec.conditions(image_shape=image_shape)
        self.encoder = Encoder(spec, spec.in_channels + image_channels, time_cond_proj_dim, rngs=rngs)
        skips = spec.skips
        widths = spec.widths[::-1]
        up_blocks = []
        for i, width in enumerate(widths):
            level = len(widths) - 1 - i
            c_in = [n + skips.pop() for n in [widths[max(i - 1, 0)]] + [width] * spec.layers_per_block]
            up_blocks.append(
                UpBlock(
                    [spec.resnet(n, width, rngs=rngs) for n in c_in],
                    [],
                    spec.transformers(level, len(c_in), rngs=rngs),
                    upsamplers=[Upsample(width, with_conv=True, rngs=rngs)] if level else [],
                )
            )
        self.up_blocks = nnx.List(up_blocks)
        self.conv_norm_out = layers.GroupNorm(widths[-1], num_groups=spec.norm_num_groups, epsilon=EPSILON)
        self.conv_out = layers.conv(widths[-1], out_channels or spec.in_channels, scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        h, skips, emb = self.encoder(x, c_noise, cond, rngs=rngs, remat=self.remat)
        if cond.residuals:
            *added, last = cond.residuals
            if len(added) != len(skips):
                raise ValueError(
                    f"cond.residuals has {len(cond.residuals)} arrays; this network needs {len(skips) + 1}: a "
                    "ControlNet must have the levels of its U-Net."
                )
            skips = [skip + residual for skip, residual in zip(skips, added, strict=True)]
            h = h + last
        context = _context(cond, x.dtype)
        for block in self.up_blocks:
            used = [skips.pop() for _ in block.resnets]
            h = layers.call_block(block, h, used, emb, context, rngs=rngs, remat=self.remat)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return self.encoder.embedders()


class Encoder(nnx.Module):
    """Encoder path and middle of the U-Net, with the embeddings of c_noise and the conditions. A ControlNet has a copy.

    Args:
        spec: sizes of the network.
        in_channels: channels of x and of the condition "image" together.
        time_cond_proj_dim: of `UNet2DConditionModel`.
        rngs: randomness of the initial parameters.
    """

    def __init__(self, spec: UNetSpec, in_channels: int, time_cond_proj_dim: int = 0, *, rngs: nnx.Rngs):
        widths = spec.widths
        emb_dim = 4 * widths[0]
        self.sizes_dim = spec.sizes_dim
        self.time_embedding = layers.TimeEmbedding(
            widths[0],
            emb_dim,
            embedding="positional",
            flip_sin_to_cos=True,
            downscale_freq_shift=0.0,
            cond_proj_dim=time_cond_proj_dim,
            rngs=rngs,
        )
        classes, numbers = spec.num_classes, spec.vector_dim + spec.num_sizes * spec.sizes_dim
        self.class_embedding = nnx.Embed(classes + 1, emb_dim, rngs=rngs) if classes else None
        self.add_embedding = (
            VectorEmbedding(numbers, emb_dim, rngs=rngs) if numbers and not spec.vector_concat else None
        )
        self.film_embedding = layers.linear(spec.vector_dim, emb_dim, rngs=rngs) if spec.vector_concat else None
        self.conv_in = layers.conv(in_channels, widths[0], rngs=rngs)
        down_blocks = []
        for level, width in enumerate(widths):
            c_in = [widths[max(level - 1, 0)]] + [width] * (spec.layers_per_block - 1)
            last = level + 1 == len(widths)
            down_blocks.append(
                DownBlock(
                    [spec.resnet(n, width, rngs=rngs) for n in c_in],
                    [],
                    spec.transformers(level, len(c_in), rngs=rngs),
                    downsamplers=[] if last else [Downsample(width, with_conv=True, padding=1, rngs=rngs)],
                )
            )
        self.down_blocks = nnx.List(down_blocks)
        middle = [spec.resnet(widths[-1], widths[-1], rngs=rngs) for _ in range(2)]
        self.mid_block = MidBlock(middle, [], spec.transformers(None, 1, rngs=rngs))

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        hint: Float[Array, "batch h w _"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        remat: bool = False,
    ) -> tuple[Float[Array, "batch _ _ _"], list[Array], Float[Array, "batch emb"]]:
        """(activations of the middle, those for the decoder, activated embedding); `hint` is added to the first."""
        emb = self.time_embedding(c_noise, x.dtype, (cond.others or {}).get(GUIDANCE))
        if self.film_embedding is not None:
            emb = jnp.concatenate([emb, cond.vector.astype(x.dtype)], -1)
        elif cond.vector is not None:
            emb = emb + cond.vector.astype(x.dtype)
        emb, context = jax.nn.silu(emb), _context(cond, x.dtype)
        h = self.conv_in(x if cond.image is None else jnp.concatenate([x, cond.image.astype(x.dtype)], -1))
        h = h if hint is None else h + hint
        skips = [h]
        for block in self.down_blocks:
            h, new = layers.call_block(block, h, emb, context, rngs=rngs, remat=remat)
            skips += new
        return layers.call_block(self.mid_block, h, emb, context, rngs=rngs, remat=remat), skips, emb

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        """See `DenoisingNetwork.embedders`."""
        return dict(label=self.class_embedding, vector=self.film_embedding or self._numbers)

    def _numbers(
        self, vector: Float[Array, "batch c"], sizes: Int[Array, "batch n"] | None = None
    ) -> Float[Array, "batch emb"]:
        waves = []
        if sizes is not None:
            options = dict(flip_sin_to_cos=True, downscale_freq_shift=0.0)
            columns = sizes.astype(jnp.float32).T
            waves = [layers.sinusoidal_embedding(column, self.sizes_dim, **options) for column in columns]
        return self.add_embedding(jnp.concatenate([vector, *(wave.astype(vector.dtype) for wave in waves)], -1))


def _context(cond: Embedded, dtype: jnp.dtype) -> tuple[Array | None, Array | None]:
    """What cross-attention attends to, and its mask."""
    return (None if cond.context is None else cond.context.astype(dtype), cond.mask)
