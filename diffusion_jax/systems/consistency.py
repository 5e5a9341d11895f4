"""Consistency models: one network evaluation from noise to data, distilled from a teacher or trained alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax import parameterizations
from diffusion_jax.losses import consistency
from diffusion_jax.losses.consistency import Distance
from diffusion_jax.losses.denoising import Loss
from diffusion_jax.losses.intervals import Schedule
from diffusion_jax.losses.times import Times
from diffusion_jax.networks.conditioning import guided
from diffusion_jax.processes import bcast, perturb, row_keys, time_derivative
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.teacher import Teacher
from diffusion_jax.training import ema
from diffusion_jax.types import Cond, Denoiser, Params, Solver, Train

_FEATURES = 8  # of the time, in the learned weight of the loss in continuous time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student(Diffusion):
    """A diffusion system whose network learns a consistency function f(x_t, t), at `times`, maybe from a `teacher`.

    The same parameterization and process make f of the network, as the denoiser D(x_t, t), and draw samples, see
    `solvers.consistency`. Parameters are {"network": ...}, with a teacher also {"frozen": {"teacher": ...}}. `loss_fn`
    is unused.
    """

    loss_fn: Loss | None = None
    times: Times
    teacher: Teacher | None = None
    scales: tuple[float, float] | None = None  # range of the scale of the teacher's classifier-free guidance
    guidance_dim: int = 0  # size of the embedding of this scale that the network reads; 0: it reads none

    def init(self, key: Key[Array, ""]) -> Params:
        network_key, teacher_key = jax.random.split(key)
        params = {"network": self.init_network(network_key)}
        return params if self.teacher is None else {**params, "frozen": {"teacher": self.teacher.init(teacher_key)}}

    @property
    def reads_null(self) -> bool:
        return self.scales is not None

    def drawn_scales(self, key: Key[Array, ""], rows: int) -> Float[Array, "batch"] | None:
        """A random scale of guidance for each row, if there are `scales`."""
        if self.scales is None:
            return None
        low, high = self.scales
        return low + (high - low) * jax.random.uniform(key, (rows,))

    def taught(
        self, params: Params, batch: Mapping[str, Any], cond: Cond, scale: Float[Array, "batch"] | None
    ) -> Denoiser:
        """The denoiser of the teacher, with a scale of guidance for each row.

        Its null condition is the entry "null" of the batch, if there is one, otherwise that of `network_conditions`.
        """
        null = {name: batch[name] for name in ("null",) if name in batch}
        return self.teacher.denoiser(params["frozen"]["teacher"], self.process, cond, scale, **null)

    def conditioned(self, network: Params, cond: Cond, scale: Float[Array, "batch"] | None) -> Cond:
        """The conditions of the network: with an embedding of the scale of guidance, if it reads one."""
        return guided(self.embed(network, cond), scale, self.guidance_dim) if self.guidance_dim else cond


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Student):
    """A consistency model f(x_t, t), compared at two times of each trajectory; arXiv:2303.01469.

    The loss is weight(t, s) d(f(x_t, t), f^-(x_s, s)) at the times (t, s) of `schedule`. x_s is a step of the solver
    `step` along the ODE of the teacher (consistency distillation), or, without a teacher, x_0 with the same noise as
    x_t (consistency training; improved consistency training and easy consistency tuning are other schedules, distances
    and weights). f^- is the student itself, or with `target_rate` an EMA of it; no gradient flows through it. Both have
    the same dropout mask. With several segments of the `schedule` f carries x_t to the beginning of the segment of t
    instead, see `losses.consistency.carried`, and one step of DDIM per segment draws samples (arXiv:2403.06807).

    Parameters in addition to those of `Student` are {"frozen": {"target": ..., "distance": ...}}, where they are used.
    """

    schedule: Schedule
    distance: Distance
    step: Solver | None = None  # of the teacher's ODE
    target_rate: Callable[[Train], Float[Array, ""]] | None = None

    def init(self, key: Key[Array, ""]) -> Params:
        student_key, distance_key = jax.random.split(key)
        params = super().init(student_key)
        # A copy, because the train step donates every buffer of its state, and only once.
        target = {} if self.target_rate is None else jax.tree.map(jnp.copy, params["network"])
        own = {"target": target, "distance": self.distance.init(distance_key)}
        frozen = params.get("frozen", {}) | {name: tree for name, tree in own.items() if tree}
        return {**params, **({"frozen": frozen} if frozen else {})}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        key, x_0, cond = self.prepared(key, batch, train)
        time_key, noise_key, dropout_key, teacher_key = jax.random.split(key, 4)
        t, weight = self.times(self.process, time_key, len(x_0))
        t, s = self.schedule.interval(self.process, t, train)
        x_t, eps = perturb(self.process, noise_key, x_0, t)
        scale = self.drawn_scales(teacher_key, len(x_0))
        if self.teacher is None:
            x_s = bcast(self.process.alpha(s), x_0) * x_0 + bcast(self.process.sigma(s), x_0) * eps
        else:
            D = self.taught(params, batch, cond, scale)
            x_s, _ = self.step.step(self.process, D, row_keys(teacher_key, jnp.arange(len(x_0))), x_t, t, s, ())
        dropout_key = dropout_key if train is not None else None
        frozen = params.get("frozen", {})
        f, target = (
            self._compared(self._function(network, cond, dropout_key, scale), x, time, t)
            for network, x, time in (
                (params["network"], x_t, t),
                (frozen.get("target", params["network"]), x_s, s),
            )
        )
        distance = self.distance.measure(frozen.get("distance", {}), f, jax.lax.stop_gradient(target))
        return weight * self.distance.weight(self.process, t, s) * distance, self._logged(train)

    def _logged(self, train: Train | None) -> dict[str, Array]:
        """The number of points of the grid, which says where in its schedule the training is."""
        return {} if self.schedule.points is None else {"points": self.schedule.points(train)}

    def _compared(
        self, f: Denoiser, x: Float[Array, "batch *shape"], time: Float[Array, "batch"], t: Float[Array, "batch"]
    ) -> Float[Array, "batch *shape"]:
        """f(x, time), or with several segments where it carries x to, at the beginning of the segment of t."""
        if self.schedule.start is None:
            return f(x, time)
        return consistency.carried(self.process, f, x, time, self.schedule.start(self.process, t))

    def _function(
        self,
        network: Params,
        cond: Cond,
        key: Key[Array, ""] | None,
        scale: Float[Array, "batch"] | None = None,
    ) -> Denoiser:
        """The consistency function f(x, t) with the parameters `network`; with a key, dropout is active."""
        cond = self.conditioned(network, cond, scale)
        apply = lambda x, c_noise, cond: self.apply(network, x, c_noise, cond, key=key)  # noqa: E731
        return parameterizations.bound_to(parameterizations.denoiser(apply, self.param, self.process), cond)

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """The target network follows the student: target <- mu target + (1 - mu) network, as it is after this step."""
        if self.target_rate is None:
            return params
        target = ema.follow(params["frozen"]["target"], params["network"], self.target_rate(train))
        return {**params, "frozen": {**params["frozen"], "target": target}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousConsistency(Student):
    """A consistency model in continuous time, learned by the derivative of f along the trajectory; arXiv:2410.11081.

    dx / dt is that of the teacher's ODE, or of the pair (x_0, eps) without a teacher. The loss is
    exp(w(t)) mean (F - F^- + g)^2 - w(t), see `losses.consistency.tangent_loss`, with a learned w(t) whose optimum is
    minus the logarithm of the mean at t, so that all times weigh the same. The part of the tangent g that has the
    derivative of the network grows from 0 to its full size over the first `warmup_steps` steps.

    Parameters in addition to those of `Student` are {"weight": {"kernel", "bias"}}, of w(t).
    """

    sigma_data: float  # of the angle of TrigFlow, see `losses.consistency.angle`
    warmup_steps: int = 10_000
    c: float = 0.1  # of the normalisation g / (|g| + c)

    def init(self, key: Key[Array, ""]) -> Params:
        return {**super().init(key), "weight": {"kernel": jnp.zeros(2 * _FEATURES), "bias": jnp.zeros(())}}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        key, x_0, cond = self.prepared(key, batch, train)
        time_key, noise_key, dropout_key, teacher_key = jax.random.split(key, 4)
        t, weight = self.times(self.process, time_key, len(x_0))
        x_t, eps = perturb(self.process, noise_key, x_0, t)
        if self.teacher is None:
            slopes = [time_derivative(f, t)[1] for f in (self.process.alpha, self.process.sigma)]
            velocity = bcast(slopes[0], x_0) * x_0 + bcast(slopes[1], x_0) * eps
        else:
            scale = self.drawn_scales(teacher_key, len(x_0))
            D = self.taught(params, batch, cond, scale)
            cond = self.conditioned(params["network"], cond, scale)
            velocity = parameterizations.velocity(self.process, D, x_t, t)
        dropout_key = dropout_key if train is not None else None

        def network(params: Params, x: Array, c_noise: Array) -> Array:
            return self.apply(params, x, c_noise, cond, key=dropout_key)

        held = functools.partial(network, jax.lax.stop_gradient(params["network"]))
        done = 1.0 if train is None or not self.warmup_steps else jnp.minimum(train.step / self.warmup_steps, 1)
        at = consistency.tangent(held, self.param, self.process, x_t, t, velocity, self.sigma_data, done)
        c = self.param(self.process, t)
        output = network(params["network"], bcast(c.c_in, x_t) * x_t, c.c_noise)
        error = consistency.tangent_loss(output, at, self.c)
        w = self._log_weight(params["weight"], t)
        return weight * (jnp.exp(w) * error - w), {"error": error}

    def _log_weight(self, params: Params, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        """w(t): linear in sines and cosines of multiples of TrigFlow's angle."""
        phase = 2 * consistency.angle(self.process, t, self.sigma_data)[:, None] * jnp.arange(1, _FEATURES + 1)
        features = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1) / math.sqrt(_FEATURES)
        return features @ params["kernel"] + params["bias"]
