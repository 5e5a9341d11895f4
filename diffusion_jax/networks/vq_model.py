"""The vector-quantised autoencoder of VQGAN and latent diffusion (arXiv:2012.09841, arXiv:2112.10752)."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.autoencoder import Decoder, Encoder, check_arguments
from diffusion_jax.networks.codebook import quantize


class VQModel(nnx.Module):
    """An autoencoder whose latents are entries of a codebook (arXiv:1711.00937, arXiv:2012.09841), as in diffusers.

    `encode`: [batch, h, w, in_channels] -> [batch, h / f, w / f, vq_embed_dim], before the quantisation; `decode` takes
    such latents to the nearest entries of `quantize.embedding` and then to [batch, f h, f w, out_channels]. f is
    2^(levels - 1). Attribute names and arguments follow VQModel of diffusers, whose AttnDownEncoderBlock2D are the
    `attention_levels` here.

    Args:
        image_size: side of the images; None takes any that f divides.
        in_channels: channels of x.
        out_channels: channels of the output; None stands for `in_channels`.
        block_out_channels: channels of each level, from the full resolution on.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels that the encoder gives and the decoder takes.
        num_vq_embeddings: entries of the codebook.
        vq_embed_dim: their dimension; None stands for `latent_channels`.
        norm_num_groups: groups of every GroupNorm.
        attention_levels: levels with self-attention after each residual block, 0 being the full resolution.
        mid_block_add_attention: whether there is self-attention at the lowest resolution.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: a size that is not positive, a level that does not exist, groups that do not divide the channels, or
            an image that f does not divide.
    """

    def __init__(
        self,
        *,
        image_size: int | None = None,
        in_channels: int = 3,
        out_channels: int | None = None,
        block_out_channels: tuple[int, ...] = (128, 256, 512),
        layers_per_block: int = 2,
        latent_channels: int = 3,
        num_vq_embeddings: int = 8192,
        vq_embed_dim: int | None = None,
        norm_num_groups: int = 32,
        attention_levels: tuple[int, ...] = (),
        mid_block_add_attention: bool = True,
        rngs: nnx.Rngs,
    ):
        self.factor = check_arguments(
            image_size, block_out_channels, layers_per_block, latent_channels, attention_levels
        )
        dim = latent_channels if vq_embed_dim is None else vq_embed_dim
        if num_vq_embeddings < 2 or dim < 1:
            raise ValueError(f"{num_vq_embeddings=} and {vq_embed_dim=} must be at least 2 and 1.")
        shared = dict(
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            attention_levels=attention_levels,
            mid_block_add_attention=mid_block_add_attention,
            rngs=rngs,
        )
        self.encoder = Encoder(in_channels=in_channels, out_channels=latent_channels, **shared)
        self.decoder = Decoder(in_channels=latent_channels, out_channels=out_channels or in_channels, **shared)
        self.quant_conv = layers.conv(latent_channels, dim, 1, rngs=rngs)
        self.quantize = VectorQuantizer(num_vq_embeddings, dim, rngs=rngs)
        self.post_quant_conv = layers.conv(dim, latent_channels, 1, rngs=rngs)

    def encode(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 dim"]:
        """The latents that the quantiser takes to the nearest entries of its codebook."""
        layers.check_divides("the height of x", x.shape[1], self.factor)
        layers.check_divides("the width of x", x.shape[2], self.factor)
        return self.quant_conv(self.encoder(x))

    def decode(self, h: Float[Array, "batch h w dim"]) -> Float[Array, "batch h2 w2 out"]:
        """The image of a latent, which is quantised first."""
        return self.decoder(self.post_quant_conv(self.quantize(h)))


class VectorQuantizer(nnx.Module):
    """The nearest entry of a codebook, whose gradient reaches the input as if nothing had been changed."""

    def __init__(self, num_embeddings: int, dim: int, *, rngs: nnx.Rngs):
        # In bfloat16 many entries of a large codebook would be equal.
        self.embedding = nnx.Embed(
            num_embeddings,
            dim,
            embedding_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1.0, 1.0) / num_embeddings,
            embedding_metadata={"full_precision": True},
            rngs=rngs,
        )

    def __call__(self, h: Float[Array, "batch h w dim"]) -> Float[Array, "batch h w dim"]:
        return quantize(h, self.embedding.embedding[...])
