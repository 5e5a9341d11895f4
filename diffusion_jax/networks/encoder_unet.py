"""The down half of ADM's U-Net with pooling: the noisy classifier of classifier guidance (arXiv:2105.05233)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.types import Cond

EPSILON = 1e-5  # of every normalisation


class EncoderUNet(nnx.Module):
    """Classes of a noisy image: [batch, image_size, image_size, in_channels] -> logits [batch, num_classes].

    The way down and the middle of ADM's U-Net, then a pooling of all places (arXiv:2105.05233, section 4.1 and appendix
    H). c_noise is a timestep in 0..999. Attribute names are those of the authors' EncoderUNetModel, whose Sequentials
    are lists here. The defaults are the authors' classifier for 64 x 64, with `num_classes=1000`.

    Args:
        image_size: height and width of x.
        num_classes: number of logits.
        in_channels: channels of x.
        model_channels: channels of the first level before its factor.
        channel_mult: one factor per level.
        num_res_blocks: residual blocks per level.
        attention_resolutions: resolutions with self-attention; the middle always has it.
        num_head_channels: channels per attention head, also of the pooling.
        num_groups: groups of every normalisation.
        dropout: rate, before the last convolution of each residual block.
        use_scale_shift_norm: whether the embedding of c_noise scales and shifts normalised activations, or is added.
        resblock_updown: whether residual blocks halve the resolution, or convolutions of stride 2.
        pool: "attention" (of the mean to all places) or "adaptive" (the mean).
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if the levels do not divide the image's size, a resolution with attention is that of no level, the
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
        num_head_channels: int = 64,
        num_groups: int = 32,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        pool: str = "attention",
        rngs: nnx.Rngs,
    ):
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1, the number of logits.")
        if pool not in ("attention", "adaptive"):
            raise ValueError(f"pool={pool!r} is unknown; choose 'attention' or 'adaptive'.")
        self.image_shape = (image_size, image_size, in_channels)
        self.model_channels = model_channels
        layers.check_divides("image_size", image_size, 2 ** (len(channel_mult) - 1))
        resolutions = [image_size // 2**level for level in range(len(channel_mult))]
        if not set(attention_resolutions) <= set(resolutions):
            raise ValueError(
                f"attention_resolutions={attention_resolutions} must be among the resolutions of the levels, "
                f"{resolutions} for image_size={image_size} and {len(channel_mult)} levels."
            )
        emb_dim = 4 * model_channels
        given = dict(num_groups=num_groups, rngs=rngs)

        def block(c_in: int, c_out: int, down: bool = False) -> ResBlock:
            options = dict(dropout=dropout, use_scale_shift_norm=use_scale_shift_norm)
            return ResBlock(c_in, c_out, emb_dim, down=down, **options, **given)

        self.time_embed = nnx.List(
            [layers.linear(model_channels, emb_dim, rngs=rngs), jax.nn.silu, layers.linear(emb_dim, emb_dim, rngs=rngs)]
        )
        c = int(channel_mult[0] * model_channels)
        input_blocks = [nnx.List([layers.conv(in_channels, c, rngs=rngs)])]
        for mult, resolution in zip(channel_mult, resolutions, strict=True):
            width = int(mult * model_channels)
            for _ in range(num_res_blocks):
                attends = resolution in attention_resolutions
                parts = [AttentionBlock(width, num_head_channels, **given)] if attends else []
                input_blocks.append(nnx.List([block(c, width), *parts]))
                c = width
            if resolution != resolutions[-1]:
                input_blocks.append(nnx.List([block(c, c, down=True) if resblock_updown else Down(c, rngs=rngs)]))
        self.input_blocks = nnx.List(input_blocks)
        self.middle_block = nnx.List([block(c, c), AttentionBlock(c, num_head_channels, **given), block(c, c)])
        norm = layers.GroupNorm(c, num_groups=num_groups, epsilon=EPSILON)
        if pool == "attention":
            pooling = AttentionPool(resolutions[-1] ** 2, c, num_head_channels, num_classes, rngs=rngs)
        else:
            pooling = MeanPool(c, num_classes, rngs=rngs)
        self.out = nnx.List([norm, jax.nn.silu, pooling])

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Cond = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch classes"]:
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"x has shape {x.shape}; the network was built for [batch, *{self.image_shape}].")
        emb = layers.sinusoidal_embedding(
            c_noise, self.model_channels, flip_sin_to_cos=True, downscale_freq_shift=0.0
        ).astype(x.dtype)
        for layer in self.time_embed:
            emb = layer(emb)
        h = x
        for part in (*self.input_blocks, self.middle_block):
            for layer in part:
                h = layer(h, emb, rngs=rngs) if isinstance(layer, ResBlock) else layer(h)
        for layer in self.out:
            h = layer(h)
        return h


class ResBlock(nnx.Module):
    """Residual block: skip(x) + out(norm(conv(silu(norm(x)))) (1 + scale) + shift), scale and shift from the embedding;
    with `down` both branches are first averaged over 2 x 2 places."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        *,
        down: bool,
        dropout: float,
        use_scale_shift_norm: bool,
        num_groups: int,
        rngs: nnx.Rngs,
    ):
        self.down = down
        self.dropout = dropout
        self.use_scale_shift_norm = use_scale_shift_norm
        norms = [layers.GroupNorm(c, num_groups=num_groups, epsilon=EPSILON) for c in (in_channels, out_channels)]
        emb_out = 2 * out_channels if use_scale_shift_norm else out_channels
        last = layers.conv(out_channels, out_channels, scale=0.0, rngs=rngs)
        self.in_layers = nnx.List([norms[0], jax.nn.silu, layers.conv(in_channels, out_channels, rngs=rngs)])
        self.emb_layers = nnx.List([jax.nn.silu, layers.linear(emb_dim, emb_out, rngs=rngs)])
        self.out_layers = nnx.List([norms[1], jax.nn.silu, layers.dropout, last])
        same = in_channels == out_channels
        self.skip_connection = None if same else layers.conv(in_channels, out_channels, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch h w c"], emb: Float[Array, "batch emb"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch h2 w2 out"]:
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.down:
            h, x = (nnx.avg_pool(part, (2, 2), (2, 2)) for part in (h, x))
        h = conv(h)
        act, project = self.emb_layers
        emb = project(act(emb))[:, None, None, :]
        norm, act, drop, conv = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = jnp.split(emb, 2, -1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        h = conv(drop(act(h), self.dropout, rngs))
        return h + (x if self.skip_connection is None else self.skip_connection(x))


class Down(nnx.Module):
    """Halve the resolution by a convolution of stride 2, padded by one place on all sides."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.op = nnx.Conv(
            channels,
            channels,
            (3, 3),
            2,
            padding=((1, 1), (1, 1)),
            kernel_init=layers.fan_avg_uniform(),
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
        return self.op(x)


class AttentionBlock(nnx.Module):
    """Residual self-attention over all places; every head has its query, key and value side by side in `qkv`."""

    def __init__(self, channels: int, num_head_channels: int, *, num_groups: int, rngs: nnx.Rngs):
        self.num_heads = _heads(channels, num_head_channels)
        self.norm = layers.GroupNorm(channels, num_groups=num_groups, epsilon=EPSILON)
        self.qkv = layers.linear(channels, 3 * channels, rngs=rngs)
        self.proj_out = layers.linear(channels, channels, scale=0.0, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        batch, h, w, c = x.shape
        qkv = self.qkv(self.norm(x).reshape(batch, h * w, c)).reshape(batch, h * w, self.num_heads, -1)
        q, k, v = (part.reshape(batch, h * w, c) for part in jnp.split(qkv, 3, -1))
        return x + self.proj_out(layers.attention(q, k, v, self.num_heads)).reshape(x.shape)


class AttentionPool(nnx.Module):
    """What the mean of all places sees when it attends to itself and to them: [batch, h, w, c] -> [batch, out].

    As CLIP's (arXiv:2103.00020, section 2.4), with learned positions.
    """

    def __init__(self, places: int, channels: int, num_head_channels: int, out_features: int, *, rngs: nnx.Rngs):
        self.num_heads = _heads(channels, num_head_channels)
        positions = jax.random.normal(rngs.params(), (channels, places + 1)) / math.sqrt(channels)
        self.positional_embedding = nnx.Param(positions)
        self.qkv_proj = layers.linear(channels, 3 * channels, rngs=rngs)
        self.c_proj = layers.linear(channels, out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch out"]:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([x.mean(1, keepdims=True), x], 1) + self.positional_embedding[...].T
        q, k, v = jnp.split(self.qkv_proj(x), 3, -1)
        return self.c_proj(layers.attention(q[:, :1], k, v, self.num_heads)[:, 0])


class MeanPool(nnx.Module):
    """A dense layer on the mean of all places, zero at the start: [batch, h, w, c] -> [batch, out]."""

    def __init__(self, channels: int, out_features: int, *, rngs: nnx.Rngs):
        self.proj = layers.linear(channels, out_features, scale=0.0, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch out"]:
        return self.proj(x.mean((1, 2)))


def _heads(channels: int, num_head_channels: int) -> int:
    if num_head_channels < 1 or channels % num_head_channels:
        raise ValueError(f"num_head_channels={num_head_channels} must be a positive divisor of {channels} channels.")
    return channels // num_head_channels
