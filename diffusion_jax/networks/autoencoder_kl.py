"""The KL-regularised autoencoder of latent diffusion (arXiv:2112.10752)."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.autoencoder import AutoencoderSpec
from diffusion_jax.networks.base import check_input
from diffusion_jax.types import spread


class AutoencoderKL(nnx.Module):
    """The autoencoder of latent diffusion and Stable Diffusion (arXiv:2112.10752, appendix G), as in diffusers.

    `encode`: [batch, h, w, in_channels] -> [batch, h / f, w / f, 2 latent_channels], mean and log variance of
    q(z | x) side by side; `decode`: [batch, h, w, latent_channels] -> [batch, f h, f w, out_channels]. f is
    2^(levels - 1). Attribute names and arguments follow AutoencoderKL of diffusers. The first stage of Stable Diffusion
    (f = 8) has 83.7 M parameters: `block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4`.

    Args:
        spec: the fields of `AutoencoderSpec`, each by its name.
        use_quant_conv: whether a 1 x 1 convolution follows the encoder.
        use_post_quant_conv: whether a 1 x 1 convolution precedes the decoder.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: a size that is not positive, a level that does not exist, groups that do not divide the channels, or
            an image that f does not divide.
    """

    @spread(AutoencoderSpec)
    def __init__(
        self,
        spec: AutoencoderSpec,
        *,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        rngs: nnx.Rngs,
    ):
        self.factor, latent_channels = spec.factor, spec.latent_channels
        moments = 2 * latent_channels
        self.encoder = spec.encoder(moments, rngs=rngs)
        self.decoder = spec.decoder(rngs=rngs)
        self.quant_conv = layers.conv(moments, moments, 1, rngs=rngs) if use_quant_conv else None
        self.post_quant_conv = (
            layers.conv(latent_channels, latent_channels, 1, rngs=rngs) if use_post_quant_conv else None
        )

    def encode(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 moments"]:
        """Mean and log variance of q(z | x), in this order along the channels."""
        check_input(x, (None, None, x.shape[-1]), self.factor)
        h = self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h)

    def decode(self, z: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 out"]:
        """The image of a latent."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
