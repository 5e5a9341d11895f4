"""Encoders of an image to one code: those of diffusion autoencoders (arXiv:2111.15640) and PDAE (arXiv:2212.12990)."""

from __future__ import annotations

import math

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.adm import EPSILON, AttentionBlock
from diffusion_jax.networks.attention import head_count
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.encoder_unet import EncoderUNet
from diffusion_jax.types import Embedded


class MLPEncoder(DenoisingNetwork):
    """Residual MLP from the flattened example to its code: [batch, *shape] -> [batch, code_dim]. c_noise is not read.

    Args:
        shape: of one example.
        code_dim: size of the code.
        hidden: width.
        num_layers: residual blocks h <- h + W_2 silu(W_1 norm(h)).
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (2,),
        code_dim: int = 512,
        hidden: int = 128,
        num_layers: int = 2,
        rngs: nnx.Rngs,
    ):
        self.input_shape = tuple(shape)
        self.linear_in = layers.linear(math.prod(shape), hidden, rngs=rngs)
        self.norms = nnx.List([layers.layer_norm(hidden, rngs=rngs) for _ in range(num_layers)])
        self.first = nnx.List([layers.linear(hidden, hidden, rngs=rngs) for _ in range(num_layers)])
        self.second = nnx.List([layers.linear(hidden, hidden, scale=0.0, rngs=rngs) for _ in range(num_layers)])
        self.norm_out = layers.layer_norm(hidden, rngs=rngs)
        self.linear_out = layers.linear(hidden, code_dim, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch *shape"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch code"]:
        h = self.linear_in(x.reshape(x.shape[0], -1))
        for norm, first, second in zip(self.norms, self.first, self.second, strict=True):
            h = h + second(jax.nn.silu(first(norm(h))))
        return self.linear_out(self.norm_out(h))


class StridedEncoder(DenoisingNetwork):
    """PDAE's encoder: convolutions of stride 2 with self-attention after one of them, and a dense layer.

    [batch, image_size, image_size, in_channels] -> [batch, code_dim]; group normalisation and SiLU come before every
    layer but the first. c_noise is not read. The defaults are the authors' encoder for FFHQ at 128 x 128.

    Args:
        image_size: height and width of x, divisible by 2^(number of channels).
        in_channels: channels of x.
        code_dim: size of the code.
        channels: of the output of each convolution.
        attention_after: index of the convolution that attention follows.
        num_heads: of attention.
        num_groups: groups of every normalisation.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if the strides do not divide the image, there is no such convolution, or the heads or groups do not
            divide the channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        code_dim: int = 512,
        channels: tuple[int, ...] = (64, 128, 256, 256, 256),
        attention_after: int = 2,
        num_heads: int = 4,
        num_groups: int = 32,
        rngs: nnx.Rngs,
    ):
        layers.check_divides("image_size", image_size, 2 ** len(channels))
        if not 0 <= attention_after < len(channels):
            raise ValueError(
                f"attention_after={attention_after} must be in 0..{len(channels) - 1}, a convolution of {channels=}."
            )
        self.input_shape = (image_size, image_size, in_channels)
        self.attention_after = attention_after
        one, init = ((1, 1), (1, 1)), layers.fan_avg_uniform()
        self.convs = nnx.List(
            nnx.Conv(c_in, c_out, (3, 3), 2, padding=one, kernel_init=init, rngs=rngs)
            for c_in, c_out in zip((in_channels, *channels[:-1]), channels, strict=True)
        )
        self.norms = nnx.List(layers.GroupNorm(c, num_groups=num_groups, epsilon=EPSILON) for c in channels)
        c = channels[attention_after]
        heads = head_count(c, num_heads, None, "num_heads")
        self.attention = AttentionBlock(c, heads, num_groups=num_groups, rngs=rngs)
        side = image_size // 2 ** len(channels)
        self.linear_out = layers.linear(side * side * channels[-1], code_dim, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch code"]:
        h = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = conv(h)
            if i == self.attention_after:
                h = self.attention(h)
            h = jax.nn.silu(norm(h))
        return self.linear_out(h.reshape(h.shape[0], -1))


def unet_encoder(
    *,
    image_size: int,
    in_channels: int = 3,
    code_dim: int = 512,
    model_channels: int = 128,
    channel_mult: tuple[int | float, ...] = (1, 1, 2, 3, 4, 4),
    num_res_blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (16,),
    num_groups: int = 32,
    dropout: float = 0.1,
    rngs: nnx.Rngs,
) -> EncoderUNet:
    """The semantic encoder of diffusion autoencoders: half of ADM's U-Net without c_noise, and a mean over all pixels.

    [batch, image_size, image_size, in_channels] -> [batch, code_dim]. The arguments are those of `EncoderUNet`, the
    defaults the authors' encoder for FFHQ at 128 x 128 (arXiv:2111.15640).
    """
    return EncoderUNet(
        image_size=image_size,
        num_classes=code_dim,
        in_channels=in_channels,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_res_blocks=num_res_blocks,
        attention_resolutions=attention_resolutions,
        num_head_channels=None,
        num_groups=num_groups,
        dropout=dropout,
        pool="adaptive_nonzero",
        time=False,
        rngs=rngs,
    )
