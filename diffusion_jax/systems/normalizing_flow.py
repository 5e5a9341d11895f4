"""Normalizing flows: an invertible network, trained and evaluated by the exact likelihood of its density."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.processes import row_keys, row_normal
from diffusion_jax.processes.base import row_sum
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.types import Cond, Params, Placed, Spec, Train, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalizingFlow(Sampled):
    """A normalizing flow z = f(x), z ~ N(0, I): train log p(x) = log N(f(x); 0, I) + log |det df/dx| directly.

    The loss is -log p(x) in nats per dimension (arXiv:1605.08803, arXiv:2412.06329). The density of data on grey levels
    would grow without bound, so that noise is added to x: uniform noise that fills the cell of each level
    (config.data.dequantize), with which log p bounds the code length of the levels, or Gaussian noise of `noise_std`.
    After the latter, samples are denoised by Tweedie's formula, x + noise_std^2 grad log p(x), which is E[x_0 | x] of
    the flow's own density (arXiv:2412.06329, section 3.3). With classes, `guidance_scale` steers the affine maps of the
    inverse away from the null class, see `networks.invertible.guided`.

    Parameters are {"network": ...}. See `diffusion_jax.types.System`. Raises ValueError for a number out of range.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    forward: Callable[..., tuple[Array, Array]]  # (params, x, cond, *, key) -> (z, log |det|)
    invert: Callable[..., Array]  # (params, z, cond, null, scale) -> x
    shape: tuple[int, ...]  # of one example
    modality: str = "array"  # kind of data of the example
    network_conditions: Conditions = NO_CONDITIONS
    cond_dropout: float = 0.0  # probability that training replaces the class by the null class
    noise_std: float = 0.0  # of Gaussian noise in the data; 0: none
    guidance_scale: float = 1.0  # 1: none
    likelihood: Callable[..., dict[str, Array]] | None = None  # that `evaluate` computes in addition to the loss
    batch_size: int = 128  # number of samples that are drawn at once
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.noise_std >= 0, "noise_std", self.noise_std, "at least 0")
        check(0 <= self.cond_dropout < 1, "cond_dropout", self.cond_dropout, "in [0, 1)")

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.makes, self.network_conditions)

    @property
    def makes(self) -> Spec:
        return Spec(self.shape, modality=self.modality)

    @property
    def conditions(self) -> Conditions:
        """The class, of a network that reads one."""
        return self.network_conditions

    def init(self, key: Key[Array, ""]) -> Params:
        return {"network": self.init_network(key)}

    def log_prob(
        self, params: Params, x: Float[Array, "batch *shape"], cond: Cond = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch"]:
        """log p(x) in nats, of x with its noise; with `key` dropout is active."""
        z, log_det = self.forward(params["network"], x, cond, key=key)
        return row_sum(jax.scipy.stats.norm.logpdf(z)) + log_det

    def denoised(
        self, params: Params, x: Float[Array, "batch *shape"], cond: Cond = None
    ) -> Float[Array, "batch *shape"]:
        """E[x_0 | x] = x + noise_std^2 grad log p(x), for x = x_0 + noise_std eps; without guidance."""
        score = jax.grad(lambda x: self.log_prob(params, x, cond).sum())(x)
        return x + self.noise_std**2 * score

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """-log p(x) / d, in nats, of an x of d values. Without `train` there is no dropout."""
        cond, x = self.network_conditions.of(batch), batch["x"]
        noise_key, drop_key, network_key = jax.random.split(key, 3)
        x = self._noised(noise_key, x)
        if train is not None:
            cond = self.network_conditions.dropped(drop_key, cond, self.cond_dropout)
        nats = self.log_prob(params, x, cond, None if train is None else network_key)
        return -nats / x[0].size, {}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out examples, and the values of `likelihood`, both of examples with their noise."""
        metrics = {"loss": self.loss(params, key, batch, None)[0]}
        if self.likelihood:
            cond = self.network_conditions.of(batch)
            log_prob = lambda x: self.log_prob(params, x, cond)  # noqa: E731
            metrics |= self.likelihood(
                log_prob, jax.random.fold_in(key, 1), self._noised(jax.random.fold_in(key, 2), batch["x"])
            )
        return metrics

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples": ...}: the inverse of z ~ N(0, I) from fold_in(key, ids[r]), denoised if there is noise."""
        z = row_normal(row_keys(key, ids), jnp.zeros((len(ids), *self.shape)))
        cond = self.network_conditions.of(cond)
        guided = bool(self.network_conditions) and self.guidance_scale != 1
        steering = (self.network_conditions.nulled(cond), jnp.float32(self.guidance_scale)) if guided else (None, None)
        x = self.invert(params["network"], z, cond, *steering)
        return {"samples": self.denoised(params, x, cond) if self.noise_std else x}

    def _noised(self, key: Key[Array, ""], x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """x with the Gaussian noise of the data that the density is of, if there is any."""
        return x + self.noise_std * jax.random.normal(key, x.shape, x.dtype) if self.noise_std else x

    def evaluations(self) -> int:
        """Passes through the network for one sample: the inverse, and the gradient that removes the noise."""
        return 2 if self.noise_std else 1
