"""The recipes of consistency models of latents and of text to image, distilled from runs of such models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes import consistency, text_to_image
from diffusion_jax.config.recipes import teacher as teachers
from diffusion_jax.config.recipes.latent_diffusion import ROLE as LATENT_ROLE
from diffusion_jax.config.recipes.recipe import Recipe
from diffusion_jax.config.recipes.text_to_image import ROLE as TEXT_ROLE
from diffusion_jax.config.sections import ConfigError, construct
from diffusion_jax.config.trained import Trained
from diffusion_jax.systems.text_to_image import TEXT_ALONE
from diffusion_jax.types import Params, Spec, System


def _latents(parts: Parts, role: str) -> tuple[Trained, Parts]:
    """The run of the teacher, and the parts for examples that are its latents. Raises ConfigError."""
    section = parts.config.system
    path, config_file = (section.get(key, "") for key in teachers.KEYS)
    run = parts.trained(path, "config.system.teacher", role=role, config_file=config_file)
    if run.system.makes.shape != parts.spec.shape:
        raise ConfigError(
            f"config.system.teacher={path!r} draws images of {run.system.makes.shape}; config.data.image_size and "
            f"channels give {parts.spec.shape}"
        )
    return run, parts.at(Spec(teachers.model_of(run).shape, modality="latents"))


def _build(parts: Parts, role: str) -> System:
    """The system of the teacher's run with a student as its diffusion model. Raises ConfigError."""
    run, latents = _latents(parts, role)
    section = parts.section("system")
    make = functools.partial(consistency.consistency, latents, role)
    student = construct({section["name"]: make}, "system", section)
    frozen = {name: placed for name, placed in run.system.networks.items() if placed.path[0] == "frozen"}
    return dataclasses.replace(run.system, diffusion=student, networks={**student.networks, **frozen})


def _stands_on(parts: Parts, role: str) -> Mapping[str, Callable[[], Params]]:
    """What `consistency.stands_on` loads, and the frozen networks of the teacher's run: first stage, text encoders."""
    run, latents = _latents(parts, role)
    names = jax.eval_shape(run.system.init, jax.random.key(0))["frozen"].keys() & {"first_stage", "text"}
    load = functools.cache(run.load)  # each of them is used once
    frozen = {f"frozen/{name}": lambda name=name: load()["frozen"][name] for name in sorted(names)}
    return {**consistency.stands_on(latents, role), **frozen}


def build(parts: Parts) -> System:
    """The consistency model of the latents of a run of `recipes.latent_diffusion`. Raises ConfigError."""
    return _build(parts, LATENT_ROLE)


def build_text_to_image(parts: Parts) -> System:
    """The text-to-image consistency model of a run of `recipes.text_to_image`. Raises ConfigError.

    Texts are dropped by the system, as in the training of its teacher, at the rate config.system.cond_dropout.
    """
    system = _build(parts, TEXT_ROLE)
    if system.controlled or system.task is not TEXT_ALONE:
        raise ConfigError(
            f"config.system.teacher={parts.config.system.teacher!r} reads images as well; only models of text alone "
            "are distilled"
        )
    student = dataclasses.replace(system.diffusion, cond_dropout=0.0)
    return dataclasses.replace(system, diffusion=student, cond_dropout=system.diffusion.cond_dropout)


def _recipe(make: Callable[[Parts], System], role: str, **options: Any) -> Recipe:
    stands_on = functools.partial(_stands_on, role=role)
    return Recipe(build=make, reads=consistency.RECIPE.reads, stands_on=stands_on, **options)


RECIPE = _recipe(build, LATENT_ROLE)
TEXT_TO_IMAGE = _recipe(build_text_to_image, TEXT_ROLE, reading=text_to_image.reading)
