"""The learned perceptual metric LPIPS on VGG-16 (arXiv:1801.03924)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks.functional import init_methods
from diffusion_jax.types import Params

# Channels of VGG-16's convolutions; "pool" halves the resolution, and the output before each is compared.
LAYERS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SIDE = 16  # least height and width of an image, in pixels, so that no feature map is empty
_SHIFT = (-0.030, -0.088, -0.188)  # of images in [-1, 1] to what VGG was trained on
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nnx.Module):
    """sum_l mean_hw w_l . (f_l(x) - f_l(y))^2 (arXiv:1801.03924, eq. 1), f_l the activations of VGG-16 of unit length.

    l goes over relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3. Images are [batch, h, w, 1 or 3] in [-1, 1], of at least
    16 x 16 pixels; grey ones get three equal channels. `convs` are VGG's convolutions in order, `lins` the weights w_l.
    The initial parameters are random; see `weights.lpips.load_lpips` for the trained ones.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        widths = [width for block in LAYERS for width in block]
        self.convs = nnx.List(
            nnx.Conv(c_in, c_out, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)
            for c_in, c_out in zip([3, *widths], widths, strict=False)
        )
        self.lins = nnx.List(nnx.Param(jnp.ones(block[-1]) / block[-1]) for block in LAYERS)

    def features(self, x: Float[Array, "batch h w c"]) -> list[Array]:
        """The activations that are compared, each of unit length along the channels."""
        h = (jnp.broadcast_to(x, (*x.shape[:3], 3)) - jnp.array(_SHIFT, x.dtype)) / jnp.array(_SCALE, x.dtype)
        activations, convs = [], iter(self.convs)
        for i, block in enumerate(LAYERS):
            h = nnx.max_pool(h, (2, 2), (2, 2)) if i else h
            for _ in block:
                h = jax.nn.relu(next(convs)(h))
            # The square root has no derivative where nothing is active.
            norm = jnp.sqrt(jnp.square(h).sum(-1, keepdims=True) + 1e-20)
            activations.append(h / (norm + 1e-10))
        return activations

    def distance(self, pair: Float[Array, "batch 2 h w c"]) -> Float[Array, "batch"]:
        """The distance of the two images of each pair."""
        batch = pair.shape[0]
        features = self.features(pair.reshape(-1, *pair.shape[2:]))
        features = [f.reshape(batch, 2, *f.shape[1:]) for f in features]
        terms = [
            (jnp.square(f[:, 0] - f[:, 1]) @ lin[...]).mean((1, 2)) for f, lin in zip(features, self.lins, strict=True)
        ]
        return sum(terms)


def lpips(
    shape: tuple[int, ...], dtype: str = "float32"
) -> tuple[Callable[..., Params], Callable[[Params, Array, Array], Float[Array, "batch"]]]:
    """(init, distance) of `LPIPS` for images of `shape`: init(key) -> params, distance(params, x, y) -> [batch].

    Raises ValueError for images that are too small or have another number of channels.
    """
    if min(shape[:2]) < _SIDE or shape[-1] not in (1, 3):
        raise ValueError(f"images of {shape} must have 1 or 3 channels and sides of at least {_SIDE} pixels")
    init, (distance,) = init_methods(lambda rngs: LPIPS(rngs=rngs), ("distance",), dtype)
    return init, lambda params, x, y: distance(params, jnp.stack([x, y], axis=1))
