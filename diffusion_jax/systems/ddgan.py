"""Denoising diffusion GANs: a few large denoising steps, each by a conditional GAN (arXiv:2112.07804)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax import parameterizations
from diffusion_jax.losses.adversarial import Losses, Penalty, two_player_loss
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes import bcast, perturb, prior, row_keys, sampling_keys
from diffusion_jax.processes.base import row_normal
from diffusion_jax.solvers import sampling
from diffusion_jax.solvers.ancestral import ancestral
from diffusion_jax.solvers.base import posterior, transition
from diffusion_jax.systems.gan import TwoPlayers
from diffusion_jax.types import Apply, Cond, Params, Placed, Process, Solver, Train, check

LATENT = "vector"  # the condition of the network that z is
# G(x_t, t, z) -> x_0, a draw from a distribution and not a mean
Generator = Callable[[Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingDiffusionGan(TwoPlayers):
    """A generator x_0 = G(x_t, t, z) and a discriminator D(x_s, x_t, t) on a process of T = `num_steps` steps.

    With few steps p(x_s | x_t) of neighbouring times s < t is not Gaussian, and has several modes. Here it is the law
    of a draw from q(x_s | x_t, x_0 = G(x_t, t, z)), see `solvers.base.posterior`, with a new z ~ N(0, I) of
    `latent_dim` numbers for every draw. D tells such x_s from those of the forward process, given x_t; t is uniform
    over the T steps. Both players' losses are of the same x_t and z and give one gradient; the authors draw them again
    for the generator and let both players step in turn. R1 differentiates for x_s.

    Parameters are {"network", "discriminator"}. The network reads z as the condition "vector". T evaluations make a
    sample. See `types.System`.

    Raises ValueError for a process without a number of steps, or a `latent_dim` < 1.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    apply: Apply
    init_discriminator: Callable[[Key[Array, ""]], Params]
    # (params, x_s, c_noise of t, {"image": x_t, other conditions}) -> logits
    discriminate: Callable[[Params, Array, Array, Cond], Float[Array, "batch"]]
    process: Process
    param: Parameterization
    losses: Losses
    penalty: Penalty
    latent_dim: int
    shape: tuple[int, ...]  # of one example
    tanh: bool = True  # x_0 is the hyperbolic tangent of the denoiser's output, for data in [-1, 1]
    modality: str = "array"  # kind of data of the example
    network_conditions: Conditions = NO_CONDITIONS  # conditions of both networks, without z and x_t
    batch_size: int = 128  # number of samples that are drawn at once
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.process.num_steps is not None, "process", self.process, "a process of a number of steps")
        check(self.latent_dim >= 1, "latent_dim", self.latent_dim, "at least 1")

    def generator(self, network: Params, cond: Cond = None) -> Generator:
        """G(x_t, t, z) under `cond`, with t a scalar or [batch]."""

        D = parameterizations.denoiser(functools.partial(self.apply, network), self.param, self.process)

        def G(x: Float[Array, "batch *shape"], t: Array, z: Float[Array, "batch z"]) -> Float[Array, "batch *shape"]:
            x_0 = D(x, t, {**(cond or {}), LATENT: z})
            return jnp.tanh(x_0) if self.tanh else x_0

        return G

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The sum of the losses of both players at a random t. Metrics are its parts, and the logits."""
        x_0, cond = batch["x"], self.network_conditions.of(batch)
        step_key, near_key, far_key, latent_key, noise_key = jax.random.split(key, 5)
        step = jax.random.randint(step_key, x_0.shape[:1], 1, self.process.num_steps + 1)
        t, s = (n.astype(jnp.float32) / self.process.num_steps for n in (step, step - 1))
        x_s, _ = perturb(self.process, near_key, x_0, s)
        alpha, variance = transition(self.process, t, s)
        x_t = bcast(alpha, x_0) * x_s + bcast(jnp.sqrt(variance), x_0) * jax.random.normal(far_key, x_0.shape)
        z = jax.random.normal(latent_key, (len(x_0), self.latent_dim))
        a, b, v = (bcast(number, x_0) for number in posterior(self.process, t, s))
        noise = jax.random.normal(noise_key, x_0.shape)
        fake = a * x_t + b * self.generator(params["network"], cond)(x_t, t, z) + jnp.sqrt(v) * noise
        c_noise, given = self.param(self.process, t).c_noise, {**(cond or {}), "image": x_t}
        return two_player_loss(
            self.losses,
            self.penalty,
            lambda params, x: self.discriminate(params, x, c_noise, given),
            params["discriminator"],
            x_s,
            fake,
            None if train is None else train.step,
        )

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples": ...} in T steps. Noise and z of row r come from ids[r] and the number of the step."""
        G = self.generator(params["network"], self.network_conditions.of(cond))
        return {"samples": self.denoised(G, key, ids)}

    def denoised(self, G: Generator, key: Key[Array, ""], ids: Int[Array, "batch"]) -> Float[Array, "batch *shape"]:
        """Samples of the chain x_T, ..., x_0 with p(x_0 | x_t) given by the draws G(x_t, t, z)."""
        prior_key, noise_key = sampling_keys(key)
        x_T = prior(self.process, prior_key, (len(ids), *self.shape), ids=ids)
        total = self.process.num_steps
        times = jnp.arange(total, -1, -1, dtype=jnp.float32) / total
        solver = with_latent(ancestral(), self.latent_dim)
        return sampling.sample(solver, self.process, G, noise_key, x_T, times, ids=ids)

    def evaluations(self) -> int:
        """Evaluations of the generator for one sample (NFE)."""
        return self.process.num_steps


def with_latent(solver: Solver, latent_dim: int) -> Solver:
    """A solver for generators G(x, t, z): each step binds a new z ~ N(0, I) of `latent_dim` numbers for each row."""

    def step(process: Process, G: Generator, keys: Key[Array, "batch"], x: Array, t: Array, s: Array, carry: PyTree):
        z = row_normal(row_keys(keys, 0), jnp.zeros((len(x), latent_dim), x.dtype))
        return solver.step(process, lambda x, t: G(x, t, z), row_keys(keys, 1), x, t, s, carry)

    return solver._replace(step=step)
