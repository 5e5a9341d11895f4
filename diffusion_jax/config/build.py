"""Build the system of a config: the recipe of `config.system.name`, and nothing else depends on this name."""

from __future__ import annotations

import functools
from typing import NamedTuple

from ml_collections import ConfigDict

from diffusion_jax.config import data
from diffusion_jax.config.defaults import defaults
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes import (
    bridge,
    cloud_completion,
    consistency,
    dequantizer,
    diffusion,
    diffusion_autoencoder,
    diffusion_lm,
    discrete_diffusion,
    first_stage,
    flow_map,
    gan,
    latent_consistency,
    latent_diffusion,
    noisy_classifier,
    normalizing_flow,
    palette,
    pixel_classifier,
    point_vae,
    progressive_distillation,
    reflow,
    series_diffusion,
    specgrad,
    super_resolution,
    text_to_image,
    textual_inversion,
    timegrad,
    vdm,
)
from diffusion_jax.config.recipes.recipe import CHOICES, Reading, Recipe
from diffusion_jax.config.sections import ConfigError, lookup
from diffusion_jax.config.trained import Trained, open_run
from diffusion_jax.data import Source
from diffusion_jax.types import System

RECIPES = {
    "diffusion": diffusion.RECIPE,
    "noisy_classifier": noisy_classifier.RECIPE,
    "pixel_classifier": pixel_classifier.RECIPE,
    "vdm": vdm.RECIPE,
    "variational_dequantization": dequantizer.RECIPE,
    "autoencoder_kl": first_stage.RECIPE,
    "vqgan": first_stage.VQGAN,
    "latent_diffusion": latent_diffusion.RECIPE,
    "consistency": consistency.RECIPE,
    "latent_consistency": latent_consistency.RECIPE,
    "text_to_image": text_to_image.RECIPE,
    "textual_inversion": textual_inversion.RECIPE,
    "text_to_image_consistency": latent_consistency.TEXT_TO_IMAGE,
    "mean_flow": flow_map.MEAN_FLOW,
    "shortcut": flow_map.SHORTCUT,
    "reflow": reflow.RECIPE,
    "progressive_distillation": progressive_distillation.RECIPE,
    "bridge": bridge.RECIPE,
    "schroedinger_bridge": bridge.SCHROEDINGER,
    "super_resolution": super_resolution.RECIPE,
    "palette": palette.RECIPE,
    "diffusion_autoencoder": diffusion_autoencoder.RECIPE,
    "pdae": diffusion_autoencoder.PDAE,
    "code_diffusion": diffusion_autoencoder.CODES,
    "discrete_diffusion": discrete_diffusion.RECIPE,
    "series_diffusion": series_diffusion.RECIPE,
    "normalizing_flow": normalizing_flow.RECIPE,
    "timegrad": timegrad.RECIPE,
    "specgrad": specgrad.RECIPE,
    "diffusion_lm": diffusion_lm.RECIPE,
    "gan": gan.RECIPE,
    "ddgan": gan.DDGAN,
    "cloud_completion": cloud_completion.RECIPE,
    "point_vae": point_vae.RECIPE,
}


class Built(NamedTuple):
    """The system of a config, with its recipe and parts."""

    parts: Parts
    recipe: Recipe
    system: System
    reading: Reading  # tokenizer and derived conditions of the data

    def source(self, *, evaluation: bool = False) -> Source:
        """Opens the training split of the data, or with `evaluation` the held-out split.

        Raises ConfigError if the data cannot be read or lacks an entry that the system reads.
        """
        wanted = {name: entry for name, entry in self.system.batch.items() if name not in self.recipe.supplies}
        source = data.source(
            self.parts.config,
            wanted,
            tokenize=self.reading.tokenize,
            derive=self.reading.derive,
            evaluation=evaluation,
        )
        self.recipe.check(self.parts, source)
        return source


def build(config: ConfigDict, *, planning: bool = False) -> Built:
    """Build and check the system of a config, without opening data or allocating arrays. Raises ConfigError.

    With `planning` the runs that it depends on need not be trained yet, see `config.trained.open_run`.
    """
    recipe = lookup(RECIPES, "system.name", config.system.name)
    parts = Parts(config, data.spec(config), functools.partial(_of_run, planning=planning), planning=planning)
    system = recipe.build(parts)
    # A plan reads no data, and the tokenizer may not be made yet.
    return Built(parts, recipe, system, Reading() if planning else recipe.reading(parts, system))


def system(config: ConfigDict) -> System:
    """Returns the system of a config. Raises ConfigError."""
    return build(config).system


def trained(path: str, field: str, role: str = "") -> Trained:
    """Open the trained run in the work directory `path`, see `config.trained.open_run`. Raises ConfigError."""
    return open_run(path, field, _of_run, role)


def _of_run(config: ConfigDict, planning: bool = False) -> tuple[System, str]:
    """Returns the system of the config of another run, and its role."""
    built = build(config, planning=planning)
    return built.system, built.recipe.role


def reset_unread(config: ConfigDict) -> ConfigDict:
    """Returns a copy of the config of an older run, with the defaults in sections that its system does not read."""
    recipe, usual = lookup(RECIPES, "system.name", config.system.name), defaults()
    config = config.copy_and_resolve_references()
    for name in set(CHOICES) - recipe.reads:
        *path, last = name.split(".")
        section, default = config, usual
        for key in path:
            section, default = section[key], default[key]
        section[last] = default[last]
    return config


def check_read(config: ConfigDict) -> None:
    """Raises ConfigError for a section that differs from the defaults if the system does not read it."""
    recipe, usual = lookup(RECIPES, "system.name", config.system.name), defaults()
    for name in CHOICES:
        if name in recipe.reads:
            continue
        here, default = config, usual
        for key in name.split("."):
            here, default = here[key], default[key]
        if here != default:
            changed = {key: value for key, value in here.items() if key not in default or default[key] != value}
            raise ConfigError(
                f"config.{name} was changed ({changed or here.to_dict()}), but config.system.name="
                f"{config.system.name!r} does not read it; it reads "
                f"{', '.join(choice for choice in CHOICES if choice in recipe.reads)}"
            )
