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
from diffusion_jax.config.sections import ConfigError, check_sizes, construct, lookup, refusal
from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.networks.unet_spec import UNetSpec
from diffusion_jax.types import Params
from diffusion_jax.weights import autoencoders, folders, public
from diffusion_jax.weights.files import open_weights, read_json
from diffusion_jax.weights.options import with_defaults

# Folders of the components of a pipeline.
TEXT_FOLDERS = ("text_encoder", "text_encoder_2")
_STAGE_FOLDERS = ("vae", "vqvae")
_LDM_TEXT = "bert"
# Beginnings of names in a single file.
_STAGE_PREFIX = "first_stage_model."
_UNET_PREFIX = "model.diffusion_model."
_TEXT_PREFIXES = (("cond_stage_model.", "conditioner.embedders.0."), ("conditioner.embedders.1.",))
_PIPELINE = "config.system.pipeline"


def stands_on(parts: Parts) -> dict[str, Callable[[], Params]]:
    """Functions that load the frozen networks from config.weights and config.system.pipeline; {} if both are empty.

    What the folder or file of config.weights has is taken from it, and the rest from the pipeline; below a ControlNet
    the pipeline comes first. A new ControlNet starts from a copy of the encoder path of the U-Net (arXiv:2302.05543,
    section 3.1). Raises ConfigError if the pipeline lacks one.
    """
    config = parts.config
    load = functools.partial(_loader, sources(config))
    frozen: dict[str, Callable[[], Params] | None] = {}
    for i, (name, section) in enumerate(encoder_sections(config).items()):
        init = encoder(section, config.training.dtype)[0]
        whole = {"name": section["name"], **with_defaults(TEXT_ENCODERS[section["name"]], section)}
        names, prefixes = (name, _LDM_TEXT) if i == 0 else (name,), _TEXT_PREFIXES[i]
        frozen[f"frozen/text/{i}"] = load(names, prefixes, whole, (), init)
    section = config.system.first_stage.to_dict()
    if section["name"] != "identity":
        shape = (config.data.image_size, config.data.image_size, config.data.channels)
        init = _init(AUTOENCODERS[section["name"]], {"image_size": shape[0], "in_channels": shape[-1], **section})
        found = load(
            _STAGE_FOLDERS, (_STAGE_PREFIX,), section, shape, init, check=functools.partial(_check_scale, config)
        )
        frozen["frozen/first_stage/network"] = found
    if config.network.name == "controlnet":
        found = unet(config)
        loaded = frozen["frozen/unet"] = found and functools.cache(found)
        if loaded and not config.weights:
            # A copy on the host, which is then laid out as the network is.
            frozen["network/encoder"] = lambda: jax.tree.map(np.array, loaded()["encoder"])
    return {path: function for path, function in frozen.items() if function}


def unet(config: ConfigDict) -> Callable[[], Params] | None:
    """The function that loads the U-Net of config.weights or config.system.pipeline; None if both are empty.

    Raises ConfigError if the pipeline lacks one.
    """
    section, (size, channels) = unet_section(config), latent_size(config)
    arguments = {"image_size": size, "in_channels": channels, **section}
    shape = (size, size, arguments["in_channels"])
    init = _init(UNet2DConditionModel, arguments)
    return _loader(sources(config), ("unet",), (_UNET_PREFIX,), section, shape, init)


def _init(network: type[nnx.Module], section: Mapping[str, Any]) -> Callable[[Key[Array, ""]], Params]:
    arguments = {key: value for key, value in section.items() if key != "name"}
    return init_methods(lambda rngs: network(**arguments, rngs=rngs), ())[0]


def _loader(
    places: Mapping[str, pathlib.Path],
    names: tuple[str, ...],
    prefixes: tuple[str, ...],
    section: Mapping[str, Any],
    shape: tuple[int, ...],
    init: Callable[[Key[Array, ""]], Params],
    check: Callable[[pathlib.Path], None] | None = None,
) -> Callable[[], Params] | None:
    """Returns the function that loads a network from the first place that has it; None if none of them does.

    It is the component with one of `names` of a folder, or what begins with one of `prefixes` in a single file; `check`
    raises ValueError if this place does not fit the config. Raises ConfigError if config.system.pipeline is among the
    places and none has it.
    """
    for field, place in places.items():
        with refusal(field):
            component = _held(place, names, prefixes)
        if component is not None:
            return functools.partial(_loaded, field, component, section, shape, init, check)
    if _PIPELINE in places:
        place = places[_PIPELINE]
        if place.is_file():
            missing = f"{names[0]}: no name in it begins with {' or '.join(prefixes)}"
        else:
            there = ", ".join(folders.components(place)) or "none"
            missing = f"component {' or '.join(map(repr, names))}; it has {there}"
        raise ConfigError(f"{_PIPELINE}: {place} has no {missing}")
    return None


def _held(place: pathlib.Path, names: tuple[str, ...], prefixes: tuple[str, ...]) -> pathlib.Path | None:
    """The component of a pipeline that is one of `names`, or a single file with names that begin with `prefixes`."""
    if place.is_file():
        names_ = (name for name in open_weights(place) if not name.endswith("position_ids"))  # which no encoder needs
        return place if any(name.startswith(prefixes) for name in names_) else None
    components = folders.components(place)
    return next((place / name for name in names if name in components), None)


def _loaded(
    field: str,
    path: pathlib.Path,
    section: Mapping[str, Any],
    shape: tuple[int, ...],
    init: Callable[[Key[Array, ""]], Params],
    check: Callable[[pathlib.Path], None] | None,
) -> Params:
    """Loads the parameters of a network from the folder of its component or a single file. Raises ConfigError."""
    with refusal(field):
        if check is not None:
            check(path)
        return public.load_network(path, section, shape, jax.eval_shape(init, jax.random.key(0)))


def _check_scale(config: ConfigDict, path: pathlib.Path) -> None:
    """Raises ValueError if the folder of a first stage states another factor of its latents than the config."""
    stated = read_json(path / "config.json") if path.is_dir() else {}
    if "scaling_factor" in stated:
        there, here = autoencoders.scaling_factor(stated), config.system.get("latent_scale", 1.0)
        if not np.isclose(there, here, rtol=1e-3):
            raise ValueError(f"{path}: scaling_factor={there:g} there, config.system.latent_scale={here:g} here")


def sources(config: ConfigDict) -> dict[str, pathlib.Path]:
    """The pipelines and single files that may hold frozen networks, by the field that names them. Raises ConfigError.

    The first that has a network provides it.
    """
    pipeline, fields = config.system.get("pipeline", ""), {}
    if pipeline and not folders.is_pipeline(pathlib.Path(pipeline)) and not pathlib.Path(pipeline).is_file():
        raise ConfigError(
            f"{_PIPELINE}={pipeline!r} must be a folder of diffusers, with a model_index.json, or one file of a whole "
            "model"
        )
    weights = pathlib.Path(config.weights or ".")
    if weights.is_file() or (config.weights and folders.is_pipeline(weights)):
        fields["config.weights"] = weights
    if pipeline:
        fields[_PIPELINE] = pathlib.Path(pipeline)
    return dict(reversed(fields.items())) if config.network.name == "controlnet" else fields


def pipeline_of(config: ConfigDict) -> pathlib.Path | None:
    """The pipeline with the tokenizer, or else any; None if only files are named. Raises ConfigError."""
    places = [place for place in sources(config).values() if place.is_dir()]
    return next((place for place in places if (place / "tokenizer").is_dir()), places[0] if places else None)


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
            check_sizes(TEXT_ENCODERS[section.name], f"system.{name}", sections[name])
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


def vocabulary(section: Mapping[str, Any]) -> int:
    """The number of ids of a text encoder."""
    return with_defaults(TEXT_ENCODERS[section["name"]], section)["vocab_size"]
