"""How probable is data: log-likelihoods in closed form and by the probability-flow ODE, bounds, dequantization."""

from diffusion_jax.likelihood.bounds import bound_likelihood, continuous_bound, discrete_bound
from diffusion_jax.likelihood.exact import exact_likelihood, iwae_likelihood
from diffusion_jax.likelihood.ode import Likelihood, LogProb, log_prob, ode_likelihood

__all__ = [
    "Likelihood",
    "LogProb",
    "bound_likelihood",
    "continuous_bound",
    "discrete_bound",
    "exact_likelihood",
    "iwae_likelihood",
    "log_prob",
    "ode_likelihood",
]
