"""From a config to a text-to-image system: text encoders, a first stage and a network, from a folder of diffusers."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Int32, Key
from ml_collections import ConfigDict

from diffusion_jax import systems
from diffusion_jax.config.sections import ConfigError, construct, lookup, refusal
from diffusion_jax.data import captions, tokenization
from diffusion_jax.data.derived import ITSELF, WITH_MASK, Derived, averaged
from diffusion_jax.losses import first_stage as losses
from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.clip import CLIPTextModel
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.controlnet import ControlNetModel, controlled_unet
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.ldm_bert import LDMBert
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.networks.unet_spec import UNetSpec
from diffusion_jax.systems import bottlenecks
from diffusion_jax.systems import text_to_image as tasks
from diffusion_jax.systems.text_to_image import Task, Texts, TextToImage
from diffusion_jax.types import Params
from diffusion_jax.weights import folders, public
from diffusion_jax.weights.files import open_weights
from diffusion_jax.weights.options import with_defaults

TASKS = {
    "text_to_image": tasks.TEXT_ALONE,
    "image_to_image": Task(image=True, start=True),
    "inpainting": Task(image=True, mask=True, read=tasks.masked),
    "instruct_pix2pix": Task(image=True, read=tasks.edited, dropped=True),
    "upscaling": Task(image=True, read=tasks.noised, at_latents=True),
}
ENCODERS = {"clip_text": CLIPTextModel, "ldm_bert": LDMBert}
# Folders of the components of a pipeline.
_TEXT_FOLDERS = ("text_encoder", "text_encoder_2")
_STAGE_FOLDERS = ("vae", "vqvae")
_LDM_TEXT = "bert"
_BERT_ENDS = (101, 102)  # [CLS] and [SEP] of the vocabulary of BERT; CLIP's ends with its two
_STAGE_PREFIX = "first_stage_model."  # in a file of a whole model
_OTHERS = ("name", "task", "pipeline", "tokenizer", "first_stage", "latent_scale", *_TEXT_FOLDERS)


# What builds the network, by its name in a config.
NETWORKS = {"unet_2d_condition": UNet2DConditionModel, "controlnet": controlled_unet}


def network_conditions(config: ConfigDict, image_size: int) -> Conditions:
    """What a network of `NETWORKS` reads, for x of `image_size`."""
    controlled = config.network.name == "controlnet"
    given = with_defaults(ControlNetModel if controlled else UNet2DConditionModel, config.network.to_dict())
    image = given.get("image_channels", 0)
    side = image_size * 2 ** (len(given["hint_channels"]) - 1) if controlled else 0
    return Conditions(
        **{name: given[name] for name in ("num_classes", "vector_dim", "num_sizes", "token_dim", "max_tokens")},
        unmasked=not given["masked_tokens"],
        image_shape=(image_size, image_size, image) if image else (),
        control_shape=(side, side, given["control_channels"]) if controlled else (),
    )


def conditions(config: ConfigDict) -> Conditions:
    """What batches of a text-to-image system hold, and what its samples are made from."""
    task = lookup(TASKS, "system.task", config.system.get("task", "text_to_image"))
    encoders = [with_defaults(ENCODERS[section["name"]], section) for section in encoder_sections(config).values()]
    lengths = {given["max_position_embeddings"] for given in encoders}
    if len(lengths) > 1:
        raise ConfigError(
            f"config.system.text_encoder and text_encoder_2 read texts of {' and '.join(map(str, lengths))} tokens; "
            "their states lie side by side, so that max_position_embeddings must be the same"
        )
    side = config.data.image_size
    size = _latent_size(config)[0] if task.at_latents else side
    control = config.network.get("control_channels", 3) if config.network.name == "controlnet" else 0
    return Conditions(
        vocabulary=max(given["vocab_size"] for given in encoders),
        token_dim=config.network.get("token_dim", 768),
        max_tokens=len(encoders) * lengths.pop(),
        image_shape=(size, size, config.data.channels + task.mask) if task.image else (),
        control_shape=(side, side, control) if control else (),
    )


def derived(config: ConfigDict) -> Derived | None:
    """What makes the image of the task of an example that has none; None where the data must give it."""
    task = lookup(TASKS, "system.task", config.system.get("task", "text_to_image"))
    if task.at_latents:
        return averaged(_latent_size(config)[0])
    return WITH_MASK if task.mask else ITSELF if task.start else None


def text_to_image(config: ConfigDict, make_system: Callable[[ConfigDict], Any]) -> TextToImage:
    """The system that a config describes. `make_system` builds systems of other configs. Raises ConfigError."""
    section, side = config.system.to_dict(), config.data.image_size
    task = lookup(TASKS, "system.task", section.get("task", "text_to_image"))
    lookup(NETWORKS, "network.name", config.network.name)
    if config.evaluation.likelihood.name != "none":
        raise ConfigError(
            f"config.evaluation.likelihood.name={config.evaluation.likelihood.name!r} must be 'none': the density of "
            "latents is not that of images"
        )
    texts = _texts(config)
    with refusal("config.system.negative_prompt"):
        texts.tokenize([section.get("negative_prompt", "")])
    stage = _first_stage(config, (side, side, config.data.channels), make_system)
    inner = ConfigDict(config.to_dict())
    inner.system = ConfigDict({"name": "diffusion", "cond_dropout": section.get("cond_dropout", 0.0)})
    inner.data = ConfigDict(dict(name="encoded", image_size=stage.latent_shape[0], channels=stage.latent_shape[-1]))
    diffusion = dataclasses.replace(make_system(inner), cond_dropout=0.0)
    if diffusion.resampler is not None:
        raise ConfigError(f"config.times.name={config.times.name!r} follows losses; a text-to-image model has no state")
    options = {key: value for key, value in section.items() if key not in _OTHERS} | {"name": section["name"]}
    built = construct(
        {"text_to_image": TextToImage},
        "system",
        options,
        diffusion=diffusion,
        first_stage=stage,
        texts=texts,
        conditions=conditions(config),
        task=task,
        controlled=config.network.name == "controlnet",
    )
    _check_fits(config, built)
    return built


def tokenizer(config: ConfigDict) -> Callable[[Sequence[str]], Int32[np.ndarray, "n max_tokens"]]:
    """Texts to the ids that the text encoders of the config read, side by side.

    Raises ConfigError for files that are missing or cannot be read.
    """
    parts = _tokenizers(config)
    return lambda texts: np.concatenate([part(texts) for part in parts], axis=1)


def _tokenizers(config: ConfigDict) -> list[Callable[[Sequence[str]], Int32[np.ndarray, "n length"]]]:
    """One for each text encoder."""
    path, pipeline, parts = config.system.get("tokenizer", ""), pipeline_of(config), []
    for i, section in enumerate(encoder_sections(config).values()):
        given = with_defaults(ENCODERS[section["name"]], section)
        length, vocabulary = given["max_position_embeddings"], given["vocab_size"]
        if path == "bytes" and vocabulary < captions.VOCABULARY:
            raise ConfigError(
                f"config.system.text_encoder.vocab_size={vocabulary} must be {captions.VOCABULARY} for bytes"
            )
        if path == "bytes":
            parts.append(functools.partial(_byte_tokens, max_tokens=length))
        elif path or pipeline:
            with refusal("config.system.tokenizer"):
                folder = pathlib.Path(path) if path else pipeline / ("tokenizer", "tokenizer_2")[i]
                part = tokenization.load(folder, max_tokens=length, pad_id=_pad_id(section["name"], given))
                # One folder for both encoders names the padding of the first.
                parts.append(dataclasses.replace(part, pad_id=0) if path and i else part)
        else:
            start, end = _BERT_ENDS if section["name"] == "ldm_bert" else (vocabulary - 2, vocabulary - 1)
            pad_id = _pad_id(section["name"], given)
            row = [start, end] + [end if pad_id is None else pad_id] * (length - 2)
            parts.append(functools.partial(_only_empty, row=np.array(row, np.int32)))
    return parts


def _pad_id(name: str, given: Mapping[str, Any]) -> int | None:
    """What fills up rows where a tokenizer does not say: None for the end of the text as for OpenAI's CLIP, which has
    another activation than OpenCLIP's."""
    return 0 if name == "ldm_bert" or given["hidden_act"] != "quick_gelu" else None


def pretrained(config: ConfigDict) -> dict[str, Any]:
    """The frozen parts, from the folder or file config.system.pipeline or config.weights; none without.

    A new ControlNet begins as a copy of the U-Net's way down (arXiv:2302.05543, section 3.1). Raises ConfigError.
    """
    folder = pipeline_of(config) or file_of(config)
    if folder is None:
        return {}
    copied: dict[str, Any] = {}
    frozen: dict[str, Any] = {"text": {}}
    with refusal("config.system.pipeline" if config.system.get("pipeline", "") else "config.weights"):
        held = folders.components(folder) if folder.is_dir() else {}
        for i, (name, section) in enumerate(encoder_sections(config).items()):
            init = _encoder(section, config.training.dtype)[0]
            whole = {"name": section["name"], **with_defaults(ENCODERS[section["name"]], section)}
            names = (name, _LDM_TEXT) if i == 0 else (name,)
            frozen["text"][str(i)] = _component(folder, held, names, whole, (), init)
        section = config.system.first_stage.to_dict()
        if section["name"] != "identity":
            shape = (config.data.image_size, config.data.image_size, config.data.channels)
            arguments = {"image_size": shape[0], "in_channels": shape[-1], **section}
            del arguments["name"]
            init = init_methods(lambda rngs: AutoencoderKL(**arguments, rngs=rngs), ())[0]
            frozen["first_stage"] = {"network": _component(folder, held, _STAGE_FOLDERS, section, shape, init)}
        if config.network.name == "controlnet":
            unet, (size, channels) = unet_section(config), _latent_size(config)
            arguments = {"image_size": size, "in_channels": channels, **unet}
            del arguments["name"]
            init = init_methods(lambda rngs: UNet2DConditionModel(**arguments, rngs=rngs), ())[0]
            shape = (size, size, arguments["in_channels"])
            frozen["unet"] = _component(folder, held, ("unet",), unet, shape, init)
            if not config.weights:
                # On the host, from where it goes to the network's own layout.
                copied = {"network": {"encoder": jax.tree.map(np.array, frozen["unet"]["encoder"])}}
    return {"frozen": frozen, **copied}


def _component(
    folder: pathlib.Path,
    held: Mapping[str, str],
    names: tuple[str, ...],
    section: Mapping[str, Any],
    shape: tuple[int, ...],
    init: Callable[[Key[Array, ""]], Params],
) -> Params:
    abstract_params = jax.eval_shape(init, jax.random.key(0))
    if folder.is_file():
        return public.load_network(folder, section, shape, abstract_params)
    found = [name for name in names if name in held]
    if not found:
        raise ValueError(f"it has no component {' or '.join(map(repr, names))}; it has {', '.join(held) or 'none'}")
    return public.load_network(folder / found[0], section, shape, abstract_params)


def pipeline_of(config: ConfigDict) -> pathlib.Path | None:
    """The folder of the frozen parts and the tokenizer; None where there is none."""
    path = config.system.get("pipeline", "")
    if path and not folders.is_pipeline(pathlib.Path(path)) and not pathlib.Path(path).suffix:
        raise ConfigError(
            f"config.system.pipeline={path!r} must be a folder of diffusers, with a model_index.json, or one file of a "
            "whole model"
        )
    path = pathlib.Path(path or config.weights or ".")
    return path if folders.is_pipeline(path) else None


def file_of(config: ConfigDict) -> pathlib.Path | None:
    """The one file that holds a whole model, as its authors write it; None where there is none."""
    given = config.system.get("pipeline", "")
    path = pathlib.Path(given or config.weights or ".")
    if given and path.suffix and not path.exists():
        raise ConfigError(f"config.system.pipeline={given!r} does not exist")
    if not path.is_file():
        return None
    with refusal("config.system.pipeline" if given else "config.weights"):
        if any(name.startswith(_STAGE_PREFIX) for name in open_weights(path)):
            return path
        if given:
            raise ValueError(f"{path} holds no first stage, whose names begin with {_STAGE_PREFIX}")
    return None


def _latent_size(config: ConfigDict) -> tuple[int, int]:
    """Side and channels of the latents of config.data.image_size. Raises ConfigError unless that can be divided."""
    section, side = config.system.first_stage.to_dict(), config.data.image_size
    if section.get("name") == "identity":
        return side, config.data.channels
    given = with_defaults(AutoencoderKL, section)
    factor = 2 ** (len(given["block_out_channels"]) - 1)
    if side % factor:
        raise ConfigError(f"config.data.image_size={side} must be a multiple of {factor}, for the first stage")
    return side // factor, given["latent_channels"]


def encoder_sections(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Those of the text encoders, by the folder in a pipeline."""
    found = {}
    for name in _TEXT_FOLDERS:
        section = config.system.get(name, ConfigDict(dict(name="none")))
        if not isinstance(section, ConfigDict):
            raise ConfigError(f"config.system.{name}={section!r} must be a section such as dict(name='clip_text')")
        if name == "text_encoder" or section.get("name") != "none":
            lookup(ENCODERS, f"system.{name}.name", section.get("name"))
            found[name] = section.to_dict()
    return found


def unet_section(config: ConfigDict) -> dict[str, Any]:
    """That of the U-Net below a ControlNet."""
    names = {field.name for field in dataclasses.fields(UNetSpec)}
    return {
        "name": "unet_2d_condition",
        **{key: value for key, value in config.network.to_dict().items() if key in names},
    }


def _encoder(section: Mapping[str, Any], dtype: str) -> tuple[Callable, Callable]:
    """(init, encode) with encode(params, ids) -> the encoder's output."""

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return construct(ENCODERS, "system.text_encoder", section, rngs=rngs)

    with refusal("config.training.dtype"):
        init, (encode,) = init_methods(make, ("__call__",), dtype)
    return init, encode


def _texts(config: ConfigDict) -> Texts:
    """The text encoders of the config: the states of all side by side, and the pooled text of the last."""
    sections = encoder_sections(config)
    encoders = [_encoder(section, config.training.dtype) for section in sections.values()]
    parts, vector = _tokenizers(config), config.network.get("vector_dim", 0)

    def tokenize(texts: Sequence[str]) -> Int32[np.ndarray, "n max_tokens"]:
        return np.concatenate([part(texts) for part in parts], axis=1)

    def init(key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, len(encoders))
        return {str(i): start(keys[i]) for i, (start, _) in enumerate(encoders)}

    def encode(params: Params, ids: Int[Array, "batch n"]) -> dict[str, Array]:
        halves = jnp.split(ids, len(encoders), axis=1)
        read = [call(params[str(i)], halves[i]) for i, (_, call) in enumerate(encoders)]
        states = [out.hidden if hasattr(out, "hidden") else out for out in read]
        given = {"tokens": jnp.concatenate(states, axis=-1)}
        return given | ({"vector": read[-1].pooled} if vector else {})

    def describe(ids: Int[np.ndarray, "batch n"]) -> list[str]:
        first = np.asarray(ids)[:, : ids.shape[1] // len(encoders)]
        if isinstance(parts[0], tokenization.Tokenizer):
            return parts[0].backend.decode_batch(first.tolist(), skip_special_tokens=True)
        return captions.texts_of(first) if config.system.get("tokenizer", "") == "bytes" else [""] * len(ids)

    return Texts(init=init, encode=encode, tokenize=tokenize, describe=describe)


def _byte_tokens(texts: Sequence[str], max_tokens: int) -> Int32[np.ndarray, "n max_tokens"]:
    tokenization.check_texts(texts)
    return captions.tokens_of(texts, max_tokens)


def _only_empty(texts: Sequence[str], row: Int32[np.ndarray, "max_tokens"]) -> Int32[np.ndarray, "n max_tokens"]:
    """The ids of empty texts, which are `row`."""
    tokenization.check_texts(texts)
    if any(texts):
        raise ValueError(
            "texts need the files of a tokenizer: give config.system.tokenizer=FOLDER, or as config.system.pipeline or "
            "config.weights the folder of a pipeline of diffusers"
        )
    return np.tile(row, (len(texts), 1))


def _first_stage(
    config: ConfigDict, shape: tuple[int, ...], make_system: Callable[[ConfigDict], Any]
) -> systems.Autoencoder:
    if not isinstance(config.system.get("first_stage"), ConfigDict):
        raise ConfigError("config.system.first_stage is missing; it is a section such as dict(name='autoencoder_kl')")
    section, scale = config.system.first_stage.to_dict(), config.system.get("latent_scale", 1.0)
    if not isinstance(scale, int | float) or scale <= 0:
        raise ConfigError(f"config.system.latent_scale={scale!r} must be a positive number")
    if section["name"] == "identity":
        return _identity(shape, config.sampling.batch_size, float(scale))
    inner = ConfigDict(config.to_dict())
    inner.system = ConfigDict(dict(name="autoencoder_kl", latent_scale=float(scale)))
    inner.network, inner.loss = ConfigDict(section), ConfigDict(dict(name="l1"))
    try:
        return make_system(inner)
    except ConfigError as error:  # which names sections of the inner config
        raise ConfigError(f"config.system.first_stage: {error}") from error


def _identity(shape: tuple[int, ...], batch_size: int, scale: float) -> systems.Autoencoder:
    """A first stage whose latents are the images, for models of small ones."""
    return systems.Autoencoder(
        init_network=lambda key: {},
        encode=lambda params, x: jnp.concatenate([x, jnp.full_like(x, -30.0)], axis=-1),
        decode=lambda params, z: z,
        bottleneck=bottlenecks.Gaussian(),
        reconstruction=losses.reconstruction("l1"),
        perceptual=None,
        adversary=None,
        shape=shape,
        latent_shape=shape,
        batch_size=batch_size,
        latent_scale=scale,
    )


def _check_fits(config: ConfigDict, system: TextToImage) -> None:
    """Refuse a network that does not read what the encoders and the first stage give it."""
    rows, given = 1, jax.ShapeDtypeStruct
    cond = {name: given((rows, *x.shape), x.dtype) for name, x in system.conditions.shapes.items()}

    def read(cond: dict[str, Array]) -> dict[str, Array]:
        return system.network_conditions(system.init(jax.random.key(0)), jax.random.split(jax.random.key(0), 1), cond)

    with refusal("config.system"):
        found = jax.eval_shape(read, cond)
    for name, entry in system.diffusion.conditions.shapes.items():
        shape = found[name].shape[1:] if name in found else None
        if shape != entry.shape:
            raise ConfigError(
                f"config.network ({config.network.name}) needs the condition {name!r} of shape {entry.shape}; with "
                f"config.system.task={config.system.get('task', 'text_to_image')!r}, its encoders and its first stage "
                f"{'it is not there' if shape is None else f'it is {shape}'}"
            )
    unread = sorted(found.keys() - system.diffusion.conditions.shapes.keys())
    if unread:
        raise ConfigError(
            f"config.network ({config.network.name}) does not read the condition {unread[0]!r}, which is there with "
            f"config.system.task={config.system.get('task', 'text_to_image')!r}"
        )
