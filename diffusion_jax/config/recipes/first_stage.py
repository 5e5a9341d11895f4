"""From a config to a first stage, and to a diffusion model of its latents."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from diffusion_jax import systems
from diffusion_jax.config.sections import ConfigError, construct, refusal
from diffusion_jax.config.trained import Trained
from diffusion_jax.data.sources.latents import read_header
from diffusion_jax.losses import first_stage as losses
from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.discriminator import NLayerDiscriminator
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.lpips import LPIPS
from diffusion_jax.networks.vq_model import VQModel
from diffusion_jax.systems import bottlenecks
from diffusion_jax.systems.autoencoder import Adversary, Autoencoder, Perceptual
from diffusion_jax.systems.latent_diffusion import first_stage_params
from diffusion_jax.training.checksums import checksums
from diffusion_jax.types import Params
from diffusion_jax.weights.lpips import load_lpips

# By system: what is between encoder and decoder, and the name of the network and the network that it trains.
BOTTLENECKS = {"autoencoder_kl": bottlenecks.Gaussian, "vqgan": bottlenecks.Codebook}
NETWORKS = {"autoencoder_kl": {"autoencoder_kl": AutoencoderKL}, "vqgan": {"vq_model": VQModel}}
_LPIPS_SIDE = 16  # pixels of the smallest image whose last features are not empty


def autoencoder(config: ConfigDict, shape: tuple[int, ...]) -> Autoencoder:
    """The first stage that a config describes, for images of `shape`. Raises ConfigError.

    Of the sections that describe a diffusion model only `network` and `loss`, the reconstruction, are used.
    """
    kind = config.system.name
    if len(shape) != 3:
        raise ConfigError(f"config.system.name={kind!r} needs images, not points such as those of {config.data.name!r}")
    name = config.network.get("name")
    if name not in NETWORKS[kind]:
        raise ConfigError(
            f"config.network.name={name!r} must be {', '.join(map(repr, NETWORKS[kind]))} for "
            f"config.system.name={kind!r}"
        )
    dtype, section = config.training.dtype, config.system.to_dict()
    parts = {key: section.pop(key, {"name": "none"}) for key in ("perceptual", "discriminator")}
    latent_scale = section.pop("latent_scale", 0.0)
    if not isinstance(latent_scale, int | float) or latent_scale < 0:
        raise ConfigError(f"config.system.latent_scale={latent_scale!r} must be a number of at least 0")

    def make(rngs):
        given = dict(image_size=shape[0], in_channels=shape[-1], rngs=rngs)
        return construct(NETWORKS[kind], "network", config.network, **given)

    with refusal("config.training.dtype"):
        init, (encode, decode) = init_methods(make, ("encode", "decode"), dtype)
    bottleneck = construct(BOTTLENECKS, "system", section, size=int(np.prod(shape)))
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    with refusal(f"config.network ({name})"):
        network = jax.eval_shape(init, jax.random.key(0))
        z = jax.eval_shape(lambda p, x: bottleneck.latent(None, encode(p, x)), network, x)
        y = jax.eval_shape(decode, network, z)
    if y.shape != x.shape:
        raise ConfigError(f"config.network ({name}) makes {y.shape[1:]} of images of {shape}; out_channels must fit")
    return systems.Autoencoder(
        init_network=init,
        encode=encode,
        decode=decode,
        bottleneck=bottleneck,
        reconstruction=_reconstruction(config),
        perceptual=construct(PERCEPTUAL, "system.perceptual", parts["perceptual"], shape=shape, dtype=dtype),
        adversary=construct(DISCRIMINATORS, "system.discriminator", parts["discriminator"], shape=shape, dtype=dtype),
        shape=shape,
        latent_shape=z.shape[1:],
        batch_size=config.sampling.batch_size,
        latent_scale=float(latent_scale),
    )


def _reconstruction(config: ConfigDict) -> Callable:
    names = losses.RECONSTRUCTIONS
    if config.loss.name not in names or len(config.loss) > 1:
        raise ConfigError(
            f"config.loss={config.loss.to_dict()!r} must be dict(name=...) with one of {', '.join(names)} for "
            f"config.system.name={config.system.name!r}"
        )
    return losses.reconstruction(config.loss.name)


def pretrained(config: ConfigDict) -> Params:
    """The weights of LPIPS, where the config asks for it."""
    section = config.system.get("perceptual", {"name": "none"})
    if section["name"] != "lpips":
        return {}
    files = {key: section.get(key, "") for key in ("vgg", "lin")}
    if not all(files.values()):
        raise ConfigError(
            f"config.system.perceptual.vgg={files['vgg']!r} and lin={files['lin']!r} must be the files of "
            "torchvision's VGG-16 and of the linear layers of LPIPS; config.system.perceptual.name=laplacian needs none"
        )
    with refusal("config.system.perceptual"):
        given = load_lpips(**files)
    return {"frozen": {"perceptual": given}}


def laplacian(weight: float = 1.0) -> Perceptual:
    """`losses.first_stage.laplacian`, which needs no weights."""
    return Perceptual(init=lambda key: {}, distance=lambda params, x, y: losses.laplacian(x, y), weight=weight)


def lpips(
    weight: float = 1.0, vgg: str = "", lin: str = "", *, shape: tuple[int, ...], dtype: str = "float32"
) -> Perceptual:
    """`networks.lpips` with the weights in the files `vgg` and `lin`, see `weights.lpips.load_lpips`."""
    if min(shape[:2]) < _LPIPS_SIDE or shape[-1] not in (1, 3):
        raise ValueError(f"images of {shape} must have 1 or 3 channels and sides of at least {_LPIPS_SIDE} pixels")
    init, (distance,) = init_methods(lambda rngs: LPIPS(rngs=rngs), ("distance",), dtype)
    return Perceptual(
        init=init, distance=lambda params, x, y: distance(params, jnp.stack([x, y], axis=1)), weight=weight
    )


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
    """`networks.discriminator.NLayerDiscriminator` as adversary, with `losses.first_stage.hinge` or `vanilla`."""

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
        raise ValueError(f"n_layers={n_layers} leave nothing of images of {shape}; take fewer")
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


def latent_diffusion(
    config: ConfigDict,
    open_trained: Callable[[str, str], Trained],
    make_diffusion: Callable[[ConfigDict], systems.Diffusion],
) -> systems.LatentDiffusion:
    """The diffusion model of latents that a config describes. Raises ConfigError.

    `make_diffusion` gets the config with the latents' size in the place of the images', and of config.system what is
    a diffusion model's.
    """
    run = first_stage_of(config, open_trained)
    stage, section = run.system, config.system.to_dict()
    own = {"name": section["name"], "decode_batch_size": section.get("decode_batch_size", 0)}
    rest = {key: value for key, value in section.items() if key not in (*own, "first_stage")}
    if config.evaluation.likelihood.name != "none":
        raise ConfigError(
            f"config.evaluation.likelihood.name={config.evaluation.likelihood.name!r} must be 'none': the density of "
            "latents is not that of images"
        )
    inner = ConfigDict(config.to_dict())
    inner.system = ConfigDict({"name": "diffusion", **rest})
    inner.data = ConfigDict(dict(name="encoded", image_size=stage.latent_shape[0], channels=stage.latent_shape[-1]))
    given = dict(diffusion=make_diffusion(inner), first_stage=stage, precomputed=config.data.get("name") == "latents")
    return construct({own["name"]: systems.LatentDiffusion}, "system", own, **given)


def pretrained_first_stage(config: ConfigDict, open_trained: Callable[[str, str], Trained]) -> Params:
    """The first stage of a latent diffusion model, frozen. Raises ConfigError."""
    return {"frozen": {"first_stage": first_stage_params(first_stage_of(config, open_trained).load())}}


def first_stage_of(config: ConfigDict, open_trained: Callable[[str, str], Trained]) -> Trained:
    """The run that config.system.first_stage names. ConfigError: there is none, or not for these images or latents."""
    field, path = "config.system.first_stage", config.system.get("first_stage", "")
    try:
        run = open_trained(path, field)
    except ConfigError as error:
        if path and (pathlib.Path(path) / "config.json").exists():
            raise
        raise ConfigError(
            f"{error}. This makes one: python -m diffusion_jax.main --config=configs/autoencoder_kl.py "
            f"--workdir={path or 'DIR'}; configs/vqgan.py is another, and both have variants for other data"
        ) from error
    if not isinstance(run.system, Autoencoder):
        raise ConfigError(f"{field}={path!r} is a run of config.system.name={run.config.system.name!r}, no first stage")
    shape = (config.data.get("image_size"), config.data.get("image_size"), config.data.get("channels"))
    if run.system.shape != shape:
        raise ConfigError(
            f"{field}={path!r} is for images of {run.system.shape}; config.data.image_size and channels are those of "
            f"{shape}"
        )
    if config.data.get("name") == "latents":
        with refusal("config.data"):
            header = read_header(config.data.get("path", ""), config.data.get("split", "train"))
        found = fingerprint(run.load())
        if header.first_stage != found or header.image_shape != shape:
            raise ConfigError(
                f"config.data.path={config.data.path!r} holds latents of images of {header.image_shape} from weights "
                f"{header.first_stage}; {field}={path!r} has weights {found} for {shape}. Encode with it: "
                f"python -m diffusion_jax.latents encode --first_stage={path} --to={config.data.path}"
            )
    return run


def fingerprint(params: Params) -> str:
    """16 hexadecimal digits that tell the network of an `Autoencoder` from others."""
    sums = json.dumps(checksums(params["network"]), sort_keys=True)
    return hashlib.sha256(sums.encode()).hexdigest()[:16]
