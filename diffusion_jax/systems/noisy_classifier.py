"""Noise-aware classifier p(y | x_t, t) for classifier guidance (arXiv:2105.05233)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.losses.times import Times
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes import bcast, perturb, row_keys, row_normal
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.types import Apply, Params, Placed, Process, Spec, Train

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # times t at which `evaluate` computes the accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyClassifier(Sampled):
    """Train log p(label | x_t, t) = log_softmax(F(c_in x_t, c_noise)) by cross-entropy, at times from `times`.

    Batches are {"x": [batch, *shape], "label": [batch]}, parameters {"network": ...}. This system draws no samples. See
    `diffusion_jax.types.System`; arXiv:2105.05233, section 4; arXiv:2011.13456, appendix I.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    apply: Apply  # (params, x, c_noise, cond, *, key) -> logits [batch, num_classes]
    process: Process
    param: Parameterization  # gives c_in and c_noise
    times: Times
    num_classes: int
    shape: tuple[int, ...]  # of one example
    modality: str = "array"  # kind of data of the example
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> Conditions:
        """The class, the condition that classifier guidance with this model needs."""
        return Conditions(num_classes=self.num_classes)

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(Spec(self.shape, modality=self.modality), self.classes)

    def init(self, key: Key[Array, ""]) -> Params:
        return {"network": self.init_network(key)}

    def logits(
        self, params: Params, x: Float[Array, "batch *shape"], t: Array, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch classes"]:
        """The logits of the classes of x at time t, a scalar or [batch], in [0, 1]. With `key`, dropout is active."""
        c = self.param(self.process, jnp.broadcast_to(t, x.shape[:1]))
        return self.apply(params["network"], bcast(c.c_in, x) * x, c.c_noise, None, key=key)

    def log_prob(
        self, params: Params, x: Float[Array, "batch *shape"], t: Array, cond: dict[str, Array]
    ) -> Float[Array, "batch"]:
        """Returns log p(cond["label"] | x, t) in nats."""
        log_probs = jax.nn.log_softmax(self.logits(params, x, t))
        return jnp.take_along_axis(log_probs, cond["label"][:, None], axis=1)[:, 0]

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The cross-entropy in nats, weighted as `times` says. The metric is "accuracy", at the drawn times."""
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t, weight = self.times(self.process, time_key, batch["x"].shape[0])
        x_t, _ = perturb(self.process, noise_key, batch["x"], t)
        logits = self.logits(params, x_t, t, dropout_key if train is not None else None)
        log_probs = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(log_probs, batch["label"][:, None], axis=1)[:, 0]
        return weight * loss, {"accuracy": (jnp.argmax(logits, 1) == batch["label"]).astype(jnp.float32)}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns "loss" and "accuracy" of held-out examples, and "accuracy_t0.1", ... at each time of `LEVELS`."""
        loss, metrics = self.loss(params, key, batch, None)
        metrics = {"loss": loss, **metrics}
        keys = row_keys(key, jnp.arange(len(batch["x"])))
        for i, level in enumerate(LEVELS):
            t = jnp.float32(level)
            noise = row_normal(row_keys(keys, i), batch["x"])
            x_t = self.process.alpha(t) * batch["x"] + self.process.sigma(t) * noise
            right = jnp.argmax(self.logits(params, x_t, t), 1) == batch["label"]
            metrics[f"accuracy_t{level:g}"] = right.astype(jnp.float32)
        return metrics
