"""The recipe of `systems.TextToImage`: Stable Diffusion, inpainting, InstructPix2Pix, upscaling, ControlNet."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Key

from diffusion_jax import systems
from diffusion_jax.config import names
from diffusion_jax.config.names import TEXT_ENCODERS
from diffusion_jax.config.parts import Parts, no_likelihood, positive
from diffusion_jax.config.recipes import first_stage, pipelines, placeholders
from diffusion_jax.config.recipes.diffusion import check_no_resampler, diffusion
from diffusion_jax.config.recipes.pipelines import TEXT_FOLDERS, encoder_sections, latent_size, pipeline_of
from diffusion_jax.config.recipes.placeholders import NO_COUNTS, Placeholders
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Reading, Recipe
from diffusion_jax.config.sections import ConfigError, construct, lookup, refusal
from diffusion_jax.data import captions, tokenization
from diffusion_jax.data.derived import WITH_MASK, averaged
from diffusion_jax.guidance.editing import Editing
from diffusion_jax.losses import first_stage as losses
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.systems import bottlenecks
from diffusion_jax.systems import text_to_image as tasks
from diffusion_jax.systems.text_to_image import VECTORS, Task, Texts, TextToImage, with_rows
from diffusion_jax.types import Params, Placed, Spec
from diffusion_jax.weights import public
from diffusion_jax.weights.options import with_defaults

TASKS = {
    "text_to_image": tasks.TEXT_ALONE,
    "image_to_image": tasks.TEXT_ALONE,  # sampling starts from an image, see `_editing`
    "inpainting": Task(image=True, mask=True, read=tasks.masked),
    "instruct_pix2pix": Task(image=True, read=tasks.edited, dropped=True),
    "upscaling": Task(image=True, read=tasks.noised, at_latents=True),
}
ROLE = "text_to_image_model"
_NETWORKS = ("unet_2d_condition", "controlnet")
_BERT_ENDS = (101, 102)  # ids of [CLS] and [SEP] in the vocabulary of BERT; in that of CLIP they are the last two
# Keys of config.system that are not fields of `TextToImage`.
_OTHERS = (
    "name",
    "task",
    "pipeline",
    "tokenizer",
    "first_stage",
    "latent_scale",
    "strength",
    "embeddings",
    *TEXT_FOLDERS,
)


def build(parts: Parts) -> TextToImage:
    """The text-to-image system of a config. Raises ConfigError."""
    return text_to_image(parts)


def text_to_image(parts: Parts, counts: Mapping[str, int] = NO_COUNTS, own: tuple[str, ...] = ()) -> TextToImage:
    """The text-to-image system of a config, whose text encoders also read placeholder tokens. Raises ConfigError.

    `counts` are placeholder tokens with the number of their vectors, which are parameters, see `Texts`; those of the
    files config.system.embeddings are constants. `own` are keys of config.system that are not of this system.
    """
    config, section = parts.config, parts.section("system")
    if config.network.name not in _NETWORKS:
        raise ConfigError(f"config.network.name={config.network.name!r} must be one of {', '.join(_NETWORKS)}")
    no_likelihood(config, "the density of latents is not that of images")
    added = placeholders.of(config, counts)
    texts = _texts(parts, added)
    with refusal("config.system.negative_prompt"):
        texts.tokenize([section.get("negative_prompt", "")])
    stage = _first_stage(parts)
    latents = parts.at(Spec(stage.latent_shape, modality="latents"))
    # The system drops texts itself; the rate is passed on only to be checked against the guidance.
    model = dataclasses.replace(diffusion(latents, cond_dropout=section.get("cond_dropout", 0.0)), cond_dropout=0.0)
    check_no_resampler(parts, model)
    model = dataclasses.replace(model, editing=_editing(parts))
    options = {key: value for key, value in section.items() if key not in (*_OTHERS, *own)} | {"name": section["name"]}
    system = construct(
        {section["name"]: TextToImage},
        "system",
        options,
        diffusion=model,
        first_stage=stage,
        texts=texts,
        batch_conditions=_conditions(parts, added.total),
        task=_task(parts),
        controlled=config.network.name == "controlnet",
        networks=_placed(parts, model, stage),
    )
    _check_fits(parts, system)
    return system


def _editing(parts: Parts) -> Editing:
    """The editing of config.editing; for the task image_to_image SDEdit with config.system.strength."""
    config, task = parts.config, "image_to_image"
    if config.system.get("task", "") != task:
        return parts.editing
    if config.editing.name != "none":
        raise ConfigError(
            f"config.editing.name={config.editing.name!r} must be 'none' for config.system.task={task!r}, which is "
            "'sdedit' with config.system.strength"
        )
    strength = {key: config.system[key] for key in ("strength",) if key in config.system}
    editing = construct({task: names.EDITING["sdedit"]}, "system", {"name": task, **strength})
    with refusal("config.system"):
        editing.check(config.sampling.steps, parts.solver, parts.spec.shape)
    return editing


def _task(parts: Parts) -> Task:
    return lookup(TASKS, "system.task", parts.config.system.get("task", "text_to_image"))


def _placed(parts: Parts, model: systems.Diffusion, stage: systems.Autoencoder) -> dict[str, Placed]:
    """The networks by their folder in a pipeline of diffusers. If there is a ControlNet, only this is written."""
    config, networks = parts.config, dict(model.networks)
    frozen = public.within(stage.networks, ("frozen", "first_stage"))
    for i, (name, section) in enumerate(encoder_sections(config).items()):
        arguments = {key: value for key, value in section.items() if key != "name"}
        frozen[name] = Placed(section["name"], arguments, ("frozen", "text", str(i)))
    if config.network.name == "controlnet":
        own = networks.pop("unet")
        arguments = {key: value for key, value in pipelines.unet_section(config).items() if key != "name"}
        frozen["unet"] = Placed("unet_2d_condition", arguments, ("frozen", "unet"), own.shape)
        networks["controlnet"] = own
        frozen = {name: placed._replace(written=False) for name, placed in frozen.items()}
    return {**networks, **frozen}


def _conditions(parts: Parts, added: int) -> Conditions:
    """The conditions of batches and samples, with `added` ids of learned tokens. Raises ConfigError."""
    config, task = parts.config, _task(parts)
    encoders = [with_defaults(TEXT_ENCODERS[section["name"]], section) for section in encoder_sections(config).values()]
    lengths = {arguments["max_position_embeddings"] for arguments in encoders}
    if len(lengths) > 1:
        raise ConfigError(
            f"config.system.text_encoder and text_encoder_2 read texts of {' and '.join(map(str, lengths))} tokens; "
            "their states are concatenated, so max_position_embeddings must be the same"
        )
    side, channels = parts.spec.shape[0], parts.spec.shape[-1]
    size = latent_size(config)[0] if task.at_latents else side
    control = config.network.get("control_channels", 3) if config.network.name == "controlnet" else 0
    return Conditions(
        vocabulary=max(arguments["vocab_size"] for arguments in encoders) + added,
        token_dim=config.network.get("token_dim", 768),
        max_tokens=len(encoders) * lengths.pop(),
        image_shape=(size, size, channels + task.mask) if task.image else (),
        control_shape=(side, side, control) if control else (),
    )


def reading(parts: Parts, system: TextToImage) -> Reading:
    """The tokenizers of the text encoders, and the derived image of the task, if data has none. Raises ConfigError."""
    task, derive = system.task, None
    if parts.config.data.get("tokenizer", ""):
        raise ConfigError(
            f"config.data.tokenizer={parts.config.data.tokenizer!r} is for networks with a vocabulary of their own; a "
            "text-to-image model has config.system.tokenizer"
        )
    if task.at_latents:
        derive = averaged(latent_size(parts.config)[0])
    elif task.mask:
        derive = WITH_MASK
    return Reading(system.texts.tokenize, system.texts.describe, derive)


def _tokenizers(
    parts: Parts, placeholders: Placeholders
) -> list[Callable[[Sequence[str]], Int32[np.ndarray, "n length"]]]:
    """One tokenizer for each text encoder, which knows the placeholder tokens. Raises ConfigError."""
    config, tokenizers = parts.config, []
    path, pipeline = config.system.get("tokenizer", ""), pipeline_of(config)
    for i, section in enumerate(encoder_sections(config).values()):
        arguments = with_defaults(TEXT_ENCODERS[section["name"]], section)
        length, vocabulary = arguments["max_position_embeddings"], arguments["vocab_size"]
        added = placeholders.ids(vocabulary)
        if path == "bytes" and vocabulary < captions.VOCABULARY:
            raise ConfigError(
                f"config.system.text_encoder.vocab_size={vocabulary} must be {captions.VOCABULARY} for bytes"
            )
        if path == "bytes":
            options = dict(max_tokens=length, cuts=captions.Cuts(), added=added)
            tokenizers.append(functools.partial(_byte_tokens, **options))
        elif path or pipeline:
            with refusal("config.system.tokenizer"):
                folder = pathlib.Path(path) if path else pipeline / ("tokenizer", "tokenizer_2")[i]
                part = tokenization.load(folder, max_tokens=length, pad_id=_pad_id(section["name"], arguments))
                part = part.with_tokens(added) if added else part
                # If both encoders share a folder, it has the padding of the first.
                tokenizers.append(dataclasses.replace(part, pad_id=0) if path and i else part)
        elif added:
            raise ConfigError(
                f"the placeholder token {next(iter(added))!r} needs the files of a tokenizer: set "
                "config.system.tokenizer to their folder, or config.system.pipeline to the folder of a pipeline"
            )
        else:
            start, end = _BERT_ENDS if section["name"] == "ldm_bert" else (vocabulary - 2, vocabulary - 1)
            pad_id = _pad_id(section["name"], arguments)
            row = [start, end] + [end if pad_id is None else pad_id] * (length - 2)
            tokenizers.append(functools.partial(_only_empty, row=np.array(row, np.int32)))
    return tokenizers


def _pad_id(name: str, arguments: Mapping[str, Any]) -> int | None:
    """The padding id for a tokenizer that has none; None: pad with the end-of-text token, as OpenAI's CLIP does.

    OpenCLIP pads with 0; its text encoders are recognised by their activation.
    """
    return 0 if name == "ldm_bert" or arguments["hidden_act"] != "quick_gelu" else None


def _texts(parts: Parts, placeholders: Placeholders) -> Texts:
    """The text encoders of the config: the states of all, concatenated, and the pooled state of the last."""
    config, tokenizers = parts.config, _tokenizers(parts, placeholders)
    sections = encoder_sections(config)
    tables = [TEXT_ENCODERS[section["name"]].token_table for section in sections.values()]
    encoders = [pipelines.encoder(section, config.training.dtype) for section in sections.values()]
    vector = config.network.get("vector_dim", 0)

    def tokenize(texts: Sequence[str]) -> Int32[np.ndarray, "n max_tokens"]:
        return np.concatenate([part(texts) for part in tokenizers], axis=1)

    def init(key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, len(encoders))
        return {str(i): start(keys[i]) for i, (start, _) in enumerate(encoders)}

    def encode(params: Params, ids: Int[Array, "batch n"]) -> dict[str, Array]:
        halves, own = jnp.split(ids, len(encoders), axis=1), params.get(VECTORS, {})
        outputs = []
        for i, (_, call) in enumerate(encoders):
            rows = [*([own[str(i)]] if own else []), *(part.vectors[i] for part in placeholders.learned)]
            outputs.append(call(with_rows(params[str(i)], tables[i], rows), halves[i]))
        conditions = {"tokens": jnp.concatenate([output.hidden for output in outputs], axis=-1)}
        return conditions | ({"vector": outputs[-1].pooled} if vector else {})

    def describe(ids: Int[np.ndarray, "batch n"]) -> list[str]:
        first = np.asarray(ids)[:, : ids.shape[1] // len(encoders)]
        if isinstance(tokenizers[0], tokenization.Tokenizer):
            return tokenizers[0].describe(first)
        if config.system.get("tokenizer", "") != "bytes":
            return [""] * len(ids)
        return captions.texts_of(first, tokenizers[0].keywords["added"])

    return Texts(init=init, encode=encode, tokenize=tokenize, describe=describe)


def _byte_tokens(
    texts: Sequence[str], max_tokens: int, cuts: captions.Cuts, added: captions.Added
) -> Int32[np.ndarray, "n max_tokens"]:
    tokenization.check_texts(texts)
    return captions.tokens_of(texts, max_tokens, cuts, added)


def _only_empty(texts: Sequence[str], row: Int32[np.ndarray, "max_tokens"]) -> Int32[np.ndarray, "n max_tokens"]:
    """A tokenizer of empty texts only: their ids are `row`. Raises ValueError for other texts."""
    tokenization.check_texts(texts)
    if any(texts):
        raise ValueError(
            "texts need the files of a tokenizer: set config.system.tokenizer to their folder, or "
            "config.system.pipeline or config.weights to the folder of a pipeline of diffusers"
        )
    return np.tile(row, (len(texts), 1))


def _first_stage(parts: Parts) -> systems.Autoencoder:
    section, scale = parts.config.system.get("first_stage"), parts.config.system.get("latent_scale", 1.0)
    if section is None or "name" not in section:
        raise ConfigError("config.system.first_stage is missing; it is a section such as dict(name='autoencoder_kl')")
    scale = positive("system.latent_scale", scale)
    if section.name == "identity":
        return _identity(parts.spec, parts.config.sampling.batch_size, scale)
    options = dict(name="autoencoder_kl", latent_scale=scale)
    return first_stage.autoencoder(parts, options, section.to_dict(), dict(name="l1"), field="system.first_stage")


def _identity(spec: Spec, batch_size: int, scale: float) -> systems.Autoencoder:
    """A first stage whose latents are the images, for models of small images."""
    return systems.Autoencoder(
        init_network=lambda key: {},
        encode=lambda params, x: jnp.concatenate([x, jnp.full_like(x, -30.0)], axis=-1),
        decode=lambda params, z: z,
        bottleneck=bottlenecks.Gaussian(),
        reconstruction=losses.reconstruction("l1"),
        perceptual=None,
        adversary=None,
        shape=spec.shape,
        latent_shape=spec.shape,
        encoded_shape=(*spec.shape[:-1], 2 * spec.shape[-1]),
        modality=spec.modality,
        batch_size=batch_size,
        latent_scale=scale,
    )


def _check_fits(parts: Parts, system: TextToImage) -> None:
    """Raises ConfigError unless the network reads the conditions that the text encoders and the task give."""
    config, shapes = parts.config, system.conditions.shapes
    cond = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in shapes.items()}

    def encode(cond: dict[str, Array]) -> dict[str, Array]:
        return system.encode_conditions(system.init(jax.random.key(0)), jax.random.split(jax.random.key(0), 1), cond)

    with refusal("config.system"):
        available = jax.eval_shape(encode, cond)
    for name, entry in system.diffusion.network_conditions.shapes.items():
        shape = available[name].shape[1:] if name in available else None
        if shape != entry.shape:
            raise ConfigError(
                f"config.network ({config.network.name}) needs the condition {name!r} of shape {entry.shape}; with "
                f"config.system.task={config.system.get('task', 'text_to_image')!r}, its encoders and its first stage "
                f"it {'is missing' if shape is None else f'has the shape {shape}'}"
            )
    unread = sorted(available.keys() - system.diffusion.network_conditions.shapes.keys())
    if unread:
        raise ConfigError(
            f"config.network ({config.network.name}) does not read the condition {unread[0]!r} of "
            f"config.system.task={config.system.get('task', 'text_to_image')!r}"
        )


RECIPE = Recipe(
    build=build,
    reads=TRAINING | SAMPLING | {"evaluation.likelihood"},
    stands_on=pipelines.stands_on,
    reading=reading,
    role=ROLE,
)
