"""Flow maps trained from scratch: MeanFlow (arXiv:2505.13447) and shortcut models (arXiv:2410.12557)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.guidance.steering import Model
from diffusion_jax.losses.flow_map import MeanVelocity, Objective, Rows
from diffusion_jax.losses.times import Times
from diffusion_jax.parameterizations import FlowMap, NoiseLabel
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.training import ema
from diffusion_jax.types import Cond, Params, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMapModel(Diffusion):
    """A diffusion model of straight paths whose network also knows the mean velocity between two times.

    `apply` takes c_noise [batch, 2], the labels of t and of the gap t - s. Its denoiser is a `FlowMap`, which the
    solver `flow_map` samples in one or a few steps; all other solvers, guidance and likelihoods use D(x, t) = x - t v
    with v = u(x, t, t). Parameters are {"network": ...}, and {"frozen": {"target": ...}} for an `objective` with a
    target network, which is updated by EMA. Held-out examples are evaluated by `loss_fn`, flow matching. See
    `diffusion_jax.types.System`.

    Raises ValueError for a `target_rate` outside [0, 1).
    """

    objective: Objective
    times: Times  # of training
    label: NoiseLabel  # of t and of t - s; 0 for 0
    target_rate: float = 0.999  # decay per step of the average of the parameters that targets are computed with

    def __post_init__(self) -> None:
        if not 0 <= self.target_rate < 1:
            raise ValueError(f"target_rate is {self.target_rate}; it must be in [0, 1)")

    def init(self, key: Key[Array, ""]) -> Params:
        params = super().init(key)
        if not self.objective.averaged:
            return params
        return {**params, "frozen": {"target": jax.tree.map(jnp.copy, params["network"])}}

    def mean_velocity(self, network: Params, key: Key[Array, ""] | None = None) -> MeanVelocity:
        """u(x, t, s, cond) for the parameters `network`; `key` is that of dropout."""

        def u(x: Array, t: Array, s: Array, cond: Cond = None) -> Array:
            t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, s))
            gap = jnp.maximum(t - s, self.objective.least_gap) if self.objective.least_gap else t - s
            labels = jnp.stack([self.label(self.process, time) for time in (t, gap)], axis=-1)
            return self.apply(network, x, labels, cond, key=key)

        return u

    def model(self, params: Params, cond: Cond = None) -> Model:
        """The flow map of the network, with the embedded condition and null condition."""
        return super().model(params, cond)._replace(D=FlowMap(self.mean_velocity(params["network"])))

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The loss of the objective with its metrics; in evaluation that of flow matching."""
        if train is None:
            return super().loss(params, key, batch, train)
        loss_key, drop_key, dropout_key = jax.random.split(key, 3)
        conditions, num = self.network_conditions, len(batch["x"])
        full = conditions.of(batch)
        rows = Rows(
            x_0=batch["x"],
            cond=conditions.dropped(drop_key, full, self.cond_dropout),
            full=full,
            null=conditions.null(num),
            dropped=conditions.dropped_rows(drop_key, self.cond_dropout, num),
        )
        target = params["frozen"]["target"] if self.objective.averaged else params["network"]
        u, target = self.mean_velocity(params["network"], dropout_key), self.mean_velocity(target)
        return self.objective.loss(u, target, self.times, self.process, loss_key, rows)

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        """The target network follows the trained one: target <- rate target + (1 - rate) network."""
        if not self.objective.averaged:
            return params
        target = ema.follow(params["frozen"]["target"], params["network"], self.target_rate)
        return {**params, "frozen": {"target": target}}
