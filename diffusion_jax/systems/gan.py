"""Generative adversarial networks: one generator and one discriminator, trained by one gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.losses.adversarial import Losses, Penalty, two_player_loss
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.processes import row_keys
from diffusion_jax.processes.base import row_normal
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.types import Cond, Params, Placed, Spec, Train, check


class TwoPlayers(Sampled):
    """Base class of systems of a generator, the group "network", and a discriminator, the group "discriminator"."""

    init_network: Callable[[Key[Array, ""]], Params]
    init_discriminator: Callable[[Key[Array, ""]], Params]
    shape: tuple[int, ...]
    modality: str
    network_conditions: Conditions

    def init(self, key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key)
        return {"network": self.init_network(keys[0]), "discriminator": self.init_discriminator(keys[1])}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the losses and logits of held-out examples. The losses say little of the quality of samples."""
        loss, metrics = self.loss(params, key, batch, None)
        return {"loss": loss, **metrics}

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.makes, self.network_conditions)

    @property
    def makes(self) -> Spec:
        return Spec(self.shape, modality=self.modality)

    @property
    def conditions(self) -> Conditions:
        """The conditions that both networks read."""
        return self.network_conditions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gan(TwoPlayers):
    """A generator x = G(z), z ~ N(0, I) of `latent_dim` numbers, trained against a discriminator D. See `types.System`.

    The loss of an example x is L_G(D(x), D(G(z))) + L_D(D(x), D(G(z))) plus the gradient penalty, with each term for
    the parameters of one player alone, see `losses.adversarial.two_player_loss`: both networks take a step at once.
    Without a penalty such steps move away from the equilibrium even of one real and one generated point
    (arXiv:1801.04406, section 2; their lengths grow like sqrt(1 + h^2 / 4) there), so `penalty` matters here more than
    with alternating steps. The recipe has R3GAN's losses, relativistic pairs with R1 and R2 (arXiv:2501.05441).

    Parameters are {"network", "discriminator"}; each may have its own optimizer. One evaluation of G makes a sample.

    Raises ValueError for a `latent_dim` < 1.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    generate: Callable[[Params, Float[Array, "batch z"], Cond], Float[Array, "batch *shape"]]
    init_discriminator: Callable[[Key[Array, ""]], Params]
    discriminate: Callable[[Params, Float[Array, "batch *shape"], Cond], Float[Array, "batch"]]
    losses: Losses
    penalty: Penalty
    latent_dim: int
    shape: tuple[int, ...]  # of one example
    modality: str = "array"  # kind of data of the example
    network_conditions: Conditions = NO_CONDITIONS  # conditions that both networks read
    batch_size: int = 128  # number of samples that are drawn at once
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.latent_dim >= 1, "latent_dim", self.latent_dim, "at least 1")

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The sum of the losses of both players. Metrics are its parts, and the logits."""
        x, cond = batch["x"], self.network_conditions.of(batch)
        z = jax.random.normal(key, (len(x), self.latent_dim), x.dtype)
        return two_player_loss(
            self.losses,
            self.penalty,
            lambda params, x: self.discriminate(params, x, cond),
            params["discriminator"],
            x,
            self.generate(params["network"], z, cond),
            None if train is None else train.step,
        )

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples": G(z)}, with z of row r from fold_in(key, ids[r])."""
        z = row_normal(row_keys(key, ids), jnp.zeros((len(ids), self.latent_dim)))
        return {"samples": self.generate(params["network"], z, self.network_conditions.of(cond))}

    def evaluations(self) -> int:
        """Evaluations of the generator for one sample (NFE)."""
        return 1
