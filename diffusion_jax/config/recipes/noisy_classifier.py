"""The recipe of `systems.NoisyClassifier`, noise-aware classifiers for classifier guidance."""

from __future__ import annotations

from diffusion_jax import systems
from diffusion_jax.config import fits
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.recipe import Recipe
from diffusion_jax.config.sections import ConfigError


def build(parts: Parts) -> systems.NoisyClassifier:
    """The noisy classifier of a config. It uses c_in and c_noise of the parameterization. Raises ConfigError."""
    config = parts.config
    if parts.resampler is not None:
        raise ConfigError(
            f"config.times.name={config.times.name!r} is not supported for classifiers: they have no variational bound"
        )
    fits.check_drawn(config, parts.process, parts.parameterization, *parts.times_of_training())
    if config.network.name != "encoder_unet":
        raise ConfigError(f"config.network.name={config.network.name!r} must be 'encoder_unet' for a classifier")
    network = parts.network()
    return systems.NoisyClassifier(
        init_network=network.init,
        apply=network.apply,
        process=parts.process,
        param=parts.parameterization,
        times=parts.times,
        num_classes=config.network.get("num_classes", 0),
        shape=parts.spec.shape,
        modality=parts.spec.modality,
        networks={"classifier": network.placed},
    )


RECIPE = Recipe(
    build=build,
    reads=frozenset({"process", "parameterization", "times", "network"}),
    role="classifier",
)
