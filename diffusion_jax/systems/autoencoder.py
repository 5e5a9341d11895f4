"""Autoencoders (KL, VQ-VAE, VQGAN), the first stages of latent diffusion, with or without a discriminator."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.evaluation.reconstruction import psnr, ssim
from diffusion_jax.losses.first_stage import adaptive_weight, gaussian_likelihood, generator_loss
from diffusion_jax.networks.conditions import Conditions, image
from diffusion_jax.processes import row_keys
from diffusion_jax.systems import moments
from diffusion_jax.systems.base import Sampled
from diffusion_jax.systems.bottlenecks import Bottleneck
from diffusion_jax.types import Cond, Params, Placed, Spec, Train, check_choice

Pairwise = Callable[[Float[Array, "batch h w c"], Float[Array, "batch h w c"]], Float[Array, "batch"]]
NORMALIZATIONS = ("channels", "scale", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversary:
    """A discriminator and its losses: `init(key) -> params`, `discriminate(params, x) -> logits`.

    Raises ValueError for a negative `start` or `weight`.
    """

    init: Callable[[Key[Array, ""]], Params]
    discriminate: Callable[[Params, Array], Array]
    loss: Callable[[Array, Array], Float[Array, "batch"]]  # (logits of images, of reconstructions) -> loss
    start: int = 0  # first step at which the adversarial losses are active
    weight: float = 1.0  # of the generator loss, relative to the reconstruction loss
    adaptive: bool = True  # multiply the generator loss by `losses.first_stage.adaptive_weight`

    def __post_init__(self) -> None:
        if self.start < 0 or self.weight < 0:
            raise ValueError(f"start={self.start} and weight={self.weight} must be at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perceptual:
    """A perceptual distance of images, `distance(params, x, y) -> [batch]`. Its parameters, `init(key)`, are frozen.

    Raises ValueError for a negative `weight`.
    """

    init: Callable[[Key[Array, ""]], Params]
    distance: Callable[[Params, Array, Array], Float[Array, "batch"]]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must be at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderNoise:
    """The noise of the decoder of a VAE, p(x | z) = N(x; decode(z), sigma^2), whose log sigma is trained.

    `shape` is () for one sigma, or that of an image for one for each value; `log_sigma` is its value at step 0.
    """

    shape: tuple[int, ...] = ()
    log_sigma: float = -1.0

    def init(self) -> Params:
        return {"log_sigma": jnp.full(self.shape, self.log_sigma)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder(Sampled):
    """An autoencoder: train `encode` and `decode` to reconstruct images through a bottleneck. See `types.System`.

    The loss of an image is its reconstruction loss, its perceptual loss, the penalty of the bottleneck, and from step
    `start` of the adversary the generator loss and the discriminator loss (arXiv:2012.09841, arXiv:2112.10752). The
    last one reaches the parameters of the discriminator only, all others do not reach these, so that one optimizer step
    trains both networks.

    With `noise` the reconstruction loss is -log p(x | z) in nats per dimension, so that with a Gaussian bottleneck of
    kl_weight 1 and no other losses the loss is minus the ELBO of a VAE (arXiv:1312.6114), and samples are means of
    p(x | z), z from the prior.

    Parameters are {"network", "discriminator" (with an adversary), "decoder" (with noise), "frozen": {"bottleneck",
    "latents", "perceptual"}}.
    `latents` are running averages of the mean and the mean square of each channel of the latents; diffusion models see
    the latents normalised with them, see `shift_and_scale`, or multiplied by `latent_scale` if that is not 0.

    Raises ValueError for an unknown `normalize`.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    encode: Callable[[Params, Array], Array]
    decode: Callable[[Params, Array], Array]
    bottleneck: Bottleneck
    reconstruction: Pairwise | None  # None: the likelihood of `noise`
    perceptual: Perceptual | None
    adversary: Adversary | None
    shape: tuple[int, ...]  # of an image
    latent_shape: tuple[int, ...]  # of the decoder's input
    encoded_shape: tuple[int, ...] = ()  # of the encoder's output: moments of a Gaussian, or the latent itself
    modality: str = "image"  # kind of data of the example
    batch_size: int = 128  # number of samples that are drawn at once
    latent_scale: float = 0.0
    normalize: str = "channels"
    noise: DecoderNoise | None = None
    likelihood: Callable[..., dict[str, Array]] | None = None  # that `evaluate` computes, from `log_weight`
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, NORMALIZATIONS)

    @property
    def batch(self) -> dict[str, Spec]:
        return {"x": self.makes}

    @property
    def makes(self) -> Spec:
        return Spec(self.shape, modality=self.modality)

    @property
    def conditions(self) -> Conditions:
        """Images "x" to reconstruct; without them samples are decoded from the prior of the bottleneck."""
        return Conditions({"x": image(self.shape)._replace(optional=True)})

    def init(self, key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, 3)
        network = self.init_network(keys[0])
        frozen = {"bottleneck": self.bottleneck.init(network), "latents": moments.init(self.latent_shape[-1])}
        if self.perceptual:
            frozen["perceptual"] = self.perceptual.init(keys[1])
        trained = {"discriminator": self.adversary.init(keys[2])} if self.adversary else {}
        if self.noise:
            trained["decoder"] = self.noise.init()
        return {"network": network, **trained, "frozen": frozen}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, PyTree[Array]]]:
        """The sum of all losses. Without `train` there is no adversary and the latents are not random.

        Metrics are the parts of the loss, and in training the "statistics" that `advance` needs.
        """
        x, network = batch["x"], params["network"]
        h = self.encode(network, x)
        z, penalty, metrics, statistics = self.bottleneck(
            network, params["frozen"]["bottleneck"], None if train is None else key, h
        )
        metrics["penalty"] = penalty
        distance = functools.partial(self._distance, params, x)
        if train is None or self.adversary is None:
            y = self.decode(network, z)
            loss = distance(y)
            metrics["reconstruction"] = loss
        else:
            # The adaptive weight needs the derivative for the last kernel only: it costs one layer, not the decoder.
            last = network["decoder"]["conv_out"]["kernel"]
            y, pull = jax.vjp(lambda kernel: self.decode(_with_last(network, kernel), z), last)
            loss = distance(y)
            metrics["reconstruction"] = loss
            adversarial, parts = self._adversarial(params, x, y, distance, pull, train)
            loss, metrics = loss + adversarial, metrics | parts
        if train is not None:
            metrics["statistics"] = {"bottleneck": statistics, "latents": moments.of(z)}
        return loss + penalty, metrics

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """Update the state of the bottleneck and the statistics of latents from those of the batch."""
        statistics, frozen = metrics["statistics"], params["frozen"]
        network, bottleneck = self.bottleneck.advance(params["network"], frozen["bottleneck"], statistics["bottleneck"])
        latents = moments.advanced(frozen["latents"], statistics["latents"], train)
        return {**params, "network": network, "frozen": {**frozen, "bottleneck": bottleneck, "latents": latents}}

    def latents(
        self, params: Params, keys: Key[Array, "batch"] | None, h: Float[Array, "batch h w c"]
    ) -> Float[Array, "batch h w z"]:
        """Normalised latents (z - shift) / scale, z ~ q(z | x), of the encoder output h; without `keys`, the mean."""
        shift, scale = self.shift_and_scale(params)
        return (self.bottleneck.latent(keys, h) - shift) / scale

    def decode_latents(self, params: Params, z: Float[Array, "batch h w z"]) -> Float[Array, "batch h2 w2 c"]:
        """Decode normalised latents to images."""
        shift, scale = self.shift_and_scale(params)
        return self.decode(params["network"], shift + scale * z)

    def shift_and_scale(self, params: Params) -> tuple[Float[Array, "z"], Float[Array, "z"]]:
        """The numbers that `latents` normalises with, per channel.

        With a `latent_scale` 0 and 1 / `latent_scale`. Otherwise by `normalize`: "channels", mean and standard
        deviation of each channel; "scale", 0 and one standard deviation, that of all entries (`scale_by_std` of latent
        diffusion, arXiv:2112.10752, appendix G); "none", 0 and 1.
        """
        average = params["frozen"]["latents"]
        if self.latent_scale:
            return jnp.zeros_like(average["mean"]), jnp.full_like(average["mean"], 1 / self.latent_scale)
        if self.normalize == "none":
            return jnp.zeros_like(average["mean"]), jnp.ones_like(average["mean"])
        if self.normalize == "scale":
            variance = average["square"].mean() - jnp.square(average["mean"].mean())
            return jnp.zeros_like(average["mean"]), jnp.full_like(average["mean"], moments.root(variance))
        return moments.mean_and_std(average)

    def reconstruct(self, params: Params, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Returns decode(encode(x)), with the mean of the latents."""
        return self.decode(params["network"], self.bottleneck.latent(None, self.encode(params["network"], x)))

    def log_weight(self, params: Params, key: Key[Array, ""], x: Float[Array, "batch h w c"]) -> Float[Array, "batch"]:
        """log p(x, z) - log q(z | x) in nats, for one z ~ q(z | x) of a VAE with `noise`; its mean is the ELBO."""
        h = self.encode(params["network"], x)
        z = self.bottleneck.latent(row_keys(key, jnp.arange(len(x))), h)
        nats = x[0].size * self._reconstruction(params)(x, self.decode(params["network"], z))
        return self.bottleneck.log_ratio(h, z) - nats

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out images without the adversary, its parts, "psnr" in dB and "ssim", and the values
        of `likelihood`."""
        loss, metrics = self.loss(params, key, batch, None)
        parts = {name: value for name, value in metrics.items() if value.shape == loss.shape}
        x, y = batch["x"], jnp.clip(self.reconstruct(params, batch["x"]), -1, 1)
        values = {"loss": loss, **parts, "psnr": psnr(x, y), "ssim": ssim(x, y)}
        if self.likelihood:
            values |= self.likelihood(functools.partial(self.log_weight, params), jax.random.fold_in(key, 1), x)
        return values

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples", "original"}, reconstructions and their images cond["x"]; without these images {"samples"},
        decoded from the prior of the bottleneck."""
        if cond is not None:
            return {"samples": self.reconstruct(params, cond["x"]), "original": cond["x"]}
        z = self.bottleneck.prior(params["network"], row_keys(key, ids), self.latent_shape)
        return {"samples": self.decode(params["network"], z)}

    def _reconstruction(self, params: Params) -> Pairwise:
        return gaussian_likelihood(params["decoder"]["log_sigma"]) if self.noise else self.reconstruction

    def _distance(self, params: Params, x: Array, y: Array) -> Float[Array, "batch"]:
        distance = self._reconstruction(params)(x, y)
        if self.perceptual:
            frozen = params["frozen"]["perceptual"]
            distance = distance + self.perceptual.weight * self.perceptual.distance(frozen, x, y)
        return distance

    def _adversarial(
        self, params: Params, x: Array, y: Array, distance: Callable, pull: Callable, train: Train
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The weighted generator loss plus the discriminator loss, and their metrics.

        `distance(y)` is the reconstruction loss, `pull` the VJP of y for the last kernel of the decoder.
        """
        adversary, stop = self.adversary, jax.lax.stop_gradient
        discriminator = params["discriminator"]

        def generator(y: Array) -> Float[Array, "batch"]:
            return generator_loss(adversary.discriminate(stop(discriminator), y))

        weight = jnp.float32(1.0)
        if adversary.adaptive:
            gradients = [pull(jax.grad(lambda y, f=f: f(y).mean())(stop(y))) for f in (distance, generator)]
            weight = adaptive_weight(*gradients)
        real, fake = adversary.discriminate(discriminator, x), adversary.discriminate(discriminator, stop(y))
        on_generator, on_discriminator = generator(y), adversary.loss(real, fake)
        active = train.step >= adversary.start
        loss = jnp.where(active, adversary.weight * weight * on_generator + on_discriminator, 0.0)
        parts = {"generator_loss": on_generator, "discriminator_loss": on_discriminator, "adaptive_weight": weight}
        return loss, parts | {"logits_real": real.mean(), "logits_fake": fake.mean()}


def _with_last(network: Params, kernel: Array) -> Params:
    conv_out = {**network["decoder"]["conv_out"], "kernel": kernel}
    return {**network, "decoder": {**network["decoder"], "conv_out": conv_out}}
