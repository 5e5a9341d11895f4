"""Variational dequantization: a learned dequantization noise for the likelihood of a frozen diffusion model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.likelihood import bounds, dequantization
from diffusion_jax.likelihood.ode import Likelihood
from diffusion_jax.processes import row_keys
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Apply, Cond, Denoiser, Params, Placed, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationalDequantization(OnDiffusion):
    """Train the noise distribution q(u | x) of `dequantization.variational` by minimising log q(u | x) - log p(x + u).

    p is the model of `diffusion` and stays fixed; -log p is replaced by its bound `bounds.continuous_bound`, which
    starts from data with the noise of t_min. The loss is in bits per dimension. Parameters are {"network": ...,
    "frozen": {"diffusion": ...}}, batches hold images with `levels` grey levels. arXiv:1902.00275, section 3.1;
    arXiv:2101.09258, section 5.

    Raises ValueError for a number out of range.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    apply: Apply
    diffusion: Diffusion
    likelihood: Likelihood | None = None  # log-likelihood that `evaluate` estimates
    levels: int = 256
    num_layers: int = 4
    t_min: float = 1e-5
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_layers < 1 or not 0 < self.t_min < 1:
            raise ValueError(
                f"num_layers={self.num_layers} and t_min={self.t_min}: they must be at least 1 and in (0, 1)"
            )

    def init(self, key: Key[Array, ""]) -> Params:
        network_key, frozen_key = jax.random.split(key)
        return {"network": self.init_network(network_key), "frozen": {"diffusion": self.diffusion.init(frozen_key)}}

    def dequantize(self, params: Params) -> dequantization.Dequantization:
        """The dequantization q(u | x) with the learned parameters."""
        return dequantization.variational(self.apply, params["network"], self.levels, self.num_layers)

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The bound, estimated with one u and one time per example. The metric is "log_q", in nats per dimension."""
        x_0, noise_key, bound_key = batch["x"], *jax.random.split(key)
        x, log_q = self.dequantize(params)(row_keys(noise_key, jnp.arange(len(x_0))), x_0)
        D = self._denoiser(params, batch)
        nats = log_q + bounds.continuous_bound(self.diffusion.process, D, bound_key, x, t_min=self.t_min)
        return dequantization.bits_per_dim(-nats, x_0[0].size, self.levels), {"log_q": log_q / x_0[0].size}

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw samples of the diffusion model, see `Diffusion.draw`."""
        return self.diffusion.draw(params["frozen"]["diffusion"], key, ids, cond, numbers)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out examples, and the values of `likelihood` with the learned dequantization noise,
        and, under "uniform_...", with uniform noise."""
        metrics = {"loss": self.loss(params, key, batch, None)[0]}
        if self.likelihood:
            D, key = self._denoiser(params, batch), jax.random.fold_in(key, 1)
            arguments = (self.diffusion.process, D, key, batch["x"])
            metrics |= self.likelihood(*arguments, dequantize=self.dequantize(params))
            metrics |= {f"uniform_{name}": value for name, value in self.likelihood(*arguments).items()}
        return metrics

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) of the diffusion model, see `Diffusion.denoiser`."""
        return self.diffusion.denoiser(params["frozen"]["diffusion"], cond, numbers)

    def _denoiser(self, params: Params, batch: dict[str, Array]):
        return self.diffusion.denoiser(params["frozen"]["diffusion"], self.diffusion.network_conditions.of(batch))
