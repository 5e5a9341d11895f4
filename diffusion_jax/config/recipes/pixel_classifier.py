"""The recipe of `systems.PixelClassifier`, segmentation from few labels by features of a trained denoiser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.recipe import Recipe
from diffusion_jax.config.sections import ConfigError, check_type, construct
from diffusion_jax.config.trained import Trained
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.pixel_classifier import PixelClassifierNet
from diffusion_jax.systems.pixel_classifier import Features, PixelClassifier, denoiser_features, patch_features
from diffusion_jax.types import Params

_FIELD = "config.system.denoiser"


def build(parts: Parts) -> PixelClassifier:
    """The pixel classifier of a config. Raises ConfigError."""
    return construct({"pixel_classifier": functools.partial(classifier, parts)}, "system", parts.config.system)


def classifier(
    parts: Parts,
    denoiser: str = "",
    denoiser_config: str = "",
    times: tuple[float, ...] = (0.05, 0.15, 0.25),
    blocks: tuple[int, ...] = (),
    patch: int = 0,
    members: int = 10,
    hidden: tuple[int, ...] = (128, 32),
    pixels: int = 256,
    min_pixels: int = 0,
    vote: str = "mean",
) -> PixelClassifier:
    """The classifier of `parts`, whose data are masks and their images. Keywords are config.system.

    `denoiser` is the work directory of the diffusion model of images, `denoiser_config` the config that trains it,
    `times` and `blocks` are where its features are read. With `patch` = 2 r + 1 features are the squares of so many
    pixels instead, and there is no denoiser. `members` is the number of classifiers and `hidden` their widths. Raises
    ConfigError.
    """
    if parts.spec.modality != "mask":
        raise ConfigError(
            f"config.system.name='pixel_classifier' learns masks, and config.data.name={parts.config.data.name!r} "
            f"holds {parts.spec.modality}; array files need config.data.modality='mask'"
        )
    for name, value in {"times": times, "blocks": blocks, "hidden": hidden}.items():
        check_type(f"system.{name}", value, "tuple")
    if members < 1:
        raise ConfigError(f"config.system.members={members} must be at least 1")
    if not hidden or min(hidden) < 1:
        raise ConfigError(f"config.system.hidden={hidden} must hold the widths of the hidden layers, at least one")
    if bool(patch) == bool(denoiser):
        raise ConfigError(
            f"{_FIELD}={denoiser!r} and config.system.patch={patch}: exactly one of them says what features are"
        )
    if patch:
        if patch < 1 or patch % 2 == 0:
            raise ConfigError(f"config.system.patch={patch} must be an odd number of pixels")
        image_shape = (*parts.spec.shape[:2], 3)
        features, init_frozen = patch_features(patch), lambda key: {}
    else:
        run = _run(parts)
        image_shape = run.system.makes.shape
        _check(parts, run, times, blocks)
        features = denoiser_features(run.system, times, blocks)
        init_frozen = lambda key: {"denoiser": run.system.init(key)["network"]}  # noqa: E731
    size = _size(features, init_frozen, image_shape)
    classes = max(parts.spec.shape[-1], 2)

    def make(rngs):
        return PixelClassifierNet(in_features=size, hidden=tuple(hidden), num_classes=classes, rngs=rngs)

    init, (logits,) = init_methods(make, ("__call__",))
    return construct(
        {"pixel_classifier": PixelClassifier},
        "system",
        dict(name="pixel_classifier", pixels=pixels, min_pixels=min_pixels, vote=vote),
        init_members=lambda key: jax.vmap(init)(jax.random.split(key, members)),
        logits=jax.vmap(logits, (0, None)),
        features=features,
        init_frozen=init_frozen,
        shape=parts.spec.shape,
        image_shape=image_shape,
        batch_size=parts.config.sampling.batch_size,
    )


def _run(parts: Parts) -> Trained:
    section = parts.config.system
    return parts.trained(
        section.denoiser, _FIELD, role="denoiser", config_file=section.get("denoiser_config", "") or "configs/ddpm.py"
    )


def _check(parts: Parts, run: Trained, times: tuple[float, ...], blocks: tuple[int, ...]) -> None:
    """Raises ConfigError unless the run has features of the images of these masks at `times` and `blocks`."""
    makes, sides = run.system.makes, parts.spec.shape[:2]
    if makes.modality != "image" or makes.shape[:2] != sides:
        raise ConfigError(
            f"{_FIELD}={str(run.directory)!r} makes {makes.modality} of {makes.shape}; the masks are of images of "
            f"{sides[0]} x {sides[1]} pixels"
        )
    if not times or not all(isinstance(t, int | float) and 0 <= t <= 1 for t in times):
        raise ConfigError(f"config.system.times={times} must hold times in [0, 1]")
    try:
        params = jax.eval_shape(run.system.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((1, *makes.shape), jnp.float32)
        found = len(jax.eval_shape(run.system.features, params, x, 0.5))
    except NotImplementedError as error:
        raise ConfigError(f"{_FIELD}={str(run.directory)!r} has no features: {error}; train adm or unet") from error
    if not blocks or not all(isinstance(i, int) and 0 <= i < found for i in blocks):
        raise ConfigError(f"config.system.blocks={blocks} must hold blocks of the decoder path, 0..{found - 1}")


def _size(features: Features, init_frozen: Callable, image_shape: tuple[int, ...]) -> int:
    """The number of features of a pixel, without computing any."""
    params = {"frozen": jax.eval_shape(init_frozen, jax.random.key(0))}
    return jax.eval_shape(features, params, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)).shape[-1]


def stands_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """The frozen denoiser, unless features are squares of pixels."""
    if not parts.config.system.get("denoiser", ""):
        return {}
    return {"frozen/denoiser": lambda: _run(parts).load()["network"]}


RECIPE = Recipe(build=build, reads=frozenset(), stands_on=stands_on, role="segmentation", trains_lora=False)
