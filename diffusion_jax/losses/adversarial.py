"""Losses of a generator and a discriminator, relativistic and non-saturating, and zero-centred gradient penalties."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.processes.base import row_sum
from diffusion_jax.types import Params, check

Logits = Float[Array, "*n"]
Critic = Callable[[Float[Array, "batch *shape"]], Float[Array, "batch"]]  # x -> logits, high for real examples


class Losses(NamedTuple):
    """The losses of both players as functions of the logits of real and of generated examples, of the same shape."""

    discriminator: Callable[[Logits, Logits], Logits]
    generator: Callable[[Logits, Logits], Logits]


def relativistic(real: Logits, fake: Logits) -> Logits:
    """softplus(-(D(x) - D(G(z)))), the discriminator's loss of R3GAN, in pairs of a real and a generated example
    (arXiv:2501.05441, eq. 2). The generator's is that with `real` and `fake` exchanged. A constant in D cancels."""
    return jax.nn.softplus(fake - real)


def non_saturating(real: Logits, fake: Logits) -> Logits:
    """softplus(-D(x)) + softplus(D(G(z))), minus the log-likelihood of the classes real and generated
    (arXiv:1406.2661, eq. 1, on logits)."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


LOSSES = {
    "relativistic": Losses(relativistic, lambda real, fake: relativistic(fake, real)),
    "non_saturating": Losses(non_saturating, lambda real, fake: jax.nn.softplus(-fake)),
}


def gradient_penalty(critic: Critic, x: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """|grad_x D(x)|^2 / 2 of each example: R1 at real, R2 at generated examples (arXiv:1801.04406, eq. 9 and 10).

    The logit of an example must not depend on other examples.
    """
    gradient = jax.grad(lambda x: critic(x).sum())(x)
    return 0.5 * row_sum(jnp.square(gradient))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty:
    """The penalty r1 R1 + r2 R2, see `gradient_penalty`, in every `every`-th step, counted from 0.

    Both weights are multiplied by a factor that falls from 1 to `final_factor` in `anneal_steps` steps along half a
    cosine and stays there (R3GAN's, arXiv:2501.05441, appendix). They are not multiplied by `every`, as in the code of
    denoising diffusion GANs; StyleGAN2's gamma is r1 / every.

    Raises ValueError for a negative or infinite weight, `every` < 1, or a `final_factor` outside [0, 1].
    """

    r1: float = 1.0
    r2: float = 0.0
    every: int = 1
    final_factor: float = 1.0
    anneal_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("r1", "r2"):
            check(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "at least 0 and finite")
        check(self.every >= 1, "every", self.every, "at least 1")
        check(0 <= self.final_factor <= 1, "final_factor", self.final_factor, "in [0, 1]")
        check(self.anneal_steps >= 0, "anneal_steps", self.anneal_steps, "at least 0")

    def factor(self, step: Array) -> Float[Array, ""]:
        """The factor of both weights at a step of training."""
        if not self.anneal_steps:
            return jnp.float32(1)
        progress = jnp.minimum(step / self.anneal_steps, 1)
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    def __call__(
        self, critic: Critic, real: Float[Array, "batch *shape"], fake: Float[Array, "batch *shape"], step: Array
    ) -> Float[Array, "batch"]:
        """The penalty of each pair at a step of training."""

        def penalty() -> Float[Array, "batch"]:
            at = ((self.r1, real), (self.r2, fake))
            return self.factor(step) * sum(
                (weight * gradient_penalty(critic, x) for weight, x in at if weight), start=jnp.zeros(len(real))
            )

        if self.every == 1:
            return penalty()
        return jax.lax.cond(step % self.every == 0, penalty, lambda: jnp.zeros(len(real)))


def two_player_loss(
    losses: Losses,
    penalty: Penalty,
    discriminate: Callable[[Params, Array], Float[Array, "batch"]],
    params: Params,
    real: Float[Array, "batch *shape"],
    fake: Float[Array, "batch *shape"],
    step: Array | None = None,
) -> tuple[Float[Array, "batch"], dict[str, Float[Array, "batch"]]]:
    """The sum of both players' losses, whose one gradient is a simultaneous step of both.

    L_G(D(x), D(fake)) has no gradient for `params`, those of the discriminator, and L_D and the penalty have none for
    `fake`. So the gradient for the generator is that of L_G alone, and that for the discriminator that of L_D and the
    penalty. Without a `step`, in evaluation, there is no penalty.

    Returns (loss, metrics): the parts of the loss, and the logits of real and of generated examples.
    """
    stop = jax.lax.stop_gradient
    on_real, on_fake = discriminate(params, real), discriminate(params, stop(fake))
    generator = losses.generator(stop(on_real), discriminate(stop(params), fake))
    discriminator = losses.discriminator(on_real, on_fake)
    metrics = {"generator_loss": generator, "discriminator_loss": discriminator}
    loss = generator + discriminator
    if step is not None and (penalty.r1 or penalty.r2):
        metrics["penalty"] = penalty(functools.partial(discriminate, params), real, stop(fake), step)
        loss = loss + metrics["penalty"]
    return loss, metrics | {"logits_real": on_real, "logits_fake": on_fake}
