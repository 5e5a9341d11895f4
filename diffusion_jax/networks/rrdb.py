"""An image encoder of residual-in-residual dense blocks, which SegDiff adds to a U-Net (arXiv:1809.00219)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers

_SCALE = 0.2  # of every residual branch


class RRDBNet(nnx.Module):
    """ESRGAN's trunk at one resolution: [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    Its second half, which enlarges images, is left out, as in SegDiff (arXiv:2112.00390). Attribute names are those of
    the original.

    Args:
        in_channels: of the image.
        out_channels: of the features.
        num_blocks: residual-in-residual dense blocks.
        width: channels between blocks; each convolution in a block adds half as many.
        rngs: randomness of the initial parameters.
    """

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, *, width: int = 64, rngs: nnx.Rngs):
        self.conv_first = layers.conv(in_channels, width, rngs=rngs)
        self.RRDB_trunk = nnx.List([RRDB(width, width // 2, rngs=rngs) for _ in range(num_blocks)])
        self.trunk_conv = layers.conv(width, width, rngs=rngs)
        self.HRconv = layers.conv(width, width, rngs=rngs)
        self.conv_last = layers.conv(width, out_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w out"]:
        first = trunk = self.conv_first(x)
        for block in self.RRDB_trunk:
            trunk = block(trunk)
        return self.conv_last(_activated(self.HRconv(first + self.trunk_conv(trunk))))


class RRDB(nnx.Module):
    """Three dense blocks in a row, scaled by 0.2 and added to x."""

    def __init__(self, width: int, growth: int, *, rngs: nnx.Rngs):
        self.RDB1, self.RDB2, self.RDB3 = (DenseBlock(width, growth, rngs=rngs) for _ in range(3))

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        return x + _SCALE * self.RDB3(self.RDB2(self.RDB1(x)))


class DenseBlock(nnx.Module):
    """Five convolutions, each of x and all that the former ones added; the last is scaled by 0.2 and added to x."""

    def __init__(self, width: int, growth: int, *, rngs: nnx.Rngs):
        grown = [layers.conv(width + i * growth, growth, rngs=rngs) for i in range(4)]
        self.conv1, self.conv2, self.conv3, self.conv4 = grown
        self.conv5 = layers.conv(width + 4 * growth, width, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        h = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = jnp.concatenate([h, _activated(conv(h))], -1)
        return x + _SCALE * self.conv5(h)


def _activated(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.2)
