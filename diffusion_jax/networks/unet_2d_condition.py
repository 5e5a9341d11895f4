"""The U-Net of latent text-to-image models, Stable Diffusion among them (arXiv:2112.10752, arXiv:2307.01952)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import layers
from diffusion_jax.networks.conditioning import VectorEmbedding, embed
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.transformer_2d import Transformer2DModel
from diffusion_jax.networks.unet import DownBlock, Downsample, MidBlock, ResnetBlock, UpBlock, Upsample
from diffusion_jax.types import Cond, Embedded

_EPSILON = 1e-5  # of the GroupNorms outside of the transformers


class UNet2DConditionModel(nnx.Module):
    """The U-Net of Stable Diffusion: [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    Level i has `block_out_channels[i]` channels at 1 / 2^i of the resolution. Every residual block of a level is
    followed by a transformer of `transformer_layers[i]` blocks, which read the condition "tokens"; 0 for none. Parts
    and arguments follow UNet2DConditionModel of diffusers, whose way down and middle are our `encoder`.

    The defaults are Stable Diffusion 1's, 859.5 M parameters. 2's (865.9 M): `token_dim=1024, num_attention_heads=(5,
    10, 20, 20), use_linear_projection=True`. SDXL's (2,567.5 M): `block_out_channels=(320, 640, 1280),
    transformer_layers=(0, 2, 10), num_attention_heads=(5, 10, 20), token_dim=2048, use_linear_projection=True,
    vector_dim=1280, num_sizes=6, sizes_dim=256`.

    Conditions are those of `Conditions`: "tokens" are the states of a text encoder, all places of which count unless
    they are masked; "image", of the size of x, is concatenated to x (inpainting, InstructPix2Pix, upscaling); labels,
    and a "vector" with the waves of "sizes" beside it, are added to the embedding of c_noise, a timestep in 0..999.

    Args:
        image_size: side of x, which the conditions "image" have; the network takes any that the levels divide.
        in_channels: channels of x.
        out_channels: channels of the output; None stands for `in_channels`.
        block_out_channels: channels of each level, from the full resolution on.
        layers_per_block: residual blocks per level on the way down; the way up has one more.
        transformer_layers: transformer blocks after each residual block, by level.
        mid_transformer_layers: the same in the middle; None stands for those of the last level that has any.
        num_attention_heads: by level, or one number for all; the middle has the last. Each divides its channels.
        only_cross_attention: whether the first attention of a transformer block reads the tokens too, by level or for
            all; never in the middle.
        use_linear_projection: see `Transformer2DModel`.
        norm_num_groups: groups of every GroupNorm.
        dropout: rate, before the last convolution of each residual block.
        token_dim: width of "tokens".
        max_tokens: length of "tokens".
        masked_tokens: whether "tokens" come with a "mask".
        num_classes: of "label"; 0 for none. The table of embeddings has one row more, for no label.
        vector_dim: of "vector"; 0 for none.
        num_sizes: numbers among "sizes"; 0 for none.
        sizes_dim: waves of each of these.
        image_channels: of "image"; 0 for none.
        attention_implementation: see `layers.attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: lists of other lengths than there are levels, a size that the levels do not divide, or heads or
            groups that do not divide the channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 4,
        out_channels: int | None = None,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        transformer_layers: tuple[int, ...] = (1, 1, 1, 0),
        mid_transformer_layers: int | None = None,
        num_attention_heads: int | tuple[int, ...] = 8,
        only_cross_attention: bool | tuple[bool, ...] = False,
        use_linear_projection: bool = False,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        token_dim: int = 768,
        max_tokens: int = 77,
        masked_tokens: bool = False,
        num_classes: int = 0,
        vector_dim: int = 0,
        num_sizes: int = 0,
        sizes_dim: int = 256,
        image_channels: int = 0,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.in_channels = in_channels
        self.divisor = 2 ** (len(block_out_channels) - 1)
        self.remat = remat
        layers.check_divides("image_size", image_size, self.divisor)
        self.conditions = Conditions(
            num_classes=num_classes,
            vector_dim=vector_dim,
            num_sizes=num_sizes,
            token_dim=token_dim,
            max_tokens=max_tokens,
            unmasked=not masked_tokens,
            image_shape=(image_size, image_size, image_channels) if image_channels else (),
        )
        parts = Parts(
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            transformer_layers=transformer_layers,
            mid_transformer_layers=mid_transformer_layers,
            num_attention_heads=num_attention_heads,
            only_cross_attention=only_cross_attention,
            use_linear_projection=use_linear_projection,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
            token_dim=token_dim,
            implementation=attention_implementation,
            rngs=rngs,
        )
        self.encoder = Encoder(parts, in_channels + image_channels, self.conditions, sizes_dim, rngs=rngs)
        skips = parts.skips()
        widths = block_out_channels[::-1]
        up_blocks = []
        for i, width in enumerate(widths):
            level = len(widths) - 1 - i
            c_in = [n + skips.pop() for n in [widths[max(i - 1, 0)]] + [width] * layers_per_block]
            up_blocks.append(
                UpBlock(
                    [parts.resnet(n, width) for n in c_in],
                    [],
                    parts.transformers(level, len(c_in)),
                    [Upsample(width, with_conv=True, rngs=rngs)] if level else [],
                )
            )
        self.up_blocks = nnx.List(up_blocks)
        self.conv_norm_out = layers.GroupNorm(widths[-1], num_groups=norm_num_groups, epsilon=_EPSILON)
        self.conv_out = layers.conv(widths[-1], out_channels or in_channels, scale=0.0, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Cond = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        check_input(x, self.in_channels, self.divisor)
        cond = self.embed(cond, x.shape[0])
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
        context = (cond.context.astype(x.dtype), cond.mask)
        for block in self.up_blocks:
            used = [skips.pop() for _ in block.resnets]
            h = layers.call_block(block, h, used, emb, context, rngs=rngs, remat=self.remat)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))

    def embed(self, cond: Cond, batch: int | None = None) -> Embedded:
        """What `__call__` takes in the place of cond, computed once per sample; cond=None needs the `batch`."""
        return self.encoder.embed(cond, self.conditions, batch)


class Encoder(nnx.Module):
    """Way down and middle of the U-Net, and all that is made of c_noise and the conditions. A ControlNet has a copy.

    Args:
        parts: of the network.
        in_channels: channels of x and of the condition "image" together.
        conditions: that the network reads.
        sizes_dim: waves of each of the "sizes".
        rngs: randomness of the initial parameters.
    """

    def __init__(self, parts: Parts, in_channels: int, conditions: Conditions, sizes_dim: int, *, rngs: nnx.Rngs):
        widths = parts.block_out_channels
        emb_dim = 4 * widths[0]
        self.sizes_dim = sizes_dim
        self.time_embedding = layers.TimeEmbedding(
            widths[0], emb_dim, embedding="positional", flip_sin_to_cos=True, downscale_freq_shift=0.0, rngs=rngs
        )
        classes, numbers = conditions.num_classes, conditions.vector_dim + conditions.num_sizes * sizes_dim
        self.class_embedding = nnx.Embed(classes + 1, emb_dim, rngs=rngs) if classes else None
        self.add_embedding = VectorEmbedding(numbers, emb_dim, rngs=rngs) if numbers else None
        self.conv_in = layers.conv(in_channels, widths[0], rngs=rngs)
        down_blocks = []
        for level, width in enumerate(widths):
            c_in = [widths[max(level - 1, 0)]] + [width] * (parts.layers_per_block - 1)
            last = level + 1 == len(widths)
            down_blocks.append(
                DownBlock(
                    [parts.resnet(n, width) for n in c_in],
                    [],
                    parts.transformers(level, len(c_in)),
                    [] if last else [Downsample(width, with_conv=True, padding=1, rngs=rngs)],
                )
            )
        self.down_blocks = nnx.List(down_blocks)
        middle = [parts.resnet(widths[-1], widths[-1]) for _ in range(2)]
        self.mid_block = MidBlock(middle, [], parts.transformers(None, 1))

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
        """(activations in the middle, those that the way up reads, activated embedding); `hint` joins at first."""
        emb = self.time_embedding(c_noise, x.dtype)
        emb = jax.nn.silu(emb if cond.vector is None else emb + cond.vector.astype(x.dtype))
        context = (cond.context.astype(x.dtype), cond.mask)
        h = self.conv_in(x if cond.image is None else jnp.concatenate([x, cond.image.astype(x.dtype)], -1))
        h = h if hint is None else h + hint
        skips = [h]
        for block in self.down_blocks:
            h, new = layers.call_block(block, h, emb, context, rngs=rngs, remat=remat)
            skips += new
        return layers.call_block(self.mid_block, h, emb, context, rngs=rngs, remat=remat), skips, emb

    def embed(self, cond: Cond, conditions: Conditions, batch: int | None = None) -> Embedded:
        """See `conditioning.embed`."""
        return embed(cond, conditions, batch, label=self.class_embedding, vector=self._numbers)

    def _numbers(
        self, vector: Float[Array, "batch c"], sizes: Int[Array, "batch n"] | None = None
    ) -> Float[Array, "batch emb"]:
        waves = []
        if sizes is not None:
            options = dict(flip_sin_to_cos=True, downscale_freq_shift=0.0)
            columns = sizes.astype(jnp.float32).T
            waves = [layers.sinusoidal_embedding(column, self.sizes_dim, **options) for column in columns]
        return self.add_embedding(jnp.concatenate([vector, *(wave.astype(vector.dtype) for wave in waves)], -1))


class Parts:
    """Makes the blocks that the way down and the way up are built of. Arguments as in `UNet2DConditionModel`."""

    def __init__(
        self,
        *,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        transformer_layers: tuple[int, ...],
        mid_transformer_layers: int | None,
        num_attention_heads: int | tuple[int, ...],
        only_cross_attention: bool | tuple[bool, ...],
        use_linear_projection: bool,
        norm_num_groups: int,
        dropout: float,
        token_dim: int,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        if not block_out_channels or min(*block_out_channels, layers_per_block) < 1:
            raise ValueError(f"{block_out_channels=}, {layers_per_block=}: all must be at least 1.")
        levels = len(block_out_channels)
        self.block_out_channels = block_out_channels
        self.layers_per_block = layers_per_block
        self.depths = by_level("transformer_layers", transformer_layers, levels)
        if min(self.depths) < 0:
            raise ValueError(f"transformer_layers={self.depths} must be at least 0.")
        self.mid_depth = mid_transformer_layers
        if mid_transformer_layers is None:
            self.mid_depth = next((depth for depth in reversed(self.depths) if depth), 1)
        self.heads = by_level("num_attention_heads", num_attention_heads, levels)
        self.only_cross = by_level("only_cross_attention", only_cross_attention, levels)
        self.token_dim = token_dim
        self.resnet_options = dict(num_groups=norm_num_groups, dropout=dropout, epsilon=_EPSILON, rngs=rngs)
        self.transformer_options = dict(
            num_groups=norm_num_groups,
            use_linear_projection=use_linear_projection,
            implementation=implementation,
            rngs=rngs,
        )

    def resnet(self, c_in: int, c_out: int) -> ResnetBlock:
        return ResnetBlock(c_in, c_out, 4 * self.block_out_channels[0], **self.resnet_options)

    def transformers(self, level: int | None, count: int) -> list[Transformer2DModel]:
        """`count` of them for a level, or for the middle with None."""
        i = -1 if level is None else level
        depth = self.mid_depth if level is None else self.depths[level]
        return [
            Transformer2DModel(
                self.block_out_channels[i],
                self.token_dim,
                depth=depth,
                num_heads=self.heads[i],
                only_cross_attention=level is not None and self.only_cross[i],
                **self.transformer_options,
            )
            for _ in range(count if depth else 0)
        ]

    def skips(self) -> list[int]:
        """Channels of the activations that the way up reads, in the order in which they arise."""
        widths = self.block_out_channels
        down = [[width] * (self.layers_per_block + (i + 1 < len(widths))) for i, width in enumerate(widths)]
        return [widths[0], *(c for level in down for c in level)]


def by_level(field: str, value: Sequence[int] | int, levels: int) -> tuple[int, ...]:
    """`value`, repeated for each level where it is one. Raises ValueError for a sequence of another length."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
    if len(values) != levels:
        raise ValueError(f"{field}={value} has {len(values)} entries; block_out_channels has {levels} levels.")
    return values


def check_input(x: Float[Array, "batch h w c"], in_channels: int, divisor: int) -> None:
    """Raises ValueError unless x has `in_channels` channels and sides that `divisor` divides."""
    if x.shape[-1] != in_channels:
        raise ValueError(f"x has shape {x.shape}; the last axis must be in_channels={in_channels}.")
    layers.check_divides("the height of x", x.shape[1], divisor)
    layers.check_divides("the width of x", x.shape[2], divisor)
