"""Variational diffusion models: network and noise schedule, trained together on the variational bound.

arXiv:2107.00630.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.likelihood.dequantization import to_levels
from diffusion_jax.losses import times, vdm
from diffusion_jax.processes import LearnedVP, row_keys, row_normal
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDM(OnDiffusion):
    """Train the network of `diffusion` and its noise schedule, a `LearnedVP`, on the bound of `losses.vdm`.

    The loss is in bits per dimension. Parameters are {"network": ..., "schedule": {the fields of LearnedVP}}. Training
    starts from the process of `diffusion`, whose sampler then uses the learned process; its loss is not used. Batches
    hold images with `levels` grey levels, x = 2 k / (levels - 1) - 1. See `diffusion_jax.types.System`.

    Raises ValueError for a process without a learned schedule or a number out of range.
    """

    diffusion: Diffusion
    levels: int = 256
    num_steps: int = 0  # number T of steps of the bound; 0: continuous time
    minimize_variance: bool = True  # train the schedule between its ends for the variance of the loss (continuous time)
    num_times: int = 16  # number of times at which `evaluate` estimates the diffusion loss of an example

    def __post_init__(self) -> None:
        if not isinstance(self.diffusion.process, LearnedVP):
            raise ValueError(f"the process is {type(self.diffusion.process).__name__}; VDM learns a LearnedVP")
        if self.levels < 2 or self.num_steps < 0 or self.num_times < 1:
            raise ValueError(
                f"levels={self.levels}, num_steps={self.num_steps}, num_times={self.num_times}: they must be at least "
                "2, 0 (for continuous time) and 1"
            )

    def init(self, key: Key[Array, ""]) -> Params:
        start = self.diffusion.process
        fields = {field.name: getattr(start, field.name) for field in dataclasses.fields(start)}
        schedule = {name: jnp.asarray(value, jnp.float32) for name, value in fields.items() if value is not None}
        return {**self.diffusion.init(key), "schedule": schedule}

    def process(self, params: Params) -> LearnedVP:
        """The process with the learned noise schedule."""
        return LearnedVP(**params["schedule"])

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The bound, estimated with one time per example; times are spread evenly over the batch.

        Metrics are its parts "reconstruction", "prior" and "diffusion", and the ends "gamma_0" and "gamma_1" of gamma.
        """
        time_key, noise_key, diffusion_key = jax.random.split(key, 3)
        process, x_0 = self.process(params), self._on_levels(batch["x"])
        u, _ = times.low_discrepancy(t_min=0.0)(process, time_key, x_0.shape[0])
        eps = jax.random.normal(noise_key, x_0.shape, x_0.dtype)
        cond = self.diffusion.network_conditions.of(batch)
        diffusion = self._diffusion_loss(
            params["network"], process, diffusion_key, x_0, self._time(u), cond, train=train is not None
        )
        parts = self._other_parts(process, eps, x_0) | {"diffusion": diffusion}
        return sum(parts.values()), parts | {"gamma_0": process.gamma_0, "gamma_1": process.gamma_1}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns "bits_per_dim" of held-out examples, its parts, and the values of the likelihood of `diffusion`.

        The bound is estimated with `num_times` evenly spread times for each example. Its parts are "reconstruction",
        "prior" and "diffusion".
        """
        process, x_0 = self.process(params), self._on_levels(batch["x"])
        cond = self.diffusion.network_conditions.of(batch)
        keys = row_keys(key, jnp.arange(x_0.shape[0]))

        def row(key: Array, x: Array, cond: Cond) -> Array:
            time_key, noise_key = jax.random.split(key)
            offset = jax.random.uniform(time_key)
            one = jax.tree.map(lambda c: c[None], cond)

            def estimate(k: Array) -> Array:
                t = self._time((offset + k) / self.num_times)[None]
                arguments = (jax.random.fold_in(noise_key, k), x[None], t, one)
                return self._diffusion_loss(params["network"], process, *arguments, train=False)[0]

            return jnp.mean(jax.lax.map(estimate, jnp.arange(self.num_times)))

        parts = self._other_parts(process, row_normal(row_keys(keys, self.num_times), x_0), x_0)
        parts["diffusion"] = jax.vmap(row)(keys, x_0, cond)
        metrics = {"bits_per_dim": sum(parts.values()), **parts}
        if self.diffusion.likelihood:
            D = self.at(params).unguided.denoiser(params, cond)
            others = self.diffusion.likelihood(process, D, jax.random.fold_in(key, 1), batch["x"])
            metrics |= {f"likelihood_{name}": value for name, value in others.items()}
        return metrics

    def at(self, params: Params) -> Diffusion:
        """The diffusion system with the learned process."""
        return dataclasses.replace(self.diffusion, process=self.process(params))

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) under the learned process, see `Diffusion.denoiser`."""
        return self.at(params).denoiser(params, cond, numbers)

    @property
    def networks(self) -> Mapping[str, Placed]:
        return self.diffusion.networks

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw samples as `Diffusion.draw` does, with the learned process."""
        return self.at(params).draw(params, key, ids, cond, numbers)

    @property
    def _diffusion_loss(self) -> vdm.DiffusionLoss:
        return vdm.diffusion_loss(
            self.diffusion.apply,
            self.diffusion.param,
            num_steps=self.num_steps,
            minimize_variance=self.minimize_variance,
        )

    def _other_parts(self, process: LearnedVP, eps: Array, x_0: Array) -> dict[str, Array]:
        return {
            "reconstruction": vdm.reconstruction(process, eps, x_0, self.levels),
            "prior": vdm.prior(process, x_0),
        }

    def _time(self, u: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Maps u in [0, 1) to the time of the bound: u itself, or with T steps i / T, i = 1..T."""
        return jnp.minimum(jnp.floor(u * self.num_steps) + 1, self.num_steps) / self.num_steps if self.num_steps else u

    def _on_levels(self, x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        return 2 * to_levels(x, self.levels).astype(x.dtype) / (self.levels - 1) - 1
