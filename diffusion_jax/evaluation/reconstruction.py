"""How near an image is to the original: PSNR and SSIM."""

import jax.numpy as jnp
from jaxtyping import Array, Float

_WINDOW = 11  # pixels, of images that are as large
_SIGMA = 1.5  # of the window's Gaussian weights, in pixels
_RANGE = 2.0  # of values in [-1, 1]


def psnr(x: Float[Array, "batch h w c"], y: Float[Array, "batch h w c"]) -> Float[Array, "batch"]:
    """Peak signal-to-noise ratio, 10 log10(2^2 / mean (x - y)^2) in dB for values in [-1, 1]; at most 100."""
    error = jnp.square(x - y).mean((1, 2, 3))
    return 10 * jnp.log10(_RANGE**2 / jnp.maximum(error, _RANGE**2 * 1e-10))


def ssim(x: Float[Array, "batch h w c"], y: Float[Array, "batch h w c"]) -> Float[Array, "batch"]:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over positions and channels, for values in [-1, 1].

    The window has Gaussian weights of standard deviation 1.5 in 11 x 11 pixels, or as many, odd, as a smaller image
    has; only windows that lie inside the image count. K_1 = 0.01, K_2 = 0.03.
    """
    side = min(_WINDOW, *(n - 1 + n % 2 for n in x.shape[1:3]))
    distance = jnp.arange(side) - side // 2
    weights = jnp.exp(-0.5 * jnp.square(distance / _SIGMA))
    weights = weights / weights.sum()

    def blur(a: Array) -> Array:
        windows = a.shape[1] - side + 1, a.shape[2] - side + 1
        a = sum(weights[i] * a[:, i : i + windows[0]] for i in range(side))
        return sum(weights[i] * a[:, :, i : i + windows[1]] for i in range(side))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c_1, c_2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    structure = (2 * covariance + c_2) / (var_x + var_y + c_2)
    return (luminance * structure).mean((1, 2, 3))
