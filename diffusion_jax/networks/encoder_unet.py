"""The encoder half of ADM's U-Net with pooling: the noisy classifier of classifier guidance (arXiv:2105.05233)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import adm, attention, layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.types import Embedded, check_choice


class EncoderUNet(DenoisingNetwork):
    """Classes of a noisy image: [batch, image_size, image_size, in_channels] -> logits [batch, num_classes].

    The encoder path and the middle of ADM's U-Net, then a pooling over all pixels (arXiv:2105.05233, section 4.1 and
    appendix H). c_noise is a timestep in 0..999. Attribute names are those of the authors' EncoderUNetModel, whose
    Sequentials are lists here. The defaults are the authors' classifier for 64 x 64, with `num_classes=1000`.

    Args:
        image_size: height and width of x.
        num_classes: number of logits.
        in_channels: channels of x.
        model_channels: channels of the first level before its factor.
        channel_mult: one factor per level.
        num_res_blocks: residual blocks per level.
        attention_resolutions: resolutions with self-attention; the middle always has it.
        num_head_channels: channels per attention head, also of the pooling; None: one head.
        num_groups: groups of every normalisation.
        dropout: rate, before the last convolution of each residual block.
        use_scale_shift_norm: whether the embedding of c_noise scales and shifts normalised activations, or is added.
        resblock_updown: whether residual blocks halve the resolution, or convolutions of stride 2.
        pool: "attention" (of the mean to all pixels), "adaptive" (the mean, with a last layer that starts at zero) or
            "adaptive_nonzero" (the mean).
        time: whether the network reads c_noise. The semantic encoder of diffusion autoencoders does not.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if the levels do not divide the image's size, no level has a resolution with attention, the
            heads or groups do not divide the channels, `pool` is unknown, or x has another shape.
    """

    def __init__(
        self,
        *,
        image_size: int,
        num_classes: int,
        in_channels: int = 3,
        model_channels: int = 128,
        channel_mult: tuple[int | float, ...] = (1, 2, 3, 4),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        num_head_channels: int | None = 64,
        num_groups: int = 32,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        pool: str = "attention",
        time: bool = True,
        rngs: nnx.Rngs,
    ):
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1, the number of logits.")
        check_choice("pool", pool, ("attention", "adaptive", "adaptive_nonzero"))
        self.input_shape = (image_size, image_size, in_channels)
        self.model_channels = model_channels
        field = "attention_resolutions"
        resolutions = layers.level_resolutions(image_size, len(channel_mult), attention_resolutions, field)
        emb_dim = 4 * model_channels if time else 0
        shared = dict(num_groups=num_groups, rngs=rngs)

        def block(c_in: int, c_out: int, resampling: str = "none") -> adm.ResBlock:
            options = dict(dropout=dropout, use_scale_shift_norm=use_scale_shift_norm)
            return adm.ResBlock(c_in, c_out, emb_dim, resampling=resampling, **options, **shared)

        def attends(c: int) -> adm.AttentionBlock:
            return adm.AttentionBlock(c, attention.head_count(c, 1, num_head_channels, "num_head_channels"), **shared)

        def down(c: int) -> nnx.Module:
            return block(c, c, "down") if resblock_updown else adm.Down(c, rngs=rngs)

        self.time_embed = adm.time_embed(model_channels, rngs=rngs) if time else None
        widths = [int(mult * model_channels) for mult in channel_mult]
        levels = [(w, r, r in attention_resolutions) for w, r in zip(widths, resolutions, strict=True)]
        self.input_blocks, _ = adm.encoder_blocks(
            in_channels, levels, num_res_blocks, block=block, attention=attends, down=down, rngs=rngs
        )
        c = widths[-1]
        self.middle_block = nnx.List([block(c, c), attends(c), block(c, c)])
        norm = layers.GroupNorm(c, num_groups=num_groups, epsilon=adm.EPSILON)
        if pool == "attention":
            pooling = AttentionPool(resolutions[-1] ** 2, c, num_head_channels, num_classes, rngs=rngs)
        else:
            pooling = MeanPool(c, num_classes, scale=float(pool == "adaptive_nonzero"), rngs=rngs)
        self.out = nnx.List([norm, jax.nn.silu, pooling])

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch classes"]:
        emb = None
        if self.time_embed is not None:
            emb = adm.embed_time(self.time_embed, c_noise, self.model_channels, x.dtype)
        h = x
        for parts in (*self.input_blocks, self.middle_block):
            h = adm.run(parts, h, emb, rngs=rngs)
        for layer in self.out:
            h = layer(h)
        return h


class AttentionPool(nnx.Module):
    """Attention pooling, where the mean attends to itself and to all pixels: [batch, h, w, c] -> [batch, out].

    As in CLIP (arXiv:2103.00020, section 2.4), with learned positions.
    """

    def __init__(
        self, positions: int, channels: int, num_head_channels: int | None, out_features: int, *, rngs: nnx.Rngs
    ):
        self.num_heads = attention.head_count(channels, 1, num_head_channels, "num_head_channels")
        table = jax.random.normal(rngs.params(), (channels, positions + 1)) / math.sqrt(channels)
        self.positional_embedding = nnx.Param(table)
        self.qkv_proj = layers.linear(channels, 3 * channels, rngs=rngs)
        self.c_proj = layers.linear(channels, out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch out"]:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([x.mean(1, keepdims=True), x], 1) + self.positional_embedding[...].T
        q, k, v = jnp.split(self.qkv_proj(x), 3, -1)
        return self.c_proj(attention.dot_product_attention(q[:, :1], k, v, self.num_heads)[:, 0])


class MeanPool(nnx.Module):
    """A dense layer, initialised with `scale`, on the mean over all pixels: [batch, h, w, c] -> [batch, out]."""

    def __init__(self, channels: int, out_features: int, *, scale: float = 0.0, rngs: nnx.Rngs):
        self.proj = layers.linear(channels, out_features, scale=scale, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch out"]:
        return self.proj(x.mean((1, 2)))
