"""The Schroedinger bridge between two Gaussians in closed form: a reference for learned ones, and their start."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.types import pytree


@pytree
class GaussianBridge:
    """The Schroedinger bridge between N(mean_0, A) and N(mean_1, B) for Brownian motion of variance s2 at t = 1.

    The ends have the covariance C = Cov(x_0, x_1) = (A^1/2 D A^-1/2 - s2 I) / 2 with D = (4 A^1/2 B A^1/2 + s2^2
    I)^1/2, and x_t given the ends is the Brownian bridge. For s2 -> 0 it is optimal transport. arXiv:2202.05722. Rows
    are vectors [batch, d]; A and B are positive definite [d, d].
    """

    mean_0: Float[Array, "d"]
    mean_1: Float[Array, "d"]
    covariance_0: Float[Array, "d d"]
    covariance_1: Float[Array, "d d"]
    variance: Float[Array, ""]

    @property
    def coupling(self) -> Float[Array, "d d"]:
        """C = Cov(x_0, x_1)."""
        root, inverse = _power(self.covariance_0, 0.5), _power(self.covariance_0, -0.5)
        identity = jnp.eye(len(self.covariance_0))
        d = _power(4 * root @ self.covariance_1 @ root + self.variance**2 * identity, 0.5)
        return (root @ d @ inverse - self.variance * identity) / 2

    def marginal(self, t: Float[Array, ""]) -> tuple[Float[Array, "d"], Float[Array, "d d"]]:
        """(mean, covariance) of x_t."""
        c = self.coupling
        between = c + c.T + self.variance * jnp.eye(len(c))
        covariance = (1 - t) ** 2 * self.covariance_0 + t**2 * self.covariance_1 + t * (1 - t) * between
        return (1 - t) * self.mean_0 + t * self.mean_1, covariance

    def backward(self, x: Float[Array, "batch d"], t: Float[Array, ""]) -> Float[Array, "batch d"]:
        """The denoiser E[x_0 | x_t], which leads to x_0."""
        mean, covariance = self.marginal(t)
        gain = ((1 - t) * self.covariance_0 + t * self.coupling) @ jnp.linalg.inv(covariance)
        return self.mean_0 + (x - mean) @ gain.T

    def forward(self, x: Float[Array, "batch d"], u: Float[Array, ""]) -> Float[Array, "batch d"]:
        """The denoiser E[x_1 | x_t], which leads to x_1, at u = 1 - t: the time of `Reversed`."""
        t = 1 - u
        mean, covariance = self.marginal(t)
        gain = ((1 - t) * self.coupling.T + t * self.covariance_1) @ jnp.linalg.inv(covariance)
        return self.mean_1 + (x - mean) @ gain.T

    def end_given_start(
        self, direction: str, x: Float[Array, "batch d"], noise: Float[Array, "batch d"]
    ) -> Float[Array, "batch d"]:
        """Sample x_0 given x_1 = x for the `direction` "backward", x_1 given x_0 = x for "forward"; of normal noise.

        x_1 given x_0 is N(mean_1 + C' A^-1 (x_0 - mean_0), B - C' A^-1 C), and alike for x_0.
        """
        ends = ((self.mean_0, self.covariance_0), (self.mean_1, self.covariance_1))
        c = self.coupling
        (start, a), (end, b), c = (*ends, c) if direction == "forward" else (*ends[::-1], c.T)
        gain = jnp.linalg.solve(a, c).T
        return end + (x - start) @ gain.T + noise @ _power(b - gain @ c, 0.5)


def _power(matrix: Float[Array, "d d"], exponent: float) -> Float[Array, "d d"]:
    values, axes = jnp.linalg.eigh((matrix + matrix.T) / 2)
    values = jnp.maximum(values, 1e-12)  # rounding makes small eigenvalues negative
    return (axes * values**exponent) @ axes.T
