"""A small classifier of pixels by their features (arXiv:2112.03126)."""

import itertools

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers


class PixelClassifierNet(nnx.Module):
    """An MLP of rectified layers, each with layer normalisation: [*n, in_features] -> logits [*n, num_classes].

    The authors' has batch normalisation instead, whose statistics a parameter tree of gradients cannot hold.

    Args:
        in_features: of a pixel.
        hidden: widths of the layers.
        num_classes: of the logits.
        rngs: randomness of the initial parameters.
    """

    def __init__(self, *, in_features: int, hidden: tuple[int, ...], num_classes: int, rngs: nnx.Rngs):
        widths = (in_features, *hidden)
        self.layers = nnx.List([layers.linear(c_in, c_out, rngs=rngs) for c_in, c_out in itertools.pairwise(widths)])
        self.norms = nnx.List([layers.layer_norm(width, rngs=rngs) for width in hidden])
        self.out = layers.linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, features: Float[Array, "*n d"]) -> Float[Array, "*n classes"]:
        h = features
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = norm(jax.nn.relu(layer(h)))
        return self.out(h)
