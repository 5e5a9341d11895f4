"""The recipes of `systems.Gan` and `systems.DenoisingDiffusionGan`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax import systems
from diffusion_jax.config import fits, names
from diffusion_jax.config.parts import Parts, plain
from diffusion_jax.config.recipes.recipe import Recipe
from diffusion_jax.config.sections import ConfigError, check_sizes, construct, lookup, refusal
from diffusion_jax.losses.adversarial import LOSSES, Penalty
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.functional import conditions_of, init_apply
from diffusion_jax.systems.ddgan import LATENT
from diffusion_jax.types import Apply, Cond, Params, check, spread

_MLP: Mapping[str, Any] = MappingProxyType({"name": "mlp"})


def build(parts: Parts) -> systems.Gan:
    """The generative adversarial network of a config. Raises ConfigError."""
    return construct({"gan": functools.partial(gan, parts)}, "system", parts.config.system)


@spread(Penalty, r1=1.0, r2=1.0)
def gan(
    parts: Parts,
    penalty: Penalty,
    latent_dim: int = 64,
    loss: str = "relativistic",
    discriminator: Any = _MLP,
) -> systems.Gan:
    """The model of `parts`. Keywords are config.system, those of `losses.adversarial.Penalty` and:

    `latent_dim`, the numbers of z; `loss`, "relativistic" or "non_saturating"; `discriminator`, the section of its
    network. config.network is the generator. Raises ConfigError.
    """
    check(latent_dim >= 1, "latent_dim", latent_dim, "at least 1")
    _check_steps(parts, 1, "a GAN draws a sample in 1 step")
    shape = _shape(parts)
    generator = _network(parts, names.GENERATORS, "network", parts.section("network"), latent_dim=latent_dim)
    z, c_noise = (jax.ShapeDtypeStruct(s, np.float32) for s in ((1, latent_dim), (1,)))
    with refusal("config.network"):
        params = jax.eval_shape(generator.init, jax.random.key(0))
        x = jax.eval_shape(generator.apply, params, z, c_noise, jax.eval_shape(generator.conditions.null))
    if x.shape[1:] != shape:
        raise ConfigError(f"config.network ({parts.config.network.name}) makes {x.shape[1:]}, and the data is {shape}")
    classes = generator.conditions.num_classes
    init_discriminator, discriminate = _discriminator(parts, discriminator, num_classes=classes)
    return systems.Gan(
        init_network=generator.init,
        generate=lambda params, z, cond: generator.apply(params, z, jnp.zeros(len(z)), cond),
        init_discriminator=init_discriminator,
        discriminate=lambda params, x, cond: discriminate(params, x, jnp.zeros(len(x)), cond),
        losses=lookup(LOSSES, "system.loss", loss),
        penalty=penalty,
        latent_dim=latent_dim,
        shape=shape,
        modality=parts.spec.modality,
        network_conditions=generator.conditions,
        batch_size=parts.config.sampling.batch_size,
    )


def build_ddgan(parts: Parts) -> systems.DenoisingDiffusionGan:
    """The denoising diffusion GAN of a config. Raises ConfigError."""
    return construct({"ddgan": functools.partial(ddgan, parts)}, "system", parts.config.system)


@spread(Penalty, r1=0.05, r2=0.0)
def ddgan(
    parts: Parts,
    penalty: Penalty,
    loss: str = "non_saturating",
    tanh: bool = True,
    discriminator: Any = _MLP,
) -> systems.DenoisingDiffusionGan:
    """The model of `parts`. Keywords are config.system: as for `gan`, and `tanh`, see `systems.DenoisingDiffusionGan`.

    config.network is the generator. It reads z as a vector of config.network.vector_dim numbers. Raises ConfigError.
    """
    shape, process, network = _shape(parts), parts.process, parts.network()
    if process.num_steps is None:
        raise ConfigError(
            f"config.process.name={parts.config.process.name!r} must be 'discrete_vp': the steps of config.system.name="
            "'ddgan' are those of its process, config.process.num_steps"
        )
    _check_steps(parts, process.num_steps, "the steps of a sample are those of the process, config.process.num_steps")
    times = np.arange(1, process.num_steps + 1, dtype=np.float32) / process.num_steps
    fits.check_parameterization(parts.config, process, parts.parameterization, times, bounded_by="process")
    fits.check_outputs(parts.config, shape, network.init, network.apply, network.conditions, {}, learned_variance=False)
    conditions = Conditions({name: entry for name, entry in network.conditions.items() if name != LATENT})
    if LATENT not in network.conditions or set(conditions) - {"label"}:
        raise ConfigError(
            f"config.network ({parts.config.network.name}) reads the conditions "
            f"{', '.join(network.conditions) or 'none'}; for config.system.name='ddgan' it must read z, of "
            "config.network.vector_dim numbers, and nothing else but classes"
        )
    given = dict(num_classes=conditions.num_classes, image_channels=shape[-1], time=True)
    init_discriminator, discriminate = _discriminator(parts, discriminator, **given)
    return systems.DenoisingDiffusionGan(
        init_network=network.init,
        apply=network.apply,
        init_discriminator=init_discriminator,
        discriminate=discriminate,
        process=process,
        param=parts.parameterization,
        losses=lookup(LOSSES, "system.loss", loss),
        penalty=penalty,
        latent_dim=network.conditions[LATENT].spec.shape[0],
        shape=shape,
        tanh=tanh,
        modality=parts.spec.modality,
        network_conditions=conditions,
        batch_size=parts.config.sampling.batch_size,
        networks={"unet": network.placed},
    )


class _Network(NamedTuple):
    init: Callable[[Any], Params]
    apply: Apply
    conditions: Conditions


def _network(
    parts: Parts, table: Mapping[str, Callable], field: str, section: Mapping[str, Any], **given: Any
) -> _Network:
    """A generator or discriminator, `section` of the config at `field`, with the arguments `given`.

    Raises ConfigError for an unknown name, sizes out of range, or an argument that is given.
    """
    shape = parts.spec.shape
    made = lookup(table, f"{field}.name", section.get("name"))
    check_sizes(made, field, section)
    sizes = dict(shape=shape, image_size=shape[0], in_channels=shape[-1], **given)
    taken = inspect.signature(made.__init__).parameters
    for key in sizes:
        if key in section and key in taken:
            raise ConfigError(f"config.{field}.{key}={section[key]!r} is given by the data and the system")

    def make(rngs: Any) -> Any:
        return construct(table, field, section, rngs=rngs, **sizes)

    with refusal("config.training.dtype"):
        init, apply = init_apply(make, parts.config.training.dtype)
    return _Network(init, apply, conditions_of(make))


def _discriminator(parts: Parts, section: Any, **given: Any) -> tuple[Callable[[Any], Params], Callable[..., Array]]:
    """(init, discriminate) of config.system.discriminator: (params, x, c_noise, cond) -> logits [batch].

    Raises ConfigError.
    """
    field = "system.discriminator"
    critic = _network(parts, names.DISCRIMINATORS, field, plain(section, field), **given)

    def discriminate(params: Params, x: Array, c_noise: Array, cond: Cond) -> Array:
        return critic.apply(params, x, c_noise, cond)[:, 0]

    x, c_noise = (jax.ShapeDtypeStruct(s, np.float32) for s in ((1, *parts.spec.shape), (1,)))
    with refusal(f"config.{field} ({section['name']})"):
        params, cond = jax.eval_shape(critic.init, jax.random.key(0)), jax.eval_shape(critic.conditions.null)
        jax.eval_shape(discriminate, params, x, c_noise, cond)
    return critic.init, discriminate


def _shape(parts: Parts) -> tuple[int, ...]:
    """The shape of an example. Raises ConfigError for examples of integers."""
    if parts.spec.dtype != "float32":
        raise ConfigError(
            f"config.data.name={parts.config.data.name!r} holds {parts.spec.modality} of {parts.spec.dtype}; "
            f"config.system.name={parts.config.system.name!r} has gradients for examples, which must be real numbers"
        )
    return parts.spec.shape


def _check_steps(parts: Parts, steps: int, reason: str) -> None:
    """Raises ConfigError, with the `reason`, for other sampling steps, or a last denoising step."""
    sampling = parts.config.sampling
    if sampling.steps != steps:
        raise ConfigError(f"config.sampling.steps={sampling.steps} must be {steps}: {reason}")
    if sampling.denoise:
        raise ConfigError("config.sampling.denoise=True must be false: the last step ends at the data")


RECIPE = Recipe(build=build, reads=frozenset({"network"}), trains_lora=False)
DDGAN = Recipe(build=build_ddgan, reads=frozenset({"process", "parameterization", "network"}), trains_lora=False)
