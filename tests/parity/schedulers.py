"""Schedulers of diffusers beside our solvers: one exact network, one loop, and the way between the two times.

Both sides evaluate the same function of the noisy input and of the noise-to-signal ratio sigma / alpha: the exact
denoiser of a mixture. So neither the rounding of timesteps nor the embedding of a network is in the comparison, and
what is left is the arithmetic of the samplers. Call everything under `jax.enable_x64(True)`.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.processes import EDM, DiscreteVP, beta_table, time_of_log_snr
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import Process, Solver, pytree
from tests.oracles import Mixture

DATA = Mixture(
    weights=np.array([0.3, 0.5, 0.2]),
    means=np.array([[-1.0, 0.5, 0.2, -0.4], [1.0, 0.0, -0.7, 0.6], [0.3, -1.0, 0.8, 0.1]]),
    variances=np.array([0.04, 0.02, 0.09]),
)
BATCH = 8


@pytree
class RatioVP:
    """The variance-preserving process whose time is the ratio sigma / alpha itself, of any size."""

    num_steps = None

    def alpha(self, t):
        return 1 / jnp.sqrt(1 + t**2)

    def sigma(self, t):
        return t / jnp.sqrt(1 + t**2)


def full_order():
    """A context in which multistep solvers go through all their past values, however long the step."""
    return mock.patch("diffusion_jax.solvers.exponential.GROWTH", 1e9)


def ratio_of_table(scheduler: Any, timestep: int) -> float:
    """sigma / alpha of entry `timestep` of the scheduler's own table; timesteps below 0 stand for the data."""
    if timestep < 0:
        return 0.0
    alpha_bar = float(scheduler.alphas_cumprod[timestep])
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


def ratios(scheduler: Any) -> np.ndarray:
    """sigma / alpha where the scheduler evaluates the network, call by call: its sigmas, or its table's."""
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas.numpy().astype(np.float64)[: len(scheduler.timesteps)]
    return np.array([ratio_of_table(scheduler, int(t)) for t in scheduler.timesteps])


# What the network of a scheduler returns, given its scaled input and sigma / alpha.


@jax.jit
def predict_eps(x, ratio):
    """E[eps | x] for x = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1."""
    process = RatioVP()
    return (x - process.alpha(ratio) * DATA.denoiser(process)(x, ratio)) / process.sigma(ratio)


@jax.jit
def predict_edm(x, ratio, sigma_data=0.5):
    """F of EDM's preconditioning for x = c_in (x_0 + ratio eps), so that D = c_skip x / c_in + c_out F."""
    norm = jnp.sqrt(ratio**2 + sigma_data**2)
    noisy = x * norm
    D = DATA.denoiser(EDM(sigma_min=0.0, sigma_max=1.0))(noisy, ratio)
    return (D - sigma_data**2 / norm**2 * noisy) * norm / (ratio * sigma_data)


@jax.jit
def predict_velocity(x, sigma):
    """E[eps - x_0 | x] for x = (1 - sigma) x_0 + sigma eps; here the scheduler's sigma is not sigma / alpha."""
    process = RatioVP()
    scale = jnp.sqrt((1 - sigma) ** 2 + sigma**2)
    D = DATA.denoiser(process)(x / scale, sigma / (1 - sigma))
    return jnp.where(sigma < 1, (x - D) / sigma, x - jnp.asarray(DATA.weights) @ jnp.asarray(DATA.means))


def run_scheduler(
    scheduler: Any,
    x: np.ndarray,
    *,
    network: Callable[..., Any] = predict_eps,
    noises: Callable[[int], Any] | None = None,
    levels: np.ndarray | None = None,
    **step_arguments: Any,
) -> np.ndarray:
    """The final sample of a scheduler whose `set_timesteps` has been called, from x in its own scaling.

    `noises(i)` replaces its i-th draw of Gaussian noise, counted from 0. `levels` are the ratios at which the network
    is evaluated call by call (default: `ratios(scheduler)`).
    """
    import torch

    levels = ratios(scheduler) if levels is None else levels
    x = torch.tensor(np.asarray(x, np.float64))
    with injected(scheduler, noises):
        for timestep, level in zip(scheduler.timesteps, levels, strict=True):
            scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
            output = torch.tensor(np.array(network(scaled.numpy().astype(np.float64), level)))
            x = scheduler.step(output, timestep, x, **step_arguments).prev_sample
    return x.numpy()


@contextlib.contextmanager
def injected(scheduler: Any, noises: Callable[[int], Any] | None):
    """Let the module of `scheduler` draw noises(0), noises(1), ... instead of random numbers; or nothing at all."""
    import torch

    count = itertools.count()

    def draw(shape, *args, dtype=None, **kwargs):
        assert noises is not None, f"{type(scheduler).__name__} draws noise, but is compared without"
        noise = torch.tensor(np.array(noises(next(count))), dtype=dtype)
        assert noise.shape == torch.Size(shape)
        return noise

    with mock.patch.object(sys.modules[type(scheduler).__module__], "randn_tensor", draw, create=True):
        yield


def times_of(process: Process, sigmas_over_alphas: np.ndarray) -> jax.Array:
    """The times of `process` with these sigma / alpha; 0 belongs to t = 0."""
    values = jnp.asarray(sigmas_over_alphas, jnp.float64)
    times = time_of_log_snr(process, -2 * jnp.log(values))
    return jnp.where(values == 0, 0.0, times)


def run_solver(solver: Solver, process: Process, times: Any, x: np.ndarray, key: jax.Array | None = None) -> np.ndarray:
    """The final sample of one of our solvers, from x in the scaling of `process`, with the exact denoiser."""
    key = jax.random.key(0) if key is None else key
    times, x = jnp.asarray(times, jnp.float64), jnp.asarray(x, jnp.float64)
    D = DATA.denoiser(process)
    return np.asarray(jax.jit(lambda x: sample(solver, process, D, key, x, times))(x))


def start() -> np.ndarray:
    """Unit Gaussian noise [BATCH, 4] in float64."""
    return np.random.default_rng(0).standard_normal((BATCH, DATA.means.shape[1]))


def table(betas: str = "linear") -> tuple[DiscreteVP, dict[str, Any]]:
    """A process of 1000 betas, and the arguments that give a scheduler the same."""
    values = beta_table(betas)
    return DiscreteVP.from_betas(values), {"trained_betas": values.tolist(), "num_train_timesteps": len(values)}
