"""PatchGAN, the discriminator that first stages are trained against."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers


class NLayerDiscriminator(nnx.Module):
    """PatchGAN (arXiv:1611.07004, section 3.2.2): a convolutional network with one output per patch of the image.

    [batch, h, w, in_channels] -> [batch, h', w', 1], logits that are high for real images. `n_layers` convolutions
    4 x 4 of stride 2 are followed by two of stride 1, all but the first and the last with a norm, and leaky ReLU
    between them; the patches of `n_layers` = 1, 2, 3 have sides of 16, 34 and 70 pixels. As VQGAN's (arXiv:2012.09841),
    but with GroupNorm instead of BatchNorm: the logits of an image do not depend on its batch, and the network is a
    function of its parameters alone.

    Args:
        in_channels: channels of the images.
        channels: channels of the first layer; each further one has twice as many, up to 8 times.
        n_layers: layers of stride 2.
        num_groups: groups of every GroupNorm.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: a number that is not positive, or groups that do not divide the channels.
    """

    def __init__(
        self, *, in_channels: int = 3, channels: int = 64, n_layers: int = 3, num_groups: int = 32, rngs: nnx.Rngs
    ):
        if channels < 1 or n_layers < 1:
            raise ValueError(f"{channels=} and {n_layers=} must be at least 1.")
        widths = [channels * min(2**i, 8) for i in range(n_layers + 1)]

        def conv(c_in: int, c_out: int, stride: int, use_bias: bool) -> nnx.Conv:
            return nnx.Conv(
                c_in,
                c_out,
                (4, 4),
                strides=stride,
                padding=((1, 1), (1, 1)),
                use_bias=use_bias,
                kernel_init=nnx.initializers.normal(0.02),
                rngs=rngs,
            )

        self.conv_in = conv(in_channels, widths[0], 2, True)
        strides = [2] * (n_layers - 1) + [1]
        self.convs = nnx.List(conv(widths[i], widths[i + 1], stride, False) for i, stride in enumerate(strides))
        self.norms = nnx.List(layers.GroupNorm(width, num_groups=num_groups) for width in widths[1:])
        self.conv_out = conv(widths[-1], 1, 1, True)

    def discriminate(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 1"]:
        """The logits of all patches."""
        h = jax.nn.leaky_relu(self.conv_in(x), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = jax.nn.leaky_relu(norm(conv(h)), 0.2)
        return self.conv_out(h)
