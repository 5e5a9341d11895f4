"""Diffusion-LM: Gaussian diffusion of the embeddings of tokens, which are learned with it (arXiv:2205.14217)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.likelihood.bounds import path_bound
from diffusion_jax.losses import categorical, rounding
from diffusion_jax.parameterizations import mapped
from diffusion_jax.processes import perturb
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionLM(OnDiffusion):
    """Train `diffusion` on the embeddings e_w of tokens w, and round x = x_t at the time t = `first` to tokens.

        L = |D(x_t, t) - e_w|^2 - log p(w | x) + |alpha(1) e_w|^2,     x ~ N(alpha e_w, sigma^2 I) at the time `first`

    Each term is the mean over its entries; the first is the loss of `diffusion`, whose gradient reaches the embeddings
    too, the second keeps them apart, the third is twice the part of KL(q(x_1 | w) || N(0, I)) that depends on them. x
    is the paper's x_0, a noisy embedding; D predicts the embedding without its noise. Parameters are {"network": ...,
    "embedding": {"table": [K, c], "bias": [K]}}. See `losses.rounding` for p(w | x).

    Raises ValueError for a time out of range or fewer than one time of the bound.
    """

    diffusion: Diffusion  # of embeddings [length, c]
    spec: Spec  # of one example, the tokens [length]
    first: float = 5e-4  # time of the first step
    clamp: bool = True  # replace D by the nearest embedding in sampling, the clamping trick
    num_times: int = 64  # of the estimate of the bound of a held-out example
    pad: int | None = None  # the token that ends an example and fills it up; None where all have the same length

    def __post_init__(self) -> None:
        check(0 < self.first < 1, "first", self.first, "in (0, 1), the time of the first step")
        check(self.num_times >= 1, "num_times", self.num_times, "at least 1")

    def init(self, key: Key[Array, ""]) -> Params:
        embedding_key, network_key = jax.random.split(key)
        table = jax.random.normal(embedding_key, (self.spec.values, self.diffusion.shape[-1]))
        return {**self.diffusion.init(network_key), "embedding": {"table": table, "bias": jnp.zeros(len(table))}}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        noise_key, loss_key = jax.random.split(key)
        x_0 = params["embedding"]["table"][batch["x"]]
        denoising, _ = self.diffusion.loss_fn(params["network"], loss_key, x_0, None, train=train is not None)
        parts = {
            "denoising": denoising,
            "rounding": jnp.mean(self._rounding(params, noise_key, batch["x"]), axis=-1),
            "prior": self.diffusion.process.alpha(jnp.float32(1)) ** 2 * jnp.mean(x_0**2, axis=(1, 2)),
        }
        return sum(parts.values()), parts

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out examples, and the bound of their code length in bits per token.

            -log p(w) <= KL(q(x_1 | w) || N(0, I)) + 1/2 int g^2 |score error|^2 dt - E log p(w | x)

        The integral begins at `first` and is estimated at `num_times` random times. For the exact D and p(w | x) it is
        -log p(w), whatever the embeddings are.
        """
        nats = self.bound(params, self.diffusion.unguided.denoiser(params), key, batch["x"])
        values = {"loss": self.loss(params, key, batch, None)[0]}
        return values | categorical.code_length(nats, batch["x"], self.pad)

    def bound(
        self, params: Params, D: Denoiser, key: Key[Array, ""], tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch"]:
        """The estimate of the bound above in nats per example, with the denoiser D of embeddings."""
        x_0 = params["embedding"]["table"][tokens]

        def estimate(total: Array, key: Array) -> tuple[Array, None]:
            noise_key, path_key = jax.random.split(key)
            nats = path_bound(self.diffusion.process, D, path_key, x_0, t_min=self.first)
            return total + nats + jnp.sum(self._rounding(params, noise_key, tokens), axis=-1), None

        total, _ = jax.lax.scan(estimate, jnp.zeros(len(x_0)), jax.random.split(key, self.num_times))
        return total / self.num_times

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) of embeddings that solvers call, with `clamp` the embedding nearest to it."""
        return self._model(params).denoiser(params, cond, numbers)

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Array]:
        """Draw {"samples": ...}, the most probable tokens of sampled embeddings."""
        x_0 = self._model(params).draw(params, key, ids, cond, numbers)["samples"]
        embedding = params["embedding"]
        return {"samples": jnp.argmax(rounding.log_rounding(embedding["table"], embedding["bias"], x_0), axis=-1)}

    def _model(self, params: Params) -> Diffusion:
        """The diffusion system of embeddings, with the clamping trick after its threshold."""
        if not self.clamp:
            return self.diffusion
        clamped = functools.partial(rounding.nearest, params["embedding"]["table"])
        limited = self.diffusion.threshold
        return dataclasses.replace(self.diffusion, threshold=lambda D: mapped(limited(D), clamped))

    def _rounding(
        self, params: Params, key: Key[Array, ""], tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch length"]:
        """-log p(w | x) of every token, for an x that is drawn."""
        table, bias = params["embedding"]["table"], params["embedding"]["bias"]
        x, _ = perturb(self.diffusion.process, key, table[tokens], jnp.full(len(tokens), self.first))
        return rounding.rounding_nats(table, bias, x, tokens)

    @property
    def networks(self) -> Mapping[str, Placed]:
        return self.diffusion.networks

    @property
    def batch(self) -> dict[str, Spec]:
        return {"x": self.spec}

    @property
    def makes(self) -> Spec:
        return self.spec
