"""R3GAN's generator and discriminator: residual networks of grouped convolutions without normalisation (2501.05441)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers, resample
from diffusion_jax.networks.adversarial import SLOPE, activate
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Embedded

_GAIN = math.sqrt(2 / (1 + SLOPE**2))  # of leaky ReLU (1502.01852): it keeps the mean square of activations


class R3Generator(DenoisingNetwork):
    """From z to an image: [batch, latent_dim] -> [batch, image_size, image_size, in_channels]. c_noise is not read.

    A learned map of image_size / 2^(stages - 1) pixels a side, whose channels z scales, is followed by stages of
    `num_res_blocks` residual blocks, each but the first after bilinear upsampling, with a 1 x 1 convolution where the
    channels change. The defaults are R3GAN's generator for CIFAR-10 (Config E).

    Args:
        image_size: height and width of the image; a multiple of 2^(number of stages - 1).
        in_channels: channels of the image.
        latent_dim: numbers of z.
        channels: of each stage, from the smallest resolution to the largest.
        num_res_blocks: residual blocks of each stage, see `InvertedBottleneck`.
        expansion: factor of the channels within a block.
        group_width: channels of each group of its 3 x 3 convolution.
        num_classes: of the condition "label", whose embedding of `latent_dim` numbers is appended to z; 0 for none.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: stages that do not divide the size, or groups that do not divide the channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        latent_dim: int = 64,
        channels: tuple[int, ...] = (768, 768, 768, 768),
        num_res_blocks: int = 2,
        expansion: int = 2,
        group_width: int = 16,
        num_classes: int = 0,
        rngs: nnx.Rngs,
    ):
        factor = 2 ** (len(channels) - 1)
        layers.check_divides("image_size", image_size, factor)
        side, depth = image_size // factor, num_res_blocks * len(channels)
        self.input_shape = (latent_dim,)
        self.conditions = Conditions(num_classes=num_classes)
        self.class_embedding = _class_embedding(num_classes, latent_dim, 1.0, rngs) if num_classes else None
        self.basis = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (side, side, channels[0])))
        given = latent_dim * (2 if num_classes else 1)
        self.linear_in = nnx.Linear(given, channels[0], use_bias=False, kernel_init=_scaled(1.0), rngs=rngs)
        self.transitions = nnx.List(
            [_pointwise(c_in, c_out, rngs) if c_in != c_out else None for c_in, c_out in itertools.pairwise(channels)]
        )
        self.stages = nnx.List([_blocks(c, num_res_blocks, depth, expansion, group_width, rngs=rngs) for c in channels])
        self.conv_out = _pointwise(channels[-1], in_channels, rngs)

    def forward(
        self,
        x: Float[Array, "batch z"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w c"]:
        z = x if cond.vector is None else jnp.concatenate([x, cond.vector], -1)
        h = self.basis[...].astype(x.dtype) * self.linear_in(z)[:, None, None]
        for i, stage in enumerate(self.stages):
            if i:
                transition = self.transitions[i - 1]
                h = resample.upsample_2d(h if transition is None else transition(h))
            for block in stage:
                h = block(h)
        return self.conv_out(h)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self.class_embedding)


class R3Discriminator(DenoisingNetwork):
    """From an image to a logit, high for real ones: [batch, image_size, image_size, in_channels] -> [batch, 1].

    The mirror image of `R3Generator`: stages of residual blocks with bilinear downsampling between them, and a
    depthwise convolution over the last map. There is no normalisation and no statistic of the batch: the logit of an
    image is a function of that image. Arguments are those of `R3Generator`, and:

    Args:
        channels: of each stage, from the largest resolution to the smallest.
        time: whether c_noise is read; its embedding of `emb_dim` numbers enters every block.
        image_channels: of the condition "image", concatenated to x; 0 for none.
        num_classes: of the condition "label": the logit is the inner product of its embedding, of as many numbers as
            the last stage has channels, and the last layer; 0 for none.
        emb_dim, embedding: of c_noise, see `layers.TimeEmbedding`.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: stages that do not divide the size, or groups that do not divide the channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        channels: tuple[int, ...] = (768, 768, 768, 768),
        num_res_blocks: int = 2,
        expansion: int = 2,
        group_width: int = 16,
        time: bool = False,
        image_channels: int = 0,
        num_classes: int = 0,
        emb_dim: int = 128,
        embedding: str = "positional",
        rngs: nnx.Rngs,
    ):
        factor = 2 ** (len(channels) - 1)
        layers.check_divides("image_size", image_size, factor)
        side, depth, last = image_size // factor, num_res_blocks * len(channels), channels[-1]
        self.input_shape = (image_size, image_size, in_channels)
        image_shape = (image_size, image_size, image_channels) if image_channels else ()
        self.conditions = Conditions(num_classes=num_classes, image_shape=image_shape)
        self.time_embedding = layers.TimeEmbedding(emb_dim, emb_dim, embedding=embedding, rngs=rngs) if time else None
        self.class_embedding = _class_embedding(num_classes, last, 1 / last, rngs) if num_classes else None
        self.conv_in = _pointwise(in_channels + image_channels, channels[0], rngs)
        emb = emb_dim if time else 0
        self.stages = nnx.List(
            [_blocks(c, num_res_blocks, depth, expansion, group_width, emb, rngs=rngs) for c in channels]
        )
        self.transitions = nnx.List(
            [_pointwise(c_in, c_out, rngs) if c_in != c_out else None for c_in, c_out in itertools.pairwise(channels)]
        )
        self.basis = nnx.Conv(
            last,
            last,
            (side, side),
            padding="VALID",
            feature_group_count=last,
            use_bias=False,
            kernel_init=_scaled(1.0),
            rngs=rngs,
        )
        out = last if num_classes else 1
        self.linear_out = nnx.Linear(last, out, use_bias=False, kernel_init=_scaled(1.0), rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch 1"]:
        emb = None if self.time_embedding is None else activate(self.time_embedding(c_noise, x.dtype))
        h = self.conv_in(x if cond.image is None else jnp.concatenate([x, cond.image], -1))
        for i, stage in enumerate(self.stages):
            if i:
                transition = self.transitions[i - 1]
                h = resample.downsample_2d(h)
                h = h if transition is None else transition(h)
            for block in stage:
                h = block(h, emb)
        out = self.linear_out(self.basis(h).reshape(len(x), -1))
        return out if cond.vector is None else jnp.sum(out * cond.vector, -1, keepdims=True)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self.class_embedding)


class InvertedBottleneck(nnx.Module):
    """x + W_3 act(W_2 act(W_1 x + E emb)): 1 x 1, grouped 3 x 3 and 1 x 1 convolutions, wider in between.

    act is leaky ReLU after a bias; W_3 has none. The first two have the gain of leaky ReLU times depth^(-1/4), and W_3
    starts at zero, as in fix-up initialisation (arXiv:1901.09321) of `depth` such blocks of three layers: the block
    starts as the identity.

    Raises:
        ValueError: if groups of `group_width` channels do not divide those in between.
    """

    def __init__(
        self, channels: int, depth: int, *, expansion: int, group_width: int, emb_dim: int = 0, rngs: nnx.Rngs
    ):
        wide = channels * expansion
        if wide % group_width:
            raise ValueError(f"group_width={group_width} must divide the {wide} channels within a block.")
        init = _scaled((_GAIN * depth**-0.25) ** 2)
        self.conv_1 = nnx.Conv(channels, wide, (1, 1), kernel_init=init, rngs=rngs)
        self.time_emb_proj = layers.linear(emb_dim, wide, rngs=rngs) if emb_dim else None
        groups = wide // group_width
        self.conv_2 = nnx.Conv(wide, wide, (3, 3), feature_group_count=groups, kernel_init=init, rngs=rngs)
        zero = nnx.initializers.zeros_init()
        self.conv_3 = nnx.Conv(wide, channels, (1, 1), use_bias=False, kernel_init=zero, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch h w c"], emb: Float[Array, "batch emb"] | None = None
    ) -> Float[Array, "batch h w c"]:
        h = self.conv_1(x)
        h = h if self.time_emb_proj is None else h + self.time_emb_proj(emb)[:, None, None]
        return x + self.conv_3(activate(self.conv_2(activate(h))))


def _blocks(
    channels: int, num: int, depth: int, expansion: int, group_width: int, emb_dim: int = 0, *, rngs: nnx.Rngs
) -> nnx.List:
    options = dict(expansion=expansion, group_width=group_width, emb_dim=emb_dim, rngs=rngs)
    return nnx.List([InvertedBottleneck(channels, depth, **options) for _ in range(num)])


def _scaled(square: float) -> nnx.Initializer:
    """Normal with variance `square` / fan_in."""
    return nnx.initializers.variance_scaling(square, "fan_in", "normal")


def _pointwise(c_in: int, c_out: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(c_in, c_out, (1, 1), use_bias=False, kernel_init=_scaled(1.0), rngs=rngs)


def _class_embedding(num_classes: int, dim: int, square: float, rngs: nnx.Rngs) -> nnx.Embed:
    """One vector for each class, the rows of a dense layer of one-hot classes, and one for the null class."""
    init = nnx.initializers.normal(math.sqrt(square / num_classes))
    return nnx.Embed(num_classes + 1, dim, embedding_init=init, rngs=rngs)
