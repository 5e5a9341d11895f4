"""The U-Net of guided diffusion, ADM (arXiv:2105.05233); its encoder half is the noisy classifier `encoder_unet`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import fused_attention, head_count
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditioning import TokenEncoder, VectorEmbedding
from diffusion_jax.networks.conditions import Conditions, vector
from diffusion_jax.networks.rrdb import RRDBNet
from diffusion_jax.networks.transformer_2d import Transformer2DModel
from diffusion_jax.networks.unet import Context, Upsample
from diffusion_jax.types import Cond, Embedded

EPSILON = 1e-5  # of every normalisation
CODE = "code"  # name of the condition that scales activations


class ADM(DenoisingNetwork):
    """ADM's U-Net (arXiv:2105.05233, section 3): [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    Level i has `model_channels * channel_mult[i]` channels at resolution `image_size / 2^i`. c_noise is a timestep in
    0..999; residual blocks read its embedding by adaptive group normalisation. The output convolution and the last
    layer of every residual branch start at zero. Attribute names are those of the authors' UNetModel, whose Sequentials
    are lists here. The defaults are the authors' network for ImageNet at 64 x 64, without its classes. Other networks
    of this family are

    - improved DDPM's (arXiv:2102.09672): `resblock_updown=False, num_head_channels=None`;
    - LDM's (arXiv:2112.10752): `resblock_updown=False, use_scale_shift_norm=False, num_head_channels=32`, and with a
      `token_dim`, or a `class_token_dim`, where it is conditional;
    - that of consistency models (arXiv:2303.01469): `use_new_attention_order=True`;
    - upsamplers: `image_channels=3, low_res=64`, for a condition of 64 x 64 pixels;
    - SegDiff's (arXiv:2112.00390): `in_channels=1, image_channels=3, image_blocks=15, resblock_updown=False,
      use_scale_shift_norm=False, num_head_channels=None`.
    - that of diffusion autoencoders (arXiv:2111.15640): `code_dim=512, num_head_channels=None, num_heads=1`;
    - the gradient estimator of PDAE (arXiv:2212.12990): the same with `code_in_encoder=False, code_shift=True`.

    See `Conditions` for what each condition is. Labels and vectors are added to the embedding of c_noise, and
    the null class `num_classes` adds nothing. Tokens are read by cross-attention: transformers replace self-attention
    then. An image is concatenated to x, or with `image_blocks` its features, which an encoder of residual-in-residual
    dense blocks computes once per sample, are added to those of x after the first convolution.

    Args:
        image_size: height and width of x that the resolutions of attention refer to; the levels must divide those of x.
        in_channels: channels of x.
        out_channels: channels of the output, twice those of x where variances are learned; None: `in_channels`.
        model_channels: channels of the first level before its factor, and of the positional embedding.
        channel_mult: one factor per level.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: resolutions with self-attention; the middle always has it.
        num_heads: attention heads if `num_head_channels` is None.
        num_head_channels: channels per head; decides the number of heads if given.
        use_new_attention_order: whether the channels that attention reads are all queries, all keys, all values, and
            not the query, key and value of head after head. It matters for existing weights.
        use_scale_shift_norm: whether the embedding scales and shifts normalised activations, or is added.
        resblock_updown: whether residual blocks change the resolution, or layers between them.
        conv_resample: whether those layers have a convolution.
        num_groups: groups of every normalisation.
        dropout: rate, before the last convolution of each residual block.
        num_classes: of the condition "label"; 0 for none.
        class_token_dim: width of the one token that a label becomes instead of being added to the embedding, as in
            LDM's network for ImageNet; 0 for no token. The null class `num_classes` has a token of its own.
        vector_dim: of the condition "vector"; 0 for none.
        code_dim: of the condition "code", the code of a whole image: each residual block multiplies its activations,
            normalised and modulated by c_noise, by 1 + a linear function of it. 0 for none.
        code_in_encoder: whether the blocks of the encoder path read the code, too.
        code_shift: whether the code also shifts the activations. A dense layer embeds it first then.
        token_dim: width of the condition "tokens", or of their encoding if there is a `vocabulary`; 0 for none.
        vocabulary: number of ids of "tokens", which a transformer encodes; 0 if they are vectors with a "mask".
        max_tokens: length of "tokens".
        transformer_depth: blocks of every transformer, if there are tokens.
        image_channels: of the condition "image"; 0 for none.
        image_blocks: blocks of the encoder of that image, see `rrdb.RRDBNet`; 0: the image is concatenated to x.
        image_width: channels between these blocks.
        low_res: height and width of that image, which is resized to those of x by bilinear interpolation; 0: those of
            x.
        attention_implementation: see `attention.dot_product_attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if the levels do not divide the image's size, no level has a resolution with attention, or
            the groups or heads do not divide the channels, or labels become tokens next to vectors or other tokens, or
            there are `image_blocks` without an image.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        model_channels: int = 192,
        channel_mult: tuple[int | float, ...] = (1, 2, 3, 4),
        num_res_blocks: int = 3,
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        num_heads: int = 4,
        num_head_channels: int | None = 64,
        use_new_attention_order: bool = False,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        conv_resample: bool = True,
        num_groups: int = 32,
        dropout: float = 0.0,
        num_classes: int = 0,
        class_token_dim: int = 0,
        vector_dim: int = 0,
        code_dim: int = 0,
        code_in_encoder: bool = True,
        code_shift: bool = False,
        token_dim: int = 0,
        vocabulary: int = 0,
        max_tokens: int = 0,
        transformer_depth: int = 1,
        image_channels: int = 0,
        image_blocks: int = 0,
        image_width: int = 64,
        low_res: int = 0,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if class_token_dim and (vector_dim or token_dim or not num_classes):
            raise ValueError(
                f"class_token_dim={class_token_dim} needs num_classes > 0, no vector_dim and no token_dim: they are "
                f"{num_classes}, {vector_dim} and {token_dim}."
            )
        if image_blocks and not image_channels:
            raise ValueError(f"image_blocks={image_blocks} are of an encoder of images: image_channels must not be 0.")
        side = low_res or image_size
        self.input_shape = (None, None, in_channels)
        self.model_channels = model_channels
        self.divisor = 2 ** (len(channel_mult) - 1)
        self.conditions = Conditions(
            {CODE: vector(code_dim)} if code_dim else {},
            num_classes=num_classes,
            vector_dim=vector_dim,
            token_dim=token_dim,
            vocabulary=vocabulary,
            max_tokens=max_tokens,
            image_shape=(side, side, image_channels) if image_channels else (),
        )
        self.class_token = bool(class_token_dim)
        self.remat = remat
        field = "attention_resolutions"
        resolutions = layers.level_resolutions(image_size, len(channel_mult), attention_resolutions, field)
        widths = [int(mult * model_channels) for mult in channel_mult]
        emb_dim = 4 * model_channels

        code_width = emb_dim if code_dim and code_shift else code_dim

        def block(c_in: int, c_out: int, resampling: str = "none", code: bool = True) -> ResBlock:
            return ResBlock(
                c_in,
                c_out,
                emb_dim,
                code_dim=code_width if code else 0,
                code_shift=code_shift,
                resampling=resampling,
                dropout=dropout,
                use_scale_shift_norm=use_scale_shift_norm,
                num_groups=num_groups,
                rngs=rngs,
            )

        def attention(c: int) -> AttentionBlock | Transformer2DModel:
            heads = head_count(c, num_heads, num_head_channels, "num_head_channels")
            options = dict(num_groups=num_groups, implementation=attention_implementation, rngs=rngs)
            if token_dim or class_token_dim:
                context_dim = token_dim or class_token_dim
                return Transformer2DModel(c, context_dim, depth=transformer_depth, num_heads=heads, **options)
            return AttentionBlock(c, heads, order="3hc" if use_new_attention_order else "h3c", **options)

        encoder_block = functools.partial(block, code=code_in_encoder)

        def down(c: int) -> nnx.Module:
            return encoder_block(c, c, "down") if resblock_updown else Down(c, with_conv=conv_resample, rngs=rngs)

        def up(c: int) -> nnx.Module:
            return block(c, c, "up") if resblock_updown else Upsample(c, with_conv=conv_resample, rngs=rngs)

        self.time_embed = time_embed(model_channels, rngs=rngs)
        rows, label_dim = (num_classes + 1, class_token_dim) if class_token_dim else (num_classes, emb_dim)
        self.label_emb = nnx.Embed(rows, label_dim, rngs=rngs) if num_classes else None
        self.token_encoder = TokenEncoder(vocabulary, max_tokens, token_dim, rngs=rngs) if vocabulary else None
        self.add_embedding = VectorEmbedding(vector_dim, emb_dim, rngs=rngs) if vector_dim else None
        encoder = functools.partial(RRDBNet, image_channels, widths[0], image_blocks, width=image_width, rngs=rngs)
        self.rrdb = encoder() if image_blocks else None
        self.code_embed = layers.linear(code_dim, emb_dim, rngs=rngs) if code_dim and code_shift else None
        joined = in_channels + (0 if image_blocks else image_channels)
        levels = [(w, r, r in attention_resolutions) for w, r in zip(widths, resolutions, strict=True)]
        self.input_blocks, skips = encoder_blocks(
            joined, levels, num_res_blocks, block=encoder_block, attention=attention, down=down, rngs=rngs
        )
        c = widths[-1]
        self.middle_block = nnx.List([block(c, c), attention(c), block(c, c)])
        output_blocks = []
        for width, resolution, attends in reversed(levels):
            for i in range(num_res_blocks + 1):
                parts = [block(c + skips.pop(), width)]
                c = width
                if attends:
                    parts.append(attention(c))
                if i == num_res_blocks and resolution != resolutions[0]:
                    parts.append(up(c))
                output_blocks.append(nnx.List(parts))
        self.output_blocks = nnx.List(output_blocks)
        norm = layers.GroupNorm(c, num_groups=num_groups, epsilon=EPSILON)
        self.out = nnx.List([norm, jax.nn.silu, layers.conv(c, out_channels or in_channels, scale=0.0, rngs=rngs)])

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        h = self.activations(x, c_noise, cond, rngs=rngs)[-1]
        for layer in self.out:
            h = layer(h)
        return h

    def activations(
        self, x: Float[Array, "batch h w c"], c_noise: Float[Array, "batch"], cond: Embedded, *, rngs: nnx.Rngs | None
    ) -> list[Float[Array, "batch _ _ _"]]:
        """The outputs of the blocks of the decoder path, in their order."""

        def call(parts: nnx.List, h: Array) -> Array:
            return layers.call_block(functools.partial(run, parts), h, emb, context, code, rngs=rngs, remat=self.remat)

        emb = embed_time(self.time_embed, c_noise, self.model_channels, x.dtype)
        emb = emb if cond.vector is None else emb + cond.vector
        context = None if cond.context is None else (cond.context, cond.mask)
        code = None if cond.others is None else cond.others.get(CODE)
        code = code if code is None or self.code_embed is None else self.code_embed(code)
        h, image = x, cond.image
        if image is not None:
            image = image.astype(x.dtype)
            if image.shape[1:3] != x.shape[1:3]:
                image = jax.image.resize(image, (*x.shape[:3], image.shape[-1]), "bilinear")
            h = x if self.rrdb else jnp.concatenate([x, image], -1)
        skips = []
        for i, parts in enumerate(self.input_blocks):
            h = call(parts, h)
            h = h + image if self.rrdb and i == 0 else h
            skips.append(h)
        h = call(self.middle_block, h)
        decoded = []
        for parts in self.output_blocks:
            h = call(parts, jnp.concatenate([h, skips.pop()], -1))
            decoded.append(h)
        return decoded

    def embed(self, cond: Cond, batch: int | None = None, dtype: DTypeLike = jnp.float32) -> Embedded:
        embedded = super().embed(cond, batch, dtype)
        if self.rrdb and embedded is not cond:
            embedded = embedded._replace(image=self.rrdb(embedded.image))
        if not self.class_token or embedded.context is not None:
            return embedded
        return Embedded(context=embedded.vector[:, None], image=embedded.image)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self._embed_label, vector=self.add_embedding, tokens=self.token_encoder)

    def _embed_label(self, label: Int[Array, "batch"]) -> Float[Array, "batch emb"]:
        return self.label_emb.embedding[...].at[label].get(mode="fill", fill_value=0)


def time_embed(model_channels: int, *, rngs: nnx.Rngs) -> nnx.List:
    """Dense layers after the positional embedding of c_noise: [batch, model_channels] -> [batch, 4 model_channels]."""
    emb_dim = 4 * model_channels
    first, last = layers.linear(model_channels, emb_dim, rngs=rngs), layers.linear(emb_dim, emb_dim, rngs=rngs)
    return nnx.List([first, jax.nn.silu, last])


def embed_time(
    modules: nnx.List, c_noise: Float[Array, "batch"], model_channels: int, dtype: jnp.dtype
) -> Float[Array, "batch emb"]:
    """The embedding of c_noise: `modules`, made by `time_embed`, of the positional embedding, cosines first."""
    emb = layers.sinusoidal_embedding(c_noise, model_channels, flip_sin_to_cos=True, downscale_freq_shift=0.0)
    emb = emb.astype(dtype)
    for layer in modules:
        emb = layer(emb)
    return emb


def encoder_blocks(
    in_channels: int,
    levels: list[tuple[int, int, bool]],
    num_res_blocks: int,
    *,
    block: Callable[[int, int], nnx.Module],
    attention: Callable[[int], nnx.Module],
    down: Callable[[int], nnx.Module],
    rngs: nnx.Rngs,
) -> tuple[nnx.List, list[int]]:
    """The blocks of the encoder path, and the number of channels of the output of each.

    A level is (channels, resolution, whether there is attention). `block`, `attention` and `down` make modules.
    """
    c = levels[0][0]
    blocks, channels = [nnx.List([layers.conv(in_channels, c, rngs=rngs)])], [c]
    for width, resolution, attends in levels:
        for _ in range(num_res_blocks):
            blocks.append(nnx.List([block(c, width), *([attention(width)] if attends else [])]))
            c = width
            channels.append(c)
        if resolution != levels[-1][1]:
            blocks.append(nnx.List([down(c)]))
            channels.append(c)
    return nnx.List(blocks), channels


def run(
    parts: nnx.List,
    h: Float[Array, "batch h w c"],
    emb: Float[Array, "batch emb"] | None,
    context: Context = None,
    code: Float[Array, "batch code"] | None = None,
    *,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "batch h2 w2 out"]:
    """h after the modules of one block. Residual blocks read the embedding and the code, transformers the context."""
    for part in parts:
        if isinstance(part, ResBlock):
            h = part(h, emb, code, rngs=rngs)
        elif isinstance(part, Transformer2DModel):
            h = part(h, *context)
        else:
            h = part(h)
    return h


class ResBlock(nnx.Module):
    """Residual block: skip(x) + out(norm(conv(r(silu(norm(x))))) (1 + scale) + shift), scale and shift from emb.

    r resamples by `resampling`, "none", "up" (by repetition) or "down" (by averages), and x in the skip connection too.
    With a `code_dim` what enters `out` is first multiplied by 1 + a scale from the code, and with `code_shift` shifted
    (arXiv:2111.15640; arXiv:2212.12990). With an `emb_dim` of 0 there is no embedding to read.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        *,
        resampling: str,
        dropout: float,
        use_scale_shift_norm: bool,
        num_groups: int,
        code_dim: int = 0,
        code_shift: bool = False,
        rngs: nnx.Rngs,
    ):
        self.resampling = resampling
        self.dropout = dropout
        self.use_scale_shift_norm = use_scale_shift_norm
        norms = [layers.GroupNorm(c, num_groups=num_groups, epsilon=EPSILON) for c in (in_channels, out_channels)]
        emb_out = 2 * out_channels if use_scale_shift_norm else out_channels
        last = layers.conv(out_channels, out_channels, scale=0.0, rngs=rngs)
        self.in_layers = nnx.List([norms[0], jax.nn.silu, layers.conv(in_channels, out_channels, rngs=rngs)])
        self.emb_layers = nnx.List([jax.nn.silu, layers.linear(emb_dim, emb_out, rngs=rngs)]) if emb_dim else None
        self.code_shift = code_shift
        code_out = 2 * out_channels if code_shift else out_channels
        code = [jax.nn.silu, layers.linear(code_dim, code_out, rngs=rngs)] if code_dim else None
        self.cond_emb_layers = nnx.List(code) if code else None
        self.out_layers = nnx.List([norms[1], jax.nn.silu, layers.dropout, last])
        same = in_channels == out_channels
        self.skip_connection = None if same else layers.conv(in_channels, out_channels, 1, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        emb: Float[Array, "batch emb"] | None,
        code: Float[Array, "batch code"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h2 w2 out"]:
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resampling != "none":
            change = layers.upsample_nearest if self.resampling == "up" else layers.average_2x2
            h, x = change(h), change(x)
        h = conv(h)
        norm, act, drop, conv = self.out_layers
        emb = self._projected(self.emb_layers, emb)
        if emb is None:
            h = norm(h)
        elif self.use_scale_shift_norm:
            scale, shift = jnp.split(emb, 2, -1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        code = self._projected(self.cond_emb_layers, code)
        if code is not None and self.code_shift:
            scale, shift = jnp.split(code, 2, -1)
            h = h * (1 + scale) + shift
        elif code is not None:
            h = h * (1 + code)
        h = conv(drop(act(h), self.dropout, rngs))
        return h + (x if self.skip_connection is None else self.skip_connection(x))

    @staticmethod
    def _projected(modules: nnx.List | None, vector: Array | None) -> Float[Array, "batch 1 1 c"] | None:
        if modules is None or vector is None:
            return None
        act, project = modules
        return project(act(vector))[:, None, None, :]


class Down(nnx.Module):
    """Halve the resolution by a convolution of stride 2, padded by one pixel on all sides, or by averages."""

    def __init__(self, channels: int, *, with_conv: bool = True, rngs: nnx.Rngs):
        init = layers.fan_avg_uniform()
        one = ((1, 1), (1, 1))
        conv = nnx.Conv(channels, channels, (3, 3), 2, padding=one, kernel_init=init, rngs=rngs) if with_conv else None
        self.op = conv

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
        return layers.average_2x2(x) if self.op is None else self.op(x)


class AttentionBlock(nnx.Module):
    """Residual self-attention over all pixels, x + proj_out(attention(qkv(norm(x)))); see `split_qkv` for `order`."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        order: str = "h3c",
        num_groups: int,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.order = order
        self.implementation = implementation
        self.norm = layers.GroupNorm(channels, num_groups=num_groups, epsilon=EPSILON)
        self.qkv = layers.linear(channels, 3 * channels, rngs=rngs)
        self.proj_out = layers.linear(channels, channels, scale=0.0, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        qkv = self.qkv(self.norm(x).reshape(x.shape[0], -1, x.shape[-1]))
        attended = fused_attention(qkv, self.num_heads, self.order, self.implementation)
        return x + self.proj_out(attended).reshape(x.shape)
