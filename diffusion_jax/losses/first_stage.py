"""What autoencoders are trained for: reconstruction, likelihood, perceptual distance, adversarial losses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from diffusion_jax.losses.adversarial import non_saturating

RECONSTRUCTIONS = {"l1": jnp.abs, "l2": jnp.square}


def reconstruction(
    name: str,
) -> Callable[[Float[Array, "batch *shape"], Float[Array, "batch *shape"]], Float[Array, "batch"]]:
    """Mean of |x - y| ("l1") or (x - y)^2 ("l2") over all but the first axis. ValueError for another name."""
    if name not in RECONSTRUCTIONS:
        raise ValueError(f"reconstruction={name!r} is unknown; choose one of {', '.join(RECONSTRUCTIONS)}")
    return lambda x, y: RECONSTRUCTIONS[name](x - y).mean(tuple(range(1, x.ndim)))


def gaussian_likelihood(
    log_sigma: Float[Array, "*#shape"],
) -> Callable[[Float[Array, "batch *shape"], Float[Array, "batch *shape"]], Float[Array, "batch"]]:
    """-log N(x; y, sigma^2) in nats, the mean over all but the first axis: the decoder of a VAE with learned noise.

    (x - y)^2 / (2 sigma^2) + log sigma + log(2 pi) / 2. `log_sigma` is one number, or one for each value of x. Trained
    with y, sigma^2 becomes the mean squared error, which weighs reconstruction and KL against each other as the ELBO
    does, without a weight to choose (sigma-VAE, arXiv:2006.13202).
    """

    def nats(x: Array, y: Array) -> Float[Array, "batch"]:
        terms = 0.5 * jnp.square((x - y) * jnp.exp(-log_sigma)) + log_sigma + 0.5 * jnp.log(2 * jnp.pi)
        return terms.mean(tuple(range(1, x.ndim)))

    return nats


def laplacian(x: Float[Array, "batch h w c"], y: Float[Array, "batch h w c"]) -> Float[Array, "batch"]:
    """Distance of Laplacian pyramids, sum_j mean |L_j(x) - L_j(y)|: a perceptual distance without weights.

    L_j are the levels of detail from fine to coarse: each is an image less its average over 2 x 2 pixels, which the
    next level takes apart, down to where a side is odd or 1. Lost edges and contrast weigh more in it than in the mean
    difference of pixels. It is Lap_1 of arXiv:1707.05776 (section 3), whose factor 4^j makes means of sums, with
    averages over 2 x 2 pixels for the Gaussian filter.
    """
    total, rest = jnp.zeros(len(x)), x - y
    while rest.shape[1] > 1 and not (rest.shape[1] % 2 or rest.shape[2] % 2):
        batch, h, w, c = rest.shape
        coarse = rest.reshape(batch, h // 2, 2, w // 2, 2, c).mean((2, 4))
        detail = rest.reshape(batch, h // 2, 2, w // 2, 2, c) - coarse[:, :, None, :, None]
        total, rest = total + jnp.abs(detail).mean((1, 2, 3, 4, 5)), coarse
    return total + jnp.abs(rest).mean((1, 2, 3))


def hinge(real: Float[Array, "batch *n"], fake: Float[Array, "batch *n"]) -> Float[Array, "batch"]:
    """The discriminator's loss on logits, (relu(1 - real) + relu(1 + fake)) / 2 (arXiv:1705.02894)."""
    axes = tuple(range(1, real.ndim))
    return 0.5 * (jax.nn.relu(1 - real).mean(axes) + jax.nn.relu(1 + fake).mean(axes))


def vanilla(real: Float[Array, "batch *n"], fake: Float[Array, "batch *n"]) -> Float[Array, "batch"]:
    """The discriminator's loss on logits, (softplus(-real) + softplus(fake)) / 2 (arXiv:1406.2661)."""
    return 0.5 * non_saturating(real, fake).mean(tuple(range(1, real.ndim)))


DISCRIMINATOR_LOSSES = {"hinge": hinge, "vanilla": vanilla}


def generator_loss(fake: Float[Array, "batch *n"]) -> Float[Array, "batch"]:
    """The generator loss of an autoencoder: minus the mean logit of its reconstruction (arXiv:2012.09841)."""
    return -fake.mean(tuple(range(1, fake.ndim)))


def adaptive_weight(reconstruction_gradient: PyTree[Array], generator_gradient: PyTree[Array]) -> Float[Array, ""]:
    """lambda = |grad L_rec| / (|grad L_GAN| + 1e-4), at most 1e4 (arXiv:2012.09841, eq. 7).

    The gradients are those for the decoder's last layer. With it, neither loss drowns the other whatever their scales.
    No gradient passes.
    """
    ratio = optax.global_norm(reconstruction_gradient) / (optax.global_norm(generator_gradient) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))
