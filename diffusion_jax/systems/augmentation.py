"""Augmentation that the network is told of, and so does not draw (arXiv:2206.00364, appendix F.2; arXiv:2006.06676)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.networks import resample

DIM = 9  # numbers that an image's augmentation is told in
_STD = {"scale": 0.2, "aniso": 0.2, "translate": 0.125}  # of log2 s, of log2 s, and over the side of the image
# The low-pass filter of the symlet of 12 taps. Their orthogonality makes down-sampling the inverse of up-sampling.
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
    """EDM's augmentation: images, and what was done to each.

    Half of the images are mirrored. Beside that, each with `probability`: turned upside down or not, scaled by
    2^(0.2 n), rotated by any angle, stretched by 2^(0.2 n) along one direction as it is shrunk along the other, and
    moved by 0.125 n of its sides, n ~ N(0, 1). What was done is (mirrored, upside down, n, cos angle - 1, sin angle,
    n cos direction, n sin direction, n, n), so that zeros stand for an image that is as it was. Images are float32.
    """
    keys, rows = jax.random.split(key, 12), x.shape[:1]

    def sometimes(i: int, value: Float[Array, "*n batch"]) -> Float[Array, "*n batch"]:
        return jnp.where(jax.random.bernoulli(keys[i], probability, rows), value, 0.0)

    mirrored = jax.random.bernoulli(keys[0], 0.5, rows).astype(jnp.float32)
    upside = sometimes(1, jax.random.bernoulli(keys[2], 0.5, rows).astype(jnp.float32))
    x = jnp.where(mirrored[:, None, None, None] == 1, x[:, :, ::-1], x)
    x = jnp.where(upside[:, None, None, None] == 1, x[:, ::-1], x)
    scale = sometimes(3, jax.random.normal(keys[4], rows))
    angle = sometimes(5, jax.random.uniform(keys[6], rows, minval=-jnp.pi, maxval=jnp.pi))
    aniso = sometimes(7, jax.random.normal(keys[8], rows))
    direction = jax.random.uniform(keys[9], rows, minval=-jnp.pi, maxval=jnp.pi)
    direction = jnp.where(jax.random.bernoulli(jax.random.fold_in(keys[9], 1), 0.5, rows), direction, 0.0)
    move = sometimes(10, jax.random.normal(keys[11], (2, *rows)))

    stretch = jnp.exp2(_STD["aniso"] * aniso)
    diagonal = jnp.stack([1 / stretch, stretch], -1)[:, :, None] * jnp.eye(2)
    linear = rotation(angle) @ rotation(-direction) @ diagonal @ rotation(direction)
    linear = linear * jnp.exp2(-_STD["scale"] * scale)[:, None, None]
    sides = jnp.array([x.shape[2], x.shape[1]], jnp.float32)
    offset = -jnp.einsum("bij,jb->bi", linear, _STD["translate"] * sides[:, None] * move)
    told = [mirrored, upside, scale, jnp.cos(angle) - 1, jnp.sin(angle)]
    told += [aniso * jnp.cos(direction), aniso * jnp.sin(direction), move[0], move[1]]
    return transformed(x, linear, offset), jnp.stack(told, -1)


def transformed(
    x: Float[Array, "batch h w c"], linear: Float[Array, "batch 2 2"], offset: Float[Array, "batch 2"]
) -> Float[Array, "batch h w c"]:
    """Images whose place p shows what x has at `linear` p + `offset`.

    Places are (across, down) from the centre, in pixels. x goes on by reflection, once in each direction, and is zero
    beyond. It is interpolated linearly between pixels of twice the resolution, and filtered on both ways.
    """
    _, height, width, _ = x.shape
    wide = jnp.pad(x, ((0, 0), (height - 1,) * 2, (width - 1,) * 2, (0, 0)), mode="reflect")
    # Pixel u of the finer image lies at u / 2 of the coarser, as the filter delays by five of its taps. That on the way
    # back reads five pixels more on both sides.
    fine = resample.upfirdn_2d(wide, _SYM6, up=2, pad=(6, 5), gain=2.0)
    down, across = (jnp.arange(-5, 2 * side + 5) / 2 - (side - 1) / 2 for side in (height, width))
    places = jnp.stack(jnp.meshgrid(across, down, indexing="xy"))
    places = jnp.einsum("bij,jhw->bihw", linear, places) + offset[:, :, None, None]
    centre = jnp.array([3 * width - 3, 3 * height - 3], jnp.float32) / 2  # of the wide image
    index = 2 * (places + centre[:, None, None])

    def sample(image: Float[Array, "h w c"], index: Float[Array, "2 h2 w2"]) -> Float[Array, "h2 w2 c"]:
        places = (index[1], index[0])
        return jax.vmap(lambda channel: jax.scipy.ndimage.map_coordinates(channel, places, order=1), 2, 2)(image)

    moved = jax.vmap(sample)(fine, index)
    return resample.upfirdn_2d(moved, _SYM6[::-1], down=2, gain=2.0)


def rotation(angle: Float[Array, "batch"]) -> Float[Array, "batch 2 2"]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
