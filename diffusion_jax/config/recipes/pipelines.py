"""Text-to-image pipelines: text encoders, and the folder or file from which the frozen networks are loaded."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from diffusion_jax.config.names import AUTOENCODERS, TEXT_ENCODERS
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.sections import ConfigError, construct, lookup, refusal
from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.networks.unet_spec import UNetSpec
from diffusion_jax.types import Params
from diffusion_jax.weights import folders, public
from diffusion_jax.weights.files import open_weights
from diffusion_jax.weights.options import with_defaults

# Folders of the components of a pipeline.
TEXT_FOLDERS = ("text_encoder", "text_encoder_2")
_STAGE_FOLDERS = ("vae", "vqvae")
_LDM_TEXT = "bert"
_STAGE_PREFIX = "first_stage_model."  # of names in a file of a whole model


def stands_on(parts: Parts) -> dict[str, Callable[[], Params]]:
    """Functions that load the frozen networks from config.system.pipeline or config.weights; {} if both are empty.

    A new ControlNet starts from a copy of the encoder path of the U-Net (arXiv:2302.05543, section 3.1). Raises
    ConfigError.
    """
    config = parts.config
    folder = pipeline_of(config) or file_of(config)
    if folder is None:
        return {}
    field = "config.system.pipeline" if config.system.get("pipeline", "") else "config.weights"
    with refusal(field):
        components = folders.components(folder) if folder.is_dir() else {}
    load = functools.partial(_loaded, field, folder, components)
    frozen: dict[str, Callable[[], Params]] = {}
    for i, (name, section) in enumerate(encoder_sections(config).items()):
        init = encoder(section, config.training.dtype)[0]
        whole = {"name": section["name"], **with_defaults(TEXT_ENCODERS[section["name"]], section)}
        names = (name, _LDM_TEXT) if i == 0 else (name,)
        frozen[f"frozen/text/{i}"] = functools.partial(load, names, whole, (), init)
    section = config.system.first_stage.to_dict()
    if section["name"] != "identity":
        shape = (config.data.image_size, config.data.image_size, config.data.channels)
        init = _init(AUTOENCODERS[section["name"]], {"image_size": shape[0], "in_channels": shape[-1], **section})
        frozen["frozen/first_stage/network"] = functools.partial(load, _STAGE_FOLDERS, section, shape, init)
    if config.network.name == "controlnet":
        unet, (size, channels) = unet_section(config), latent_size(config)
        arguments = {"image_size": size, "in_channels": channels, **unet}
        shape = (size, size, arguments["in_channels"])
        init = _init(UNet2DConditionModel, arguments)
        loaded = functools.cache(functools.partial(load, ("unet",), unet, shape, init))
        frozen["frozen/unet"] = loaded
        if not config.weights:
            # A copy on the host, which is then laid out as the network is.
            frozen["network/encoder"] = lambda: jax.tree.map(np.array, loaded()["encoder"])
    return frozen


def _init(network: type[nnx.Module], section: Mapping[str, Any]) -> Callable[[Key[Array, ""]], Params]:
    arguments = {key: value for key, value in section.items() if key != "name"}
    return init_methods(lambda rngs: network(**arguments, rngs=rngs), ())[0]


def _loaded(
    field: str,
    folder: pathlib.Path,
    components: Mapping[str, str],
    names: tuple[str, ...],
    section: Mapping[str, Any],
    shape: tuple[int, ...],
    init: Callable[[Key[Array, ""]], Params],
) -> Params:
    """Loads the parameters of the component with one of `names`, from a folder or one file. Raises ConfigError."""
    with refusal(field):
        abstract_params = jax.eval_shape(init, jax.random.key(0))
        if folder.is_file():
            return public.load_network(folder, section, shape, abstract_params)
        present = [name for name in names if name in components]
        if not present:
            raise ValueError(
                f"it has no component {' or '.join(map(repr, names))}; it has {', '.join(components) or 'none'}"
            )
        return public.load_network(folder / present[0], section, shape, abstract_params)


def pipeline_of(config: ConfigDict) -> pathlib.Path | None:
    """The folder of diffusers with the frozen networks and the tokenizer; None without one. Raises ConfigError."""
    path = config.system.get("pipeline", "")
    if path and not folders.is_pipeline(pathlib.Path(path)) and not pathlib.Path(path).suffix:
        raise ConfigError(
            f"config.system.pipeline={path!r} must be a folder of diffusers, with a model_index.json, or one file of a "
            "whole model"
        )
    path = pathlib.Path(path or config.weights or ".")
    return path if folders.is_pipeline(path) else None


def file_of(config: ConfigDict) -> pathlib.Path | None:
    """The file of a whole model, in the format of its authors; None without one. Raises ConfigError."""
    pipeline = config.system.get("pipeline", "")
    path = pathlib.Path(pipeline or config.weights or ".")
    if pipeline and path.suffix and not path.exists():
        raise ConfigError(f"config.system.pipeline={pipeline!r} does not exist")
    if not path.is_file():
        return None
    with refusal("config.system.pipeline" if pipeline else "config.weights"):
        if any(name.startswith(_STAGE_PREFIX) for name in open_weights(path)):
            return path
        if pipeline:
            raise ValueError(f"{path} holds no first stage: no name begins with {_STAGE_PREFIX}")
    return None


def latent_size(config: ConfigDict) -> tuple[int, int]:
    """Side and channels of the latents. Raises ConfigError if config.data.image_size cannot be down-sampled."""
    section, side = config.system.first_stage.to_dict(), config.data.image_size
    if section.get("name") == "identity":
        return side, config.data.channels
    arguments = with_defaults(AutoencoderKL, section)
    factor = 2 ** (len(arguments["block_out_channels"]) - 1)
    if side % factor:
        raise ConfigError(f"config.data.image_size={side} must be a multiple of {factor}, for the first stage")
    return side // factor, arguments["latent_channels"]


def encoder_sections(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Sections of the text encoders by their folder in a pipeline. Raises ConfigError."""
    sections = {}
    for name in TEXT_FOLDERS:
        section = config.system.get(name, ConfigDict(dict(name="none")))
        if not isinstance(section, ConfigDict):
            raise ConfigError(f"config.system.{name}={section!r} must be a section such as dict(name='clip_text')")
        if name == "text_encoder" or section.get("name") != "none":
            lookup(TEXT_ENCODERS, f"system.{name}.name", section.get("name"))
            sections[name] = section.to_dict()
    return sections


def unet_section(config: ConfigDict) -> dict[str, Any]:
    """Section of the U-Net that a ControlNet controls."""
    names = {field.name for field in dataclasses.fields(UNetSpec)}
    return {
        "name": "unet_2d_condition",
        **{key: value for key, value in config.network.to_dict().items() if key in names},
    }


def encoder(section: Mapping[str, Any], dtype: str) -> tuple[Callable, Callable]:
    """Returns (init, encode) of a text encoder, encode(params, ids) -> its output. Raises ConfigError."""

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return construct(TEXT_ENCODERS, "system.text_encoder", section, rngs=rngs)

    with refusal("config.training.dtype"):
        init, (encode,) = init_methods(make, ("__call__",), dtype)
    return init, encode
