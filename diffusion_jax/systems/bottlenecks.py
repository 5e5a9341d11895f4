"""Bottlenecks of autoencoders, between encoder and decoder: a Gaussian (KL) or a codebook (vector quantization)."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.networks import codebook
from diffusion_jax.processes import row_keys, row_normal
from diffusion_jax.processes.base import row_sum
from diffusion_jax.types import Params

_LOG_VARIANCE = (-30.0, 20.0)  # range of the log variance, as in the authors' code


@runtime_checkable
class Bottleneck(Protocol):
    """A bottleneck. `network` are the parameters of the autoencoder; `state` is updated without a gradient."""

    def init(self, network: Params) -> Params:
        """Returns the state at step 0."""

    def adopt(self, network: Params) -> Params:
        """Returns the state at step 0 for a network that has been trained elsewhere."""

    def __call__(
        self, network: Params, state: Params, key: Key[Array, ""] | None, h: Float[Array, "batch h w c"]
    ) -> tuple[Float[Array, "batch h w z"], Float[Array, "batch"], dict[str, Array], dict[str, Array]]:
        """Returns (input of the decoder, penalty, metrics, statistics for `advance`) for the encoder's output h.

        Without `key` nothing is random.
        """

    def advance(
        self, network: Params, state: Params, statistics: dict[str, Float[Array, "..."]]
    ) -> tuple[Params, Params]:
        """Returns (network, state) after an optimizer step. `statistics` has a leading axis: the parts of the batch."""

    def latent(self, keys: Key[Array, "batch"] | None, h: Float[Array, "batch h w c"]) -> Float[Array, "batch h w z"]:
        """Returns the latents that a diffusion model is trained on; without `keys` nothing is random."""

    def prior(self, network: Params, keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Float[Array, "batch h w z"]:
        """Draw latents from the prior that training assumes. `shape` is without the batch axis."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Gaussian bottleneck of a VAE: q(z | x) = N(mean, exp(log variance)), the two halves of h (arXiv:1312.6114).

    The penalty is kl_weight KL(q || N(0, I)) / size. With `size` the number of values in an image, and a reconstruction
    loss that is their mean, `kl_weight` has the meaning that it has in latent diffusion, whose losses are sums (1e-6,
    arXiv:2112.10752, appendix G).

    Raises ValueError for kl_weight < 0 or size < 1.
    """

    kl_weight: float = 1e-6
    size: int = 1

    def __post_init__(self) -> None:
        if self.kl_weight < 0 or self.size < 1:
            raise ValueError(f"kl_weight={self.kl_weight} and size={self.size} must be at least 0 and 1")

    def init(self, network: Params) -> Params:
        return {}

    def adopt(self, network: Params) -> Params:
        return {}

    def __call__(
        self, network: Params, state: Params, key: Key[Array, ""] | None, h: Float[Array, "batch h w c"]
    ) -> tuple[Float[Array, "batch h w z"], Float[Array, "batch"], dict[str, Array], dict[str, Array]]:
        mean, log_var = split_moments(h)
        kl = kl_divergence(mean, log_var)
        z = self.latent(None if key is None else row_keys(key, jnp.arange(len(h))), h)
        return z, self.kl_weight * kl / self.size, {"kl": kl}, {}

    def advance(
        self, network: Params, state: Params, statistics: dict[str, Float[Array, "..."]]
    ) -> tuple[Params, Params]:
        return network, state

    def latent(self, keys: Key[Array, "batch"] | None, h: Float[Array, "batch h w c"]) -> Float[Array, "batch h w z"]:
        mean, log_var = split_moments(h)
        return mean if keys is None else mean + jnp.exp(log_var / 2) * row_normal(keys, mean)

    def log_ratio(self, h: Float[Array, "batch h w c"], z: Float[Array, "batch h w z"]) -> Float[Array, "batch"]:
        """log N(z; 0, I) - log q(z | x) in nats, whose mean over z ~ q is -KL."""
        mean, log_var = split_moments(h)
        return 0.5 * row_sum(jnp.square(z - mean) * jnp.exp(-log_var) + log_var - jnp.square(z))

    def prior(self, network: Params, keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Float[Array, "batch h w z"]:
        return row_normal(keys, jnp.zeros((len(keys), *shape)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook:
    """Vector quantization: the nearest entry e of a codebook, with a straight-through gradient (arXiv:1711.00937).

    The penalty is codebook_weight (|sg(h) - e|^2 + commitment_weight |h - sg(e)|^2), means over the latent
    (arXiv:2012.09841, eq. 4). With `decay` > 0 the entries are updated by EMA of the vectors that are assigned to them
    (arXiv:1711.00937, appendix A.1), without the first term; with `decay` = 0 they are trained by the gradient. Entries
    to which fewer than `restart_below` vectors per batch are assigned on average are re-initialised with vectors of the
    batch (0: never); at step 0 all are. The decoder quantises its input itself, so this bottleneck returns h.

    State: `size` [k], the average number of assigned vectors per batch, and with `decay` their average sum `total`
    [k, d]. `adopt` assigns one vector to each entry, so that step 0 re-initialises no entry of a trained codebook.

    Raises ValueError for a number out of range.
    """

    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    decay: float = 0.99
    restart_below: float = 0.05

    def __post_init__(self) -> None:
        if min(self.codebook_weight, self.commitment_weight, self.restart_below) < 0 or not 0 <= self.decay < 1:
            raise ValueError(
                f"codebook_weight={self.codebook_weight}, commitment_weight={self.commitment_weight}, "
                f"restart_below={self.restart_below} and decay={self.decay}: the first three must be at least 0, the "
                "last in [0, 1)"
            )

    def init(self, network: Params) -> Params:
        embedding = network["quantize"]["embedding"]["embedding"]
        size = jnp.zeros(len(embedding))
        return {"size": size, "total": jnp.zeros(embedding.shape)} if self.decay else {"size": size}

    def adopt(self, network: Params) -> Params:
        embedding = network["quantize"]["embedding"]["embedding"]
        size = jnp.ones(len(embedding))
        return {"size": size, "total": jnp.array(embedding)} if self.decay else {"size": size}

    def __call__(
        self, network: Params, state: Params, key: Key[Array, ""] | None, h: Float[Array, "batch h w d"]
    ) -> tuple[Float[Array, "batch h w d"], Float[Array, "batch"], dict[str, Array], dict[str, Array]]:
        embedding = network["quantize"]["embedding"]["embedding"]
        code = codebook.nearest_code(h, embedding)
        entry = jnp.take(embedding, code, axis=0)
        stop, axes = jax.lax.stop_gradient, (1, 2, 3)
        commitment = jnp.square(h - stop(entry)).mean(axes)
        penalty = self.commitment_weight * commitment
        if not self.decay:
            penalty = penalty + jnp.square(stop(h) - entry).mean(axes)
        vectors = stop(h).reshape(-1, h.shape[-1])
        counts, sums = codebook.assigned(vectors, code.reshape(-1), len(embedding))
        metrics = {
            "commitment": commitment,
            "perplexity": codebook.perplexity(counts),
            "usage": jnp.mean(state["size"] > 0.5 * self.restart_below),
        }
        statistics = {"counts": counts, "sums": sums}
        if key is not None:
            statistics["drawn"] = vectors[jax.random.randint(key, (len(embedding),), 0, len(vectors))]
        return h, self.codebook_weight * penalty, metrics, statistics

    def advance(
        self, network: Params, state: Params, statistics: dict[str, Float[Array, "..."]]
    ) -> tuple[Params, Params]:
        old = network["quantize"]["embedding"]["embedding"]
        counts = statistics["counts"].reshape(-1, len(old)).sum(0)
        sums = statistics["sums"].reshape(-1, *old.shape).sum(0)
        drawn = statistics["drawn"].reshape(-1, *old.shape)[0]
        # `size` is an average in any case, since dead entries are found with it.
        total = state.get("total", jnp.zeros(old.shape))
        size, total = codebook.follow(state["size"], total, counts, sums, self.decay or 0.99)
        entries = old
        if self.decay:
            used = size[:, None] > 1e-6  # the ratio of the others would be rounding errors
            entries = jnp.where(used, total / jnp.where(used, size[:, None], 1.0), old)
        dead = codebook.dead(size, self.restart_below)
        entries = jnp.where(dead[:, None], drawn, entries)
        size = jnp.where(dead, 1.0, size)
        state = {"size": size, "total": jnp.where(dead[:, None], drawn, total)} if self.decay else {"size": size}
        return {**network, "quantize": {"embedding": {"embedding": entries}}}, state

    def latent(self, keys: Key[Array, "batch"] | None, h: Float[Array, "batch h w d"]) -> Float[Array, "batch h w d"]:
        return h

    def prior(self, network: Params, keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Float[Array, "batch h w d"]:
        embedding = network["quantize"]["embedding"]["embedding"]

        def row(key: Key[Array, ""]) -> Int[Array, "h w"]:
            return jax.random.randint(key, shape[:-1], 0, len(embedding))

        return jnp.take(embedding, jax.vmap(row)(keys), axis=0)


def split_moments(
    h: Float[Array, "batch h w c"],
) -> tuple[Float[Array, "batch h w z"], Float[Array, "batch h w z"]]:
    """Split h into mean and log variance; the latter is clipped to [-30, 20]."""
    mean, log_var = jnp.split(h, 2, axis=-1)
    return mean, jnp.clip(log_var, *_LOG_VARIANCE)


def kl_divergence(mean: Float[Array, "batch *n"], log_var: Float[Array, "batch *n"]) -> Float[Array, "batch"]:
    """Returns KL(N(mean, exp(log_var)) || N(0, I)) = sum (mean^2 + exp(log_var) - 1 - log_var) / 2, in nats."""
    terms = jnp.square(mean) + jnp.exp(log_var) - 1 - log_var
    return 0.5 * terms.sum(tuple(range(1, mean.ndim)))
