"""The vector-quantised autoencoder of VQGAN and latent diffusion (arXiv:2012.09841, arXiv:2112.10752)."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.autoencoder import AutoencoderSpec
from diffusion_jax.networks.base import check_input
from diffusion_jax.networks.codebook import quantize
from diffusion_jax.types import spread


class VQModel(nnx.Module):
    """An autoencoder whose latents are entries of a codebook (arXiv:1711.00937, arXiv:2012.09841), as in diffusers.

    `encode`: [batch, h, w, in_channels] -> [batch, h / f, w / f, vq_embed_dim], before the quantisation; `decode` takes
    such latents to the nearest entries of `quantize.embedding` and then to [batch, f h, f w, out_channels]. f is
    2^(levels - 1). Attribute names and arguments follow VQModel of diffusers, whose AttnDownEncoderBlock2D are the
    `attention_levels` here.

    Args:
        spec: the fields of `AutoencoderSpec`, each by its name.
        num_vq_embeddings: entries of the codebook.
        vq_embed_dim: their dimension; None: `latent_channels`.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: a size that is not positive, a level that does not exist, groups that do not divide the channels, or
            an image that f does not divide.
    """

    @spread(AutoencoderSpec, block_out_channels=(128, 256, 512), latent_channels=3)
    def __init__(
        self,
        spec: AutoencoderSpec,
        *,
        num_vq_embeddings: int = 8192,
        vq_embed_dim: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.factor, latent_channels = spec.factor, spec.latent_channels
        dim = latent_channels if vq_embed_dim is None else vq_embed_dim
        if num_vq_embeddings < 2 or dim < 1:
            raise ValueError(f"{num_vq_embeddings=} and {vq_embed_dim=} must be at least 2 and 1.")
        self.encoder = spec.encoder(latent_channels, rngs=rngs)
        self.decoder = spec.decoder(rngs=rngs)
        self.quant_conv = layers.conv(latent_channels, dim, 1, rngs=rngs)
        self.quantize = VectorQuantizer(num_vq_embeddings, dim, rngs=rngs)
        self.post_quant_conv = layers.conv(dim, latent_channels, 1, rngs=rngs)

    def encode(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 dim"]:
        """The latents before the quantisation."""
        check_input(x, (None, None, x.shape[-1]), self.factor)
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
