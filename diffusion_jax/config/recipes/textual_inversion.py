"""The recipe of `systems.textual_inversion`: new token vectors of a run of text to image, or of a public pipeline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.config.names import TEXT_ENCODERS
from diffusion_jax.config.parts import Parts, positive
from diffusion_jax.config.recipes import pipelines, placeholders, text_to_image
from diffusion_jax.config.recipes.recipe import Reading, Recipe
from diffusion_jax.config.recipes.text_to_image import ROLE
from diffusion_jax.config.sections import ConfigError, changes, check_type, construct, refusal
from diffusion_jax.config.trained import Trained
from diffusion_jax.data import Source, arrays
from diffusion_jax.systems.text_to_image import TEXT_ALONE, VECTORS
from diffusion_jax.systems.textual_inversion import TextualInversion
from diffusion_jax.types import Params

_OWN = ("model", "model_config", "placeholder", "num_vectors", "initializer")  # not keys of text-to-image models
_FREE = ("weighted", "cond_dropout", "negative_prompt", "embeddings", "pipeline", "tokenizer", "decode_batch_size")
_CHECKED = 256  # examples whose texts must have the placeholder


def build(parts: Parts) -> TextualInversion:
    """The system that learns the vectors of config.system.placeholder. Raises ConfigError."""
    config, section = parts.config, parts.section("system")
    if config.weights:
        raise ConfigError(
            f"config.weights={config.weights!r} must be empty for textual inversion: config.system.model is the run "
            "whose token is learned, or config.system.pipeline a pipeline of diffusers"
        )
    token, number = section.get("placeholder", ""), section.get("num_vectors", 1)
    check_type("system.placeholder", token, "str")
    check_type("system.num_vectors", number, "int")
    positive("system.num_vectors", number)
    with refusal("config.system.placeholder"):
        if not token.strip() or len(token.split()) > 1:
            raise ValueError(f"{token!r} must be one token, such as '<new>'")
        if token in config.data.get("captions", ()):
            raise ValueError(f"{token!r} is one of config.data.captions; choose a token that no text has")
    system = text_to_image.text_to_image(parts, {token: number}, _OWN)
    if system.controlled or system.task is not TEXT_ALONE:
        raise ConfigError(
            f"config.system.task={section.get('task', '')!r} and config.network.name={config.network.name!r}: a token "
            "is learned by a model of text alone"
        )
    if _run(parts) is None and not section.get("pipeline"):
        raise ConfigError(
            "config.system.model must be the work directory of a run of text to image, or config.system.pipeline a "
            "pipeline of diffusers: textual inversion trains no network"
        )
    dims = placeholders.dims(config)
    initializer_ids(parts, system.tokenize)
    placed = {
        name: entry._replace(path=("frozen", *entry.path) if entry.path[0] != "frozen" else entry.path, written=False)
        for name, entry in system.networks.items()
    }
    options = dict(system=system, token=token, shapes={str(i): (number, dim) for i, dim in enumerate(dims.values())})
    return construct({section["name"]: TextualInversion}, "system", {"name": section["name"]}, placed=placed, **options)


def initializer_ids(parts: Parts, tokenize: Callable[..., np.ndarray]) -> list[list[int]]:
    """The ids, for each text encoder, whose vectors the new ones start as: of one token, or of one for each vector.

    [] where config.system.initializer is empty. Raises ConfigError for another number of tokens.
    """
    section = parts.config.system
    text, number = section.get("initializer", ""), section.get("num_vectors", 1)
    check_type("system.initializer", text, "str")
    if not text:
        return []
    with refusal("config.system.initializer"):
        both = np.split(tokenize(["", text]), len(pipelines.encoder_sections(parts.config)), axis=1)
    found = []
    for empty, ids in both:
        # The text lies between the start and the end of the empty one, and moves the end.
        start = next((i for i, (a, b) in enumerate(zip(empty, ids, strict=True)) if a != b), len(ids))
        rest = ids[start:].tolist()
        end = [i for i in range(len(rest)) if rest[i:] == empty[start : len(empty) - i].tolist()]
        own = rest[: end[0]] if end else rest
        if len(own) not in (1, number):
            raise ConfigError(
                f"config.system.initializer={text!r} has {len(own)} tokens; it must have one, or one for each of "
                f"config.system.num_vectors={number}"
            )
        found.append(own * number if len(own) == 1 else own)
    return found


def _run(parts: Parts) -> Trained | None:
    """The run of config.system.model; None if it is not set. Raises ConfigError unless it is of the same model."""
    section = parts.config.system
    path, field = section.get("model", ""), "config.system.model"
    if not path:
        return None
    run = parts.trained(path, field, role=ROLE, config_file=section.get("model_config", ""))
    if section.get("placeholder", "") in run.config.data.get("captions", ()):
        raise ConfigError(
            f"config.system.placeholder={section.placeholder!r} is a text that {field}={path!r} was trained with; "
            "choose another"
        )
    free = tuple(f"config.system.{key} " for key in ("name", *_OWN, *_FREE))
    compared = ("config.system.", "config.network.", "config.process.", "config.parameterization.")
    compared += ("config.data.image_size ", "config.data.channels ")
    lines = changes(parts.config, run.config.to_dict())
    if different := [line for line in lines if line.startswith(compared) and not line.startswith(free)]:
        raise ConfigError(f"{field}={path!r} is another model: {'; '.join(different)}")
    return run


def stands_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """Functions that load the frozen networks, and the first vectors, which are rows of the text encoders' tables."""
    config, run = parts.config, _run(parts)
    sections = pipelines.encoder_sections(config)
    if run is None:
        frozen = dict(pipelines.stands_on(parts))
        frozen["frozen/network"] = pipelines.unet(config)
    else:
        load = functools.cache(run.load)
        groups = [f"frozen/{name}" for name in ("first_stage", "text")]
        frozen = {path: lambda path=path: load()["frozen"][path.split("/")[1]] for path in groups}
        frozen["frozen/network"] = lambda: load()["network"]
    ids = initializer_ids(parts, text_to_image.text_to_image(parts, own=_OWN).tokenize)
    for i, rows in enumerate(ids):
        table = TEXT_ENCODERS[list(sections.values())[i]["name"]].token_table
        encoder = frozen.get(f"frozen/text/{i}") or (lambda i=i: load()["frozen"]["text"][str(i)])
        frozen[f"{VECTORS}/{i}"] = functools.partial(_rows, encoder, table, rows)
    return frozen


def _rows(encoder: Callable[[], Params], table: str, ids: list[int]) -> Float[Array, "n dim"]:
    return jnp.asarray(np.asarray(encoder()[table]["embedding"])[ids])


def check(parts: Parts, source: Source) -> None:
    """Raises ConfigError for an example whose text lacks the placeholder: nothing would be learned from it."""
    section = next(iter(pipelines.encoder_sections(parts.config).values()))
    known = pipelines.vocabulary(section)
    tokens = arrays(source, _CHECKED)["tokens"]
    lacking = np.flatnonzero((tokens[:, : tokens.shape[1] // _encoders(parts)] < known).all(1))
    if len(lacking):
        raise ConfigError(
            f"config.data: {len(lacking)} of {len(tokens)} texts lack config.system.placeholder="
            f"{parts.config.system.placeholder!r} (or are cut before it), the first that of example {lacking[0]}"
        )


def _encoders(parts: Parts) -> int:
    return len(pipelines.encoder_sections(parts.config))


def reading(parts: Parts, system: Any) -> Reading:
    """The tokenizers, which know the placeholder. Raises ConfigError."""
    return text_to_image.reading(parts, system.system)


RECIPE = Recipe(
    build=build,
    reads=text_to_image.RECIPE.reads,
    stands_on=stands_on,
    check=check,
    reading=reading,
    trains_lora=False,
)
