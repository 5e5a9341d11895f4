"""Non-leaking augmentation: the network is conditioned on the augmentation parameters.

Since it knows how an image was augmented, it does not produce augmented images when all labels are zero
(arXiv:2206.00364, appendix F.2; arXiv:2006.06676).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.networks import resample

DIM = 9  # size of the augmentation label vector
# Standard deviations: of log2 of the scale, of log2 of the stretch, and of the translation in sides of the image.
_STD = {"scale": 0.2, "aniso": 0.2, "translate": 0.125}
# Low-pass filter of the symlet with 12 taps. It is orthogonal, so down-sampling inverts up-sampling.
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)


def augment(
    key: Key[Array, ""], x: Float[Array, "batch h w c"], probability: float
) -> tuple[Float[Array, "batch h w c"], Float[Array, "batch 9"]]:
    """EDM's augmentation: returns (augmented images, augmentation labels), both float32.

    Images are flipped horizontally with probability 1/2. Each of the following happens with `probability`, n ~ N(0, 1):
    a vertical flip (in half of these cases), scaling by 2^(0.2 n), rotation by a uniform angle, anisotropic scaling
    (by 2^(0.2 n) along a random direction and by the inverse across it), and translation by 0.125 n of each side. The
    labels are (x flip, y flip, n of scaling, cos angle - 1, sin angle, n cos direction, n sin direction, n of the x and
    of the y translation). Labels of zero describe an image without augmentation.
    """
    keys, rows = jax.random.split(key, 12), x.shape[:1]

    def sometimes(i: int, value: Float[Array, "*n batch"]) -> Float[Array, "*n batch"]:
        return jnp.where(jax.random.bernoulli(keys[i], probability, rows), value, 0.0)

    x_flip = jax.random.bernoulli(keys[0], 0.5, rows).astype(jnp.float32)
    y_flip = sometimes(1, jax.random.bernoulli(keys[2], 0.5, rows).astype(jnp.float32))
    x = jnp.where(x_flip[:, None, None, None] == 1, x[:, :, ::-1], x)
    x = jnp.where(y_flip[:, None, None, None] == 1, x[:, ::-1], x)
    scale = sometimes(3, jax.random.normal(keys[4], rows))
    angle = sometimes(5, jax.random.uniform(keys[6], rows, minval=-jnp.pi, maxval=jnp.pi))
    aniso = sometimes(7, jax.random.normal(keys[8], rows))
    direction = jax.random.uniform(keys[9], rows, minval=-jnp.pi, maxval=jnp.pi)
    direction = jnp.where(jax.random.bernoulli(jax.random.fold_in(keys[9], 1), 0.5, rows), direction, 0.0)
    translation = sometimes(10, jax.random.normal(keys[11], (2, *rows)))

    stretch = jnp.exp2(_STD["aniso"] * aniso)
    diagonal = jnp.stack([1 / stretch, stretch], -1)[:, :, None] * jnp.eye(2)
    linear = rotation(angle) @ rotation(-direction) @ diagonal @ rotation(direction)
    linear = linear * jnp.exp2(-_STD["scale"] * scale)[:, None, None]
    sides = jnp.array([x.shape[2], x.shape[1]], jnp.float32)
    offset = -jnp.einsum("bij,jb->bi", linear, _STD["translate"] * sides[:, None] * translation)
    labels = [x_flip, y_flip, scale, jnp.cos(angle) - 1, jnp.sin(angle)]
    labels += [aniso * jnp.cos(direction), aniso * jnp.sin(direction), translation[0], translation[1]]
    return transformed(x, linear, offset), jnp.stack(labels, -1)


def transformed(
    x: Float[Array, "batch h w c"], linear: Float[Array, "batch 2 2"], offset: Float[Array, "batch 2"]
) -> Float[Array, "batch h w c"]:
    """Affine transformation of images: the output at position p is x at position `linear` p + `offset`.

    Positions are (x, y) from the centre, in pixels. Outside of the image x is continued by one reflection at each
    border, and is zero further out. x is up-sampled by 2 with the symlet filter, interpolated linearly, and
    down-sampled with the same filter.
    """
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (height - 1,) * 2, (width - 1,) * 2, (0, 0)), mode="reflect")
    # The filter delays by five taps, so pixel u of the up-sampled image is at u / 2 of the original. Down-sampling
    # reads five more pixels on each side.
    fine = resample.upfirdn_2d(padded, _SYM6, up=2, pad=(6, 5), gain=2.0)
    down, across = (jnp.arange(-5, 2 * side + 5) / 2 - (side - 1) / 2 for side in (height, width))
    positions = jnp.stack(jnp.meshgrid(across, down, indexing="xy"))
    positions = jnp.einsum("bij,jhw->bihw", linear, positions) + offset[:, :, None, None]
    centre = jnp.array([3 * width - 3, 3 * height - 3], jnp.float32) / 2  # of the padded image
    index = 2 * (positions + centre[:, None, None])

    def sample(image: Float[Array, "h w c"], index: Float[Array, "2 h2 w2"]) -> Float[Array, "h2 w2 c"]:
        rows_and_columns = (index[1], index[0])
        interpolate = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=rows_and_columns, order=1)
        return jax.vmap(interpolate, 2, 2)(image)

    transformed_fine = jax.vmap(sample)(fine, index)
    return resample.upfirdn_2d(transformed_fine, _SYM6[::-1], down=2, gain=2.0)


def rotation(angle: Float[Array, "batch"]) -> Float[Array, "batch 2 2"]:
    """Matrices that rotate (x, y) by `angle`, in radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
