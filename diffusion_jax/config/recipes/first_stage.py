"""The recipes of `systems.Autoencoder`, first stages of latent diffusion: KL autoencoders and VQGANs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from diffusion_jax import systems
from diffusion_jax.config import names
from diffusion_jax.config.parts import Parts, positive
from diffusion_jax.config.recipes.recipe import Recipe, check_dequantized, check_likelihood_levels
from diffusion_jax.config.sections import ConfigError, check_sizes, construct, refusal
from diffusion_jax.losses import first_stage as losses
from diffusion_jax.networks.discriminator import NLayerDiscriminator
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.lpips import lpips as lpips_of
from diffusion_jax.systems.autoencoder import Adversary, DecoderNoise, Perceptual
from diffusion_jax.types import Params, Placed
from diffusion_jax.weights.lpips import load_lpips

_MODALITIES = ("image", "mel")
_NETWORKS = {"autoencoder_kl": "autoencoder_kl", "vqgan": "vq_model"}  # system -> network
_LIKELIHOODS = ("autoencoder_kl",)  # systems whose latents have a density, so that they are VAEs with a likelihood
_COMPONENTS = {"autoencoder_kl": "vae", "vq_model": "vqvae"}  # network -> component of a pipeline of diffusers


def build(parts: Parts) -> systems.Autoencoder:
    """The autoencoder of a config, from its sections `system`, `network` and `loss`. Raises ConfigError."""
    return autoencoder(parts, parts.section("system"), parts.section("network"), parts.section("loss"))


def build_vae(parts: Parts) -> systems.Autoencoder:
    """The same with the likelihood of a VAE, the section `evaluation.likelihood`. Raises ConfigError."""
    made = build(parts)
    section = parts.config.evaluation.likelihood
    likelihood = construct(names.VAE_LIKELIHOODS, "evaluation.likelihood", section, levels=parts.levels)
    if likelihood and not made.noise:
        raise ConfigError(
            f"config.evaluation.likelihood.name={section.name!r} needs config.loss.name='gaussian': a decoder without "
            "noise has no likelihood"
        )
    if made.noise:
        check_dequantized(parts)
    return dataclasses.replace(made, likelihood=likelihood)


def autoencoder(
    parts: Parts,
    options: Mapping[str, Any],
    network: Mapping[str, Any],
    loss: Mapping[str, Any],
    field: str = "network",
) -> systems.Autoencoder:
    """The autoencoder for images, or spectrograms as images, of `parts.spec`. Raises ConfigError.

    Args:
      parts: gives the spec, the dtype and the batch size of sampling.
      options: the section config.system of an autoencoder.
      network: name and arguments of its network, the section `field` of the config.
      loss: the section of its reconstruction loss.
    """
    options, shape, dtype = dict(options), parts.spec.shape, parts.config.training.dtype
    kind, name = options["name"], network.get("name")
    if parts.spec.modality not in _MODALITIES or len(shape) != 3:
        raise ConfigError(
            f"config.system.name={kind!r} needs images, or spectrograms with config.data.features='mel_image', but "
            f"config.data.name={parts.config.data.name!r} holds {parts.spec.modality} of {shape}"
        )
    if name != _NETWORKS[kind]:
        raise ConfigError(f"config.{field}.name={name!r} must be {_NETWORKS[kind]!r} for config.system.name={kind!r}")
    perceptual, adversary = (options.pop(key, {"name": "none"}) for key in ("perceptual", "discriminator"))
    latent_scale = positive("system.latent_scale", options.pop("latent_scale", 0.0), zero=True)

    check_sizes(names.AUTOENCODERS[name], field, network)

    def make(rngs):
        sizes = dict(image_size=shape[0], in_channels=shape[-1])
        return construct({name: names.AUTOENCODERS[name]}, field, network, **sizes, rngs=rngs)

    with refusal("config.training.dtype"):
        init, (encode, decode) = init_methods(make, ("encode", "decode"), dtype)
    bottleneck = construct(names.BOTTLENECKS, "system", options, size=int(np.prod(shape)))
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    with refusal(f"config.{field} ({name})"):
        params = jax.eval_shape(init, jax.random.key(0))
        h = jax.eval_shape(encode, params, x)
        z = jax.eval_shape(functools.partial(bottleneck.latent, None), h)
        y = jax.eval_shape(decode, params, z)
    if y.shape != x.shape:
        raise ConfigError(f"config.{field} ({name}) returns {y.shape[1:]} for images of {shape}; out_channels must fit")
    arguments = {key: value for key, value in network.items() if key != "name"}

    def adopt(params: Params, network: Params) -> Params:
        """The parameters with a network from elsewhere, and the state of the bottleneck for it."""
        state = jax.jit(bottleneck.adopt)(network)
        return {**params, "network": network, "frozen": {**params["frozen"], "bottleneck": state}}

    return systems.Autoencoder(
        init_network=init,
        encode=encode,
        decode=decode,
        bottleneck=bottleneck,
        **_reconstruction(loss, kind, shape),
        perceptual=construct(PERCEPTUAL, "system.perceptual", perceptual, shape=shape, dtype=dtype),
        adversary=construct(DISCRIMINATORS, "system.discriminator", adversary, shape=shape, dtype=dtype),
        shape=shape,
        latent_shape=z.shape[1:],
        encoded_shape=h.shape[1:],
        modality=parts.spec.modality,
        batch_size=parts.config.sampling.batch_size,
        latent_scale=latent_scale,
        networks={
            _COMPONENTS[name]: Placed(
                name,
                arguments,
                ("network",),
                shape,
                adopt=adopt,
                extra=lambda params: {"scaling_factor": scaling_factor(params["frozen"]["latents"], latent_scale)},
            )
        },
    )


def scaling_factor(moments: Mapping[str, Array], latent_scale: float) -> float:
    """The scaling factor of diffusers: `latent_scale`, or the inverse root of the mean variance of the channels."""
    square, mean = np.asarray(moments["square"]), np.asarray(moments["mean"])
    return latent_scale or 1 / float(np.sqrt(np.mean(square - np.square(mean))))


def _reconstruction(loss: Mapping[str, Any], kind: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The fields of the autoencoder that say what reconstructions are trained for."""
    if kind in _LIKELIHOODS and loss.get("name") == "gaussian":
        return {"reconstruction": None, "noise": construct({"gaussian": decoder_noise}, "loss", loss, shape=shape)}
    choices = losses.RECONSTRUCTIONS
    if loss.get("name") not in choices or len(loss) > 1:
        raise ConfigError(
            f"config.loss={dict(loss)!r} must be dict(name=...) with one of {', '.join(choices)} for "
            f"config.system.name={kind!r}{', or gaussian' if kind in _LIKELIHOODS else ''}"
        )
    return {"reconstruction": losses.reconstruction(loss["name"])}


def decoder_noise(log_sigma: float = -1.0, per_value: bool = True, *, shape: tuple[int, ...]) -> DecoderNoise:
    """The learned noise of the decoder: one sigma for each value of an image, or one for all."""
    return DecoderNoise(shape=shape if per_value else (), log_sigma=log_sigma)


def stands_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """The weights of LPIPS, if config.system.perceptual.name is "lpips"."""
    section = parts.config.system.get("perceptual", {"name": "none"})
    if section["name"] != "lpips":
        return {}
    load = lpips_weights("system.perceptual", section, "config.system.perceptual.name=laplacian needs none")
    return {"frozen/perceptual": load}


def lpips_weights(field: str, section: Mapping[str, Any], instead: str) -> Callable[[], Params]:
    """Loads the weights of LPIPS from the files `vgg` and `lin` of a section.

    Raises ConfigError, which says what can be used `instead`, if they are not given.
    """
    files = {key: section.get(key, "") for key in ("vgg", "lin")}
    if not all(files.values()):
        raise ConfigError(
            f"config.{field}.vgg={files['vgg']!r} and lin={files['lin']!r} must be the files of torchvision's VGG-16 "
            f"and of the linear layers of LPIPS; {instead}"
        )

    def load() -> Params:
        with refusal(f"config.{field}"):
            return load_lpips(**files)

    return load


def laplacian(weight: float = 1.0) -> Perceptual:
    """The perceptual loss `losses.first_stage.laplacian`, which has no parameters."""
    return Perceptual(init=lambda key: {}, distance=lambda params, x, y: losses.laplacian(x, y), weight=weight)


def lpips(
    weight: float = 1.0, vgg: str = "", lin: str = "", *, shape: tuple[int, ...], dtype: str = "float32"
) -> Perceptual:
    """The perceptual loss LPIPS with the weights in the files `vgg` and `lin`, see `weights.lpips.load_lpips`."""
    init, distance = lpips_of(shape, dtype)
    return Perceptual(init=init, distance=distance, weight=weight)


def patchgan(
    channels: int = 64,
    n_layers: int = 3,
    num_groups: int = 32,
    loss: str = "hinge",
    start: int = 0,
    weight: float = 1.0,
    adaptive: bool = True,
    *,
    shape: tuple[int, ...],
    dtype: str = "float32",
) -> Adversary:
    """The discriminator of PatchGAN, with the loss "hinge" or "vanilla" of `losses.first_stage`."""

    def make(rngs):
        return NLayerDiscriminator(
            in_channels=shape[-1], channels=channels, n_layers=n_layers, num_groups=num_groups, rngs=rngs
        )

    if loss not in losses.DISCRIMINATOR_LOSSES:
        raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(losses.DISCRIMINATOR_LOSSES)}")
    init, (discriminate,) = init_methods(make, ("discriminate",), dtype)
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    logits: Array = jax.eval_shape(lambda key, x: discriminate(init(key), x), jax.random.key(0), x)
    if logits.size == 0:
        raise ValueError(f"n_layers={n_layers} gives no logits for images of {shape}; it must be less")
    return Adversary(
        init=init,
        discriminate=discriminate,
        loss=losses.DISCRIMINATOR_LOSSES[loss],
        start=start,
        weight=weight,
        adaptive=adaptive,
    )


PERCEPTUAL = {"none": lambda: None, "laplacian": laplacian, "lpips": lpips}
DISCRIMINATORS = {"none": lambda: None, "patchgan": patchgan}
_READS = frozenset({"network", "loss"})
RECIPE = Recipe(
    build=build_vae,
    reads=_READS | {"evaluation.likelihood"},
    stands_on=stands_on,
    check=check_likelihood_levels,
    role="first_stage",
)
VQGAN = Recipe(build=build, reads=_READS, stands_on=stands_on, role="first_stage", trains_lora=False)
