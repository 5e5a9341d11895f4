"""Luo and Hu's model of point clouds: a variational autoencoder whose decoder is a diffusion model of single points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.processes import row_keys, row_normal
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train, check

CODE = "vector"  # condition of the diffusion model that is the latent of the shape
Latent = Float[Array, "batch code"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointVAE(OnDiffusion):
    """Train an encoder q(z | x), a diffusion model of x given z and a normalizing flow p(z) together.

    L = L_diffusion(x | z) + kl_weight E[log q(z | x) - log p(z)], z ~ q(z | x) = N(mean, diag exp(log variance)).
    arXiv:2103.01458, eq. 14 and 15, with the authors' weight of the second term. Samples draw z from the flow, then the
    points given z. Parameters are those of `diffusion`, {"encoder"} and {"prior"}. See `types.System`.

    Raises ValueError for a `diffusion` that reads other conditions than a code, or a negative weight.
    """

    diffusion: Diffusion
    code_dim: int
    init_encoder: Callable[[Key[Array, ""]], Params]
    encoder: Callable[[Params, Array], tuple[Latent, Latent]]  # (params, x) -> mean, log variance
    init_prior: Callable[[Key[Array, ""]], Params]
    to_noise: Callable[[Params, Latent], tuple[Latent, Float[Array, "batch"]]]  # (params, z) -> w, log |det dw/dz|
    from_noise: Callable[[Params, Latent], Latent]
    kl_weight: float = 1e-3

    def __post_init__(self) -> None:
        read = {name: spec.shape for name, spec in self.diffusion.network_conditions.specs.items()}
        check(read == {CODE: (self.code_dim,)}, "the network's conditions", read, f"a code of {self.code_dim}")
        check(self.kl_weight >= 0, "kl_weight", self.kl_weight, "at least 0")

    @property
    def batch(self) -> dict[str, Spec]:
        return {"x": self.makes}

    @property
    def conditions(self) -> Conditions:
        return NO_CONDITIONS

    @property
    def networks(self) -> Mapping[str, Placed]:
        return self.diffusion.networks

    def init(self, key: Key[Array, ""]) -> Params:
        own, encoder, prior = jax.random.split(key, 3)
        return {
            **self.diffusion.init(own),
            "encoder": self.init_encoder(encoder),
            "prior": self.init_prior(prior),
        }

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The loss of both terms, and the second one, "kl", of one z of each cloud."""
        key, code_key = jax.random.split(key)
        mean, log_variance = self.encoder(params["encoder"], batch["x"])
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(code_key, mean.shape, mean.dtype)
        loss, metrics = self.diffusion.loss(params, key, {**batch, CODE: z}, train)
        negative_entropy = -0.5 * jnp.sum(log_variance + 1 + jnp.log(2 * jnp.pi), -1)
        kl = negative_entropy - self.prior_log_prob(params, z)
        return loss + self.kl_weight * kl, {**metrics, "kl": kl}

    def prior_log_prob(self, params: Params, z: Latent) -> Float[Array, "batch"]:
        """log p(z) in nats, by the flow."""
        w, log_det = self.to_noise(params["prior"], z)
        return jnp.sum(norm.logpdf(w), -1) + log_det

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out clouds and its second term."""
        loss, metrics = self.loss(params, key, batch, None)
        return {"loss": loss, "kl": metrics["kl"]}

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) given the latents cond["vector"]."""
        return self.diffusion.denoiser(params, cond, numbers)

    def reconstruct(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], x: Float[Array, "batch points 3"]
    ) -> Float[Array, "batch points 3"]:
        """Clouds that are decoded from the mean of the code of x."""
        mean, _ = self.encoder(params["encoder"], x)
        return self.diffusion.draw(params, key, ids, {CODE: mean})["samples"]

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch points 3"]]:
        """Draw {"samples": ...}: row r depends on ids[r] only. A pure function, for use under `jit`."""
        keys = row_keys(jax.random.fold_in(key, 2), ids)
        w = row_normal(keys, jnp.zeros((len(ids), self.code_dim), jnp.float32))
        return self.diffusion.draw(params, key, ids, {CODE: self.from_noise(params["prior"], w)}, numbers)

    def evaluations(self) -> int | None:
        return self.diffusion.evaluations()
