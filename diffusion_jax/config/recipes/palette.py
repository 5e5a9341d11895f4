"""The recipe of `systems.Palette`: one model of several image-to-image tasks."""

from __future__ import annotations

import functools

from diffusion_jax import systems
from diffusion_jax.config import fits
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import check_no_resampler, denoising
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Reading, Recipe
from diffusion_jax.config.recipes.recipe import reading as usual_reading
from diffusion_jax.config.sections import ConfigError, check_type, construct, lookup, refusal
from diffusion_jax.data.corruptions import corrupted
from diffusion_jax.networks.conditions import NO_RATES, Conditions
from diffusion_jax.systems.palette import HOLE, IMAGE, LABEL, MASK, TASK, TASKS, embedding, knowing, network_conditions
from diffusion_jax.types import LUMA, System

QUALITY = (5, 30)  # of JPEG files, the lowest and the highest


def build(parts: Parts) -> systems.Palette:
    """The model of a config. Raises ConfigError."""
    return construct({"palette": functools.partial(palette, parts)}, "system", parts.config.system)


def palette(
    parts: Parts,
    tasks: tuple[str, ...] = tuple(TASKS),
    quality: tuple[int, ...] = QUALITY,
    cond_dropout: float = 0.0,
    cond_dropouts=NO_RATES,
) -> systems.Palette:
    """The model of `parts`. Keywords are config.system: `tasks`, names of `systems.palette.TASKS`, and `quality`, the
    lowest and the highest of the JPEG files that the task "jpeg" restores. Raises ConfigError."""
    config, shape = parts.config, parts.spec.shape
    if parts.spec.modality != "image":
        raise ConfigError(
            f"config.system.name='palette' restores images, and config.data.name={config.data.name!r} holds "
            f"{parts.spec.modality}"
        )
    check_tasks(parts, tasks, quality)
    if config.loss.name != "denoising":
        raise ConfigError(f"config.loss.name={config.loss.name!r} must be 'denoising', which takes a mask")
    fits.check_one_time(config)
    network = parts.network()
    if network.conditions.image_shape != shape:
        given = network.conditions.image_shape or "none"
        raise ConfigError(
            f"config.network: its condition 'image' has the shape {given}, and must have that of x, {shape}: set "
            f"config.network.image_channels={shape[-1]}, without low_res"
        )
    classes = len(tasks) if len(tasks) > 1 else 0
    if network.conditions.num_classes != classes:
        raise ConfigError(
            f"config.network.num_classes={network.conditions.num_classes} must be {classes}, for the task in "
            f"config.system.tasks={tasks}"
        )
    others = {name: condition for name, condition in network.conditions.items() if name not in (IMAGE, LABEL)}
    reserved = [name for name in (MASK, TASK, HOLE) if name in others]
    if reserved:
        raise ConfigError(f"config.network reads the condition {reserved[0]!r}, which is that of palette's holes")
    chosen = tuple(TASKS[name] for name in tasks)
    network = network._replace(
        apply=knowing(network.apply),
        embed=embedding(network.embed),
        conditions=network_conditions(shape, chosen, Conditions(others)),
    )
    model = denoising(parts, cond_dropout, cond_dropouts, network=network)
    check_no_resampler(parts, model)
    with refusal("config.system"):
        return systems.Palette(diffusion=model, tasks=chosen, luma=LUMA, networks=model.networks)


def check_tasks(parts: Parts, tasks: tuple[str, ...], quality: tuple[int, ...]) -> None:
    """Raises ConfigError for tasks that do not exist, or that these images do not have, and impossible qualities."""
    check_type("system.tasks", tasks, "tuple")
    check_type("system.quality", quality, "tuple")
    for name in tasks:
        lookup(TASKS, "system.tasks", name)
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"config.system.tasks={tasks} must name one or several tasks, each once")
    channels = parts.spec.shape[-1]
    if channels != len(LUMA) and any(TASKS[name].grey for name in tasks):
        raise ConfigError(
            f"config.system.tasks={tasks}: 'colorization' needs images in colour, and config.data.channels={channels}"
        )
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in quality)
    if len(quality) != 2 or not whole or not 1 <= quality[0] <= quality[1] <= 95:
        raise ConfigError(f"config.system.quality={quality} must be two integers in 1..95, the lowest and the highest")


def reading(parts: Parts, system: System) -> Reading:
    """The usual reading, with the degraded images of the tasks made of the examples."""
    quality = tuple(parts.config.system.get("quality", QUALITY))
    derive = corrupted(tuple(task.name for task in system.tasks), quality)
    return usual_reading(parts, system)._replace(derive=derive)


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING, reading=reading)
