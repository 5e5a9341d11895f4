"""TimeGrad: autoregressive forecasts, each step of a series drawn by diffusion given the encoded history."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.guidance.observation import KNOWN, Observed, known_values
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes import sampling_keys
from diffusion_jax.systems.base import Sampled
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.scaling import Scaling, mean_scaling
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train

# encode(params, state, inputs [batch, inputs]) -> (state, condition [batch, vector_dim])
Encode = Callable[[Params, Array, Array], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeGrad(Sampled):
    """Forecast x_t ~ p(x_t | x_{<t}) step by step: a `diffusion` of vectors [channels] under the state of an encoder.

    The encoder reads at step t the values x_{t - lag} of `lags`. Training maximises the likelihood of every step of a
    window that has its lags, history and horizon alike (teacher forcing; arXiv:2101.12072, eq. 6 and algorithm 1);
    sampling draws the last `operator.horizon` steps one after the other (algorithm 2). Windows [length, channels] are
    scaled by their history. Parameters are {"network": ..., "encoder": ...}. Missing values are 0 for the encoder and
    are no targets.
    """

    diffusion: Diffusion
    init_encoder: Callable[[Key[Array, ""]], Params]
    encode: Encode
    state: tuple[int, ...]  # shape of the encoder's state, without the batch
    lags: tuple[int, ...]
    operator: Observed
    scaling: Scaling = mean_scaling

    def init(self, key: Key[Array, ""]) -> Params:
        key, encoder_key = jax.random.split(key)
        return {**self.diffusion.init(key), "encoder": self.init_encoder(encoder_key)}

    @property
    def length(self) -> int:
        """Steps of a window."""
        return self.operator.shape[0]

    @property
    def first(self) -> int:
        """The first step that has all its lags."""
        return max(self.lags)

    def scaled(self, x: Float[Array, "batch length channels"]) -> tuple[Array, Array, Array]:
        """(x scaled by its history, NaN where it is missing; location; scale)."""
        history = jnp.where(jnp.arange(self.length)[:, None] < self.length - self.operator.horizon, x, jnp.nan)
        location, scale = self.scaling(history)
        return (x - location) / scale, location, scale

    def encoded(
        self, params: Params, values: Float[Array, "batch length channels"], until: int
    ) -> tuple[Array, Float[Array, "steps batch vector_dim"]]:
        """The state, and the conditions of the steps `first` to `until` - 1, given the values before each."""
        inputs = jnp.stack([self._lagged(values, t) for t in range(self.first, until)])
        state = jnp.zeros((len(values), *self.state), values.dtype)
        return jax.lax.scan(lambda state, row: self.encode(params["encoder"], state, row), state, inputs)

    def _lagged(self, values: Float[Array, "batch length channels"], t: int | Array) -> Float[Array, "batch inputs"]:
        rows = [jax.lax.dynamic_index_in_dim(values, t - lag, 1, keepdims=False) for lag in self.lags]
        return jnp.concatenate(rows, -1)

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        x, _, _ = self.scaled(batch["x"])
        present = jnp.isfinite(x)
        values = jnp.where(present, x, 0)
        _, vectors = self.encoded(params, values, self.length)
        rows, where = values[:, self.first :], present[:, self.first :]
        flat = lambda a: a.reshape(-1, a.shape[-1])  # noqa: E731
        cond = {"vector": flat(vectors.swapaxes(0, 1))}
        training = train is not None
        loss, _ = self.diffusion.loss_fn(params["network"], key, flat(rows), cond, where=flat(where), train=training)
        counts = where.sum(-1)
        return jnp.sum(loss.reshape(counts.shape) * counts, -1) / jnp.maximum(counts.sum(-1), 1), {}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out windows."""
        return {"loss": self.loss(params, key, batch, None)[0]}

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) of one step, under the condition "vector", the state of the encoder."""
        return self.diffusion.denoiser(params, cond, numbers)

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch length channels"]]:
        """Draw {"samples": ...}, windows with the known history and a drawn horizon; row r depends on ids[r], cond[r].

        Known values within the horizon are kept, and later steps depend on them. A missing value of the history is 0 on
        the scale of the model, for the encoder and in the sample.

        A pure function, for use under `jit`.
        """
        prior_key, noise_key = sampling_keys(key)
        known = jnp.asarray(cond[KNOWN])
        x, location, scale = self.scaled(known)
        values, start = jnp.where(jnp.isfinite(x), x, 0), self.length - self.operator.horizon
        state, _ = self.encoded(params, values, start)

        def step(carry: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], None]:
            values, state = carry
            state, vector = self.encode(params["encoder"], state, self._lagged(values, t))
            D = self.denoiser(params, {"vector": vector}, numbers)
            keys = [jax.random.fold_in(part, t) for part in (prior_key, noise_key)]
            drawn = self.diffusion.solve(D, *keys, ids, None).astype(values.dtype)
            drawn = jnp.where(jnp.isfinite(x[:, t]), x[:, t], drawn)
            return (jax.lax.dynamic_update_index_in_dim(values, drawn, t, 1), state), None

        (values, _), _ = jax.lax.scan(step, (values, state), jnp.arange(start, self.length))
        return {"samples": jnp.where(jnp.isfinite(known), known, location + scale * values)}

    def evaluations(self) -> int | None:
        one = self.diffusion.evaluations()
        return None if one is None else one * self.operator.horizon

    @property
    def batch_size(self) -> int:
        """Number of samples that are drawn at once."""
        return self.diffusion.batch_size

    @property
    def batch(self) -> dict[str, Spec]:
        return {"x": self.makes}

    @property
    def makes(self) -> Spec:
        return Spec(self.operator.shape, modality="series")

    @property
    def conditions(self) -> Conditions:
        """The history, of which held-out windows give one."""
        return Conditions({KNOWN: known_values(self.operator)._replace(optional=False)})

    def numbers(self) -> PyTree[Array]:
        """Parameters of guidance, loaded once, outside of `jit`."""
        return self.diffusion.numbers()

    @property
    def networks(self) -> Mapping[str, Placed]:
        return self.diffusion.networks
