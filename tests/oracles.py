"""Data distributions under which every quantity of a diffusion model is known in closed form.

With x_0 from a Gaussian or a mixture of Gaussians, x_t = alpha x_0 + sigma eps is again one, so the marginal density,
its score, the denoiser E[x_0 | x_t] and (for a Gaussian in any dimension, for a mixture in one) the flow of the
probability-flow ODE are formulas. Rows are vectors [batch, d]; t is a scalar or [batch].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes import EDM, VE, VP, Cosine, DiscreteVP, RectifiedFlow, SubVP, bcast, beta_table
from diffusion_jax.types import Denoiser, Process, pytree

PROCESSES = {
    "vp": VP(),
    "sub_vp": SubVP(),
    "ve": VE(),
    "cosine": Cosine(),
    "edm": EDM(),
    "rectified_flow": RectifiedFlow(),
    "discrete_vp": DiscreteVP.from_betas(beta_table("linear")),
}


@pytree
class Gaussian:
    """x_0 ~ N(mean, covariance), mean [d], covariance [d, d]."""

    mean: Array
    covariance: Array

    def sample(self, key: Array, n: int) -> Array:
        return jax.random.multivariate_normal(key, self.mean, self.covariance, (n,))

    def marginal(self, process: Process, t: Array) -> tuple[Array, Array]:
        """(mean, covariance) of x_t."""
        alpha, sigma = process.alpha(t)[..., None], process.sigma(t)[..., None, None]
        identity = jnp.eye(self.mean.size)
        return alpha * self.mean, alpha[..., None] ** 2 * self.covariance + sigma**2 * identity

    def log_prob(self, process: Process, x: Array, t: Array) -> Array:
        mean, covariance = self.marginal(process, t)
        return jax.vmap(jax.scipy.stats.multivariate_normal.logpdf)(
            x, jnp.broadcast_to(mean, x.shape), jnp.broadcast_to(covariance, (*x.shape, x.shape[-1]))
        )

    def score(self, process: Process, x: Array, t: Array) -> Array:
        mean, covariance = self.marginal(process, t)
        return -jnp.linalg.solve(covariance, (x - mean)[..., None])[..., 0]

    def denoiser(self, process: Process) -> Denoiser:
        """D(x, t) = mean + alpha covariance Cov[x_t]^-1 (x - alpha mean)."""

        def D(x: Array, t: Array, cond=None) -> Array:
            return self.mean - bcast(process.alpha(t), x) * self.score(process, x, t) @ self.covariance

        return D

    def posterior_variance(self, process: Process, t: Array) -> Array:
        """E |x_0 - D(x_t, t)|^2 summed over dimensions: the trace of (C^-1 + SNR I)^-1."""
        snr = ((process.alpha(t) / process.sigma(t)) ** 2)[..., None]
        variances = jnp.linalg.eigvalsh(self.covariance)
        return jnp.sum(variances / (1 + snr * variances), axis=-1)

    def flow(self, process: Process, x: Array, t: Array, s: Array) -> Array:
        """Where the probability-flow ODE carries x from t to s: standardised coordinates do not change."""
        variances, axes = jnp.linalg.eigh(self.covariance)
        deviation = jnp.sqrt(process.alpha(t) ** 2 * variances + process.sigma(t) ** 2)
        standard = (x - process.alpha(t) * self.mean) @ axes / deviation
        deviation = jnp.sqrt(process.alpha(s) ** 2 * variances + process.sigma(s) ** 2)
        return process.alpha(s) * self.mean + (standard * deviation) @ axes.T


@pytree
class Mixture:
    """x_0 ~ sum_k weights_k N(means_k, variances_k I): weights [k], means [k, d], variances [k]."""

    weights: Array
    means: Array
    variances: Array

    def sample(self, key: Array, n: int) -> Array:
        component_key, noise_key = jax.random.split(key)
        component = jax.random.choice(component_key, self.weights.size, (n,), p=self.weights)
        noise = jax.random.normal(noise_key, (n, self.means.shape[1]))
        return self.means[component] + jnp.sqrt(self.variances)[component, None] * noise

    def at(self, process: Process, t: Array) -> "Mixture":
        """The mixture that x_t is, for scalar t."""
        variances = process.alpha(t) ** 2 * self.variances + process.sigma(t) ** 2
        return Mixture(weights=self.weights, means=process.alpha(t) * self.means, variances=variances)

    def component_log_probs(self, process: Process, x: Array, t: Array) -> Array:
        """log(weights_k p(x_t | k)) [batch, k]."""
        alpha, sigma = process.alpha(t)[..., None], process.sigma(t)[..., None]
        variances = alpha**2 * self.variances + sigma**2
        squares = jnp.sum((x[:, None] - alpha[..., None] * self.means) ** 2, axis=-1)
        return jnp.log(self.weights) - squares / (2 * variances) - x.shape[1] / 2 * jnp.log(2 * jnp.pi * variances)

    def log_prob(self, process: Process, x: Array, t: Array) -> Array:
        return jax.nn.logsumexp(self.component_log_probs(process, x, t), axis=-1)

    def denoiser(self, process: Process) -> Denoiser:
        """D(x, t): the components' own posterior means, averaged with their posterior probabilities."""

        def D(x: Array, t: Array, cond=None) -> Array:
            probability = jax.nn.softmax(self.component_log_probs(process, x, t), axis=-1)
            alpha, sigma = process.alpha(t)[..., None, None], process.sigma(t)[..., None, None]
            variances = self.variances[:, None]
            gain = alpha * variances / (alpha**2 * variances + sigma**2)
            posterior_means = self.means + gain * (x[:, None] - alpha * self.means)
            return jnp.sum(probability[..., None] * posterior_means, axis=1)

        return D

    def cdf(self, process: Process, x: Array, t: Array) -> Array:
        """Distribution function of a one-dimensional mixture at scalar t; the flow leaves it unchanged."""
        now = self.at(process, t)
        return norm.cdf((x - now.means[:, 0]) / jnp.sqrt(now.variances)) @ now.weights


def network_of(
    D: Denoiser,
    param: Parameterization,
    process: Process,
    time_of_label: Callable[[Array], Array] = lambda label: label / 999,
) -> Callable[..., Array]:
    """The network F(x, c_noise, cond) with which `param` gives exactly the denoiser D.

    `time_of_label` undoes the parameterization's c_noise; the default belongs to `time_label`.
    """

    def network(x_in: Array, c_noise: Array, cond=None, *, key=None) -> Array:
        t = time_of_label(c_noise)
        c = param(process, t)
        x = x_in / bcast(c.c_in, x_in)
        return (D(x, t) - bcast(c.c_skip, x) * x) / bcast(c.c_out, x)

    return network
