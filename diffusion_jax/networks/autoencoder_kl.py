"""The KL-regularised autoencoder of latent diffusion (arXiv:2112.10752)."""

from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.autoencoder import Decoder, Encoder, check_arguments


class AutoencoderKL(nnx.Module):
    """The autoencoder of latent diffusion and Stable Diffusion (arXiv:2112.10752, appendix G), as in diffusers.

    `encode`: [batch, h, w, in_channels] -> [batch, h / f, w / f, 2 latent_channels], mean and log variance of
    q(z | x) side by side; `decode`: [batch, h, w, latent_channels] -> [batch, f h, f w, out_channels]. f is
    2^(levels - 1). Attribute names and arguments follow AutoencoderKL of diffusers. The first stage of Stable Diffusion
    (f = 8) has 83.7 M parameters: `block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4`.

    Args:
        image_size: side of the images; None takes any that f divides.
        in_channels: channels of x.
        out_channels: channels of the output; None stands for `in_channels`.
        block_out_channels: channels of each level, from the full resolution on.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels of z.
        norm_num_groups: groups of every GroupNorm.
        attention_levels: levels with self-attention after each residual block, 0 being the full resolution.
        mid_block_add_attention: whether there is self-attention at the lowest resolution.
        use_quant_conv: whether a 1 x 1 convolution follows the encoder.
        use_post_quant_conv: whether a 1 x 1 convolution precedes the decoder.
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
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        attention_levels: tuple[int, ...] = (),
        mid_block_add_attention: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        rngs: nnx.Rngs,
    ):
        self.factor = check_arguments(
            image_size, block_out_channels, layers_per_block, latent_channels, attention_levels
        )
        shared = dict(
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            attention_levels=attention_levels,
            mid_block_add_attention=mid_block_add_attention,
            rngs=rngs,
        )
        moments = 2 * latent_channels
        self.encoder = Encoder(in_channels=in_channels, out_channels=moments, **shared)
        self.decoder = Decoder(in_channels=latent_channels, out_channels=out_channels or in_channels, **shared)
        self.quant_conv = layers.conv(moments, moments, 1, rngs=rngs) if use_quant_conv else None
        self.post_quant_conv = (
            layers.conv(latent_channels, latent_channels, 1, rngs=rngs) if use_post_quant_conv else None
        )

    def encode(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 moments"]:
        """Mean and log variance of q(z | x), in this order along the channels."""
        layers.check_divides("the height of x", x.shape[1], self.factor)
        layers.check_divides("the width of x", x.shape[2], self.factor)
        h = self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h)

    def decode(self, z: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 out"]:
        """The image of a latent."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
