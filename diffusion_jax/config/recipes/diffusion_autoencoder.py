"""The recipes of diffusion autoencoders: DiffAE, PDAE on a frozen run, and the diffusion model of their codes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from diffusion_jax import systems
from diffusion_jax.config import fits, names
from diffusion_jax.config.parts import Network, Parts, no_likelihood
from diffusion_jax.config.recipes import teacher as teachers
from diffusion_jax.config.recipes.diffusion import check_no_resampler, diffusion, sampler
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe
from diffusion_jax.config.sections import ConfigError, construct, lookup, refusal
from diffusion_jax.config.trained import Trained
from diffusion_jax.guidance.inversion import check_inverts
from diffusion_jax.networks.conditions import NO_CONDITIONS
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.teacher import Teacher, params_of
from diffusion_jax.types import Needs, Params, Spec

ROLE = "diffusion_autoencoder"
_CODES = ("code", "vector")  # conditions of a network that can be a code
_MLP: Mapping[str, Any] = MappingProxyType({"name": "mlp"})


def build(parts: Parts) -> systems.DiffusionAutoencoder:
    """The diffusion autoencoder of a config, whose decoder is trained with its encoder. Raises ConfigError."""
    section = parts.config.system
    return construct({section.name: functools.partial(_autoencoder, parts, diffusion)}, "system", section)


def build_pdae(parts: Parts) -> systems.DiffusionAutoencoder:
    """The diffusion autoencoder of a config, whose decoder shifts the run config.system.teacher. Raises ConfigError.

    config.system.shared names the modules that the gradient estimator config.network has in common with the network of
    the teacher.
    """
    own = ("shared", *teachers.KEYS)
    section = {key: value for key, value in parts.config.system.items() if key not in own}
    return construct({section["name"]: functools.partial(_autoencoder, parts, _shifted)}, "system", section)


def _autoencoder(
    parts: Parts,
    make: Callable[[Parts], Diffusion],
    encoder: Any = _MLP,
    stochastic_code: str = "inferred",
    attribute: tuple = (0, 1),
) -> systems.DiffusionAutoencoder:
    if parts.spec.modality != "image":
        raise ConfigError(
            f"config.system.name={parts.config.system.name!r} needs images, but config.data.name="
            f"{parts.config.data.name!r} holds {parts.spec.modality}"
        )
    for field in ("guidance", "editing"):
        if parts.config[field].name != "none":
            raise ConfigError(
                f"config.{field}.name={parts.config[field].name!r} must be 'none' for config.system.name="
                f"{parts.config.system.name!r}: images are encoded and decoded by the denoiser as it is"
            )
    network = parts.network()
    code, dim = _code(parts, network)
    encoder = dict(encoder)
    init, apply = _encoder(parts, encoder, dim)
    model = make(parts)
    check_no_resampler(parts, model)
    times = fits.sampling_times(parts.config, parts.process, parts.grid)
    with refusal(f"config.solver.name={parts.config.solver.name!r}"):
        check_inverts(parts.solver)
    # The ODE also starts from the last time, where it encodes.
    needs = Needs(sigma=True, alpha=True)
    fits.check_process(parts.config, ("system",), needs, parts.process, times, bounded_by="sampling.grid")

    def encode(params: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return apply(params, x, np.zeros(len(x), np.float32), None, key=key)

    with refusal("config.system"):
        return systems.DiffusionAutoencoder(
            diffusion=model,
            init_encoder=init,
            encoder=encode,
            code_dim=dim,
            code=code,
            stochastic_code=stochastic_code,
            attribute=tuple(attribute),
            networks=model.networks,
        )


def _code(parts: Parts, network: Network) -> tuple[str, int]:
    """The condition of the network that is the code, and its size. Raises ConfigError for any other conditions."""
    specs = network.conditions.specs
    if len(specs) != 1 or next(iter(specs)) not in _CODES:
        raise ConfigError(
            f"config.network ({parts.config.network.name}) reads the conditions {', '.join(specs) or 'none'}; for "
            f"config.system.name={parts.config.system.name!r} it must read a code and nothing else: set "
            "config.network.vector_dim, or config.network.code_dim of 'adm'"
        )
    ((name, spec),) = specs.items()
    return name, spec.shape[0]


def _encoder(parts: Parts, section: Mapping[str, Any], code_dim: int) -> tuple[Callable, Callable]:
    """(init, apply) of config.system.encoder. Raises ConfigError."""
    shape, field = parts.spec.shape, "system.encoder"
    sizes = dict(shape=shape, image_size=shape[0], in_channels=shape[-1], code_dim=code_dim)
    made = lookup(names.ENCODERS, f"{field}.name", section.get("name"))
    signature = inspect.signature(made.__init__ if isinstance(made, type) else made).parameters
    for key in sizes:
        if key in section and key in signature:
            raise ConfigError(f"config.{field}.{key}={section[key]!r} is given by the data and the network")

    def make(rngs):
        return construct(names.ENCODERS, field, section, rngs=rngs, **sizes)

    with refusal("config.training.dtype"):
        init, apply = init_apply(make, parts.config.training.dtype)
    arguments = (jax.ShapeDtypeStruct(s, np.float32) for s in ((1, *shape), (1,)))
    with refusal(f"config.{field}"):
        jax.eval_shape(apply, jax.eval_shape(init, jax.random.key(0)), *arguments)
    return init, apply


def _shifted(parts: Parts) -> systems.ShiftedDiffusion:
    """The frozen run and its gradient estimator. Raises ConfigError."""
    fits.check_one_time(parts.config)
    network, shared = parts.network(), tuple(parts.config.system.get("shared", ()))
    model = _plain_teacher(parts)
    shapes = [jax.eval_shape(init, jax.random.key(0)) for init in (network.init, model.init_network)]
    for name in shared:
        own, theirs = (tree.get(name) if isinstance(name, str) else None for tree in shapes)
        if own is None or own != theirs:
            raise ConfigError(
                f"config.system.shared={shared!r}: {name!r} must be a module of the same shapes of config.network and "
                "of the network of config.system.teacher, such as 'input_blocks'"
            )
    drawn, weights = parts.times_of_training()
    fits.check_parameterization(parts.config, parts.process, parts.parameterization, drawn, bounded_by="times")
    w = np.asarray(parts.weighting(parts.process, drawn)) * weights
    if not np.isfinite(w).all() or float(parts.process.alpha(drawn.max())) <= 0:
        raise ConfigError(
            f"{fits.described(parts.config, 'weighting', 'times')}: the weight w(t), or the coefficient sigma^2 / "
            "alpha of config.system.name='pdae', is not finite at a time of training; mind config.times.t_min and t_max"
        )
    fields = sampler(parts, network)
    return systems.ShiftedDiffusion(
        loss_fn=None,
        teacher=Teacher(diffusion=model),
        weighting=parts.weighting,
        times=parts.times,
        shared=shared,
        **fields | {"networks": {}},  # of a part of a network there are no files
    )


def _plain_teacher(parts: Parts) -> Diffusion:
    """The diffusion model of the teacher, without the thresholding that its own samples had."""
    model = teachers.model_of(teachers.run_of(parts, conditions=NO_CONDITIONS))
    return dataclasses.replace(model, threshold=lambda D: D)


def pdae_stands_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """The frozen teacher."""
    return {"frozen/teacher": lambda: params_of(teachers.run_of(parts, conditions=NO_CONDITIONS).load())}


def build_codes(parts: Parts) -> systems.CodeDiffusion:
    """The diffusion model of the codes of the run config.system.autoencoder. Raises ConfigError."""
    section = parts.section("system")
    autoencoder = autoencoder_of(parts).system
    no_likelihood(parts.config, "the density of codes is not that of images")
    own = {key: value for key, value in section.items() if key not in ("autoencoder", "autoencoder_config")}
    codes = parts.at(Spec((autoencoder.code_dim,), modality="array"))
    model = construct({own["name"]: functools.partial(diffusion, codes)}, "system", own)
    check_no_resampler(codes, model)
    return systems.CodeDiffusion(diffusion=model, autoencoder=autoencoder, networks=model.networks)


def autoencoder_of(parts: Parts) -> Trained:
    """The run of config.system.autoencoder. Raises ConfigError if there is none or it does not fit the data."""
    config, field = parts.config, "config.system.autoencoder"
    path = config.system.get("autoencoder", "")
    config_file = config.system.get("autoencoder_config", "") or "configs/diffae.py"
    run = parts.trained(path, field, role=ROLE, config_file=config_file)
    if run.system.makes != parts.spec:
        raise ConfigError(
            f"{field}={path!r} is for images of {run.system.makes.shape}; config.data gives {parts.spec.shape}"
        )
    return run


def codes_stand_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """The frozen autoencoder."""
    return {"frozen/autoencoder": lambda: autoencoder_of(parts).load()}


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING, role=ROLE, trains_lora=False)
PDAE = Recipe(
    build=build_pdae,
    reads=(TRAINING | SAMPLING) - {"loss"},
    stands_on=pdae_stands_on,
    role=ROLE,
    trains_lora=False,
)
CODES = Recipe(build=build_codes, reads=TRAINING | SAMPLING | {"evaluation.likelihood"}, stands_on=codes_stand_on)
