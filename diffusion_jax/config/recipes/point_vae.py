"""The recipe of `systems.PointVAE`: a latent of the shape, and a diffusion model of its points."""

from __future__ import annotations

import functools

from diffusion_jax import systems
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import check_no_resampler, diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe
from diffusion_jax.config.sections import ConfigError, construct, refusal
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.pointwise import CouplingFlow, PointNetEncoder
from diffusion_jax.systems.point_vae import CODE


def build(parts: Parts) -> systems.PointVAE:
    """The model of a config. Raises ConfigError."""
    return construct({"point_vae": functools.partial(point_vae, parts)}, "system", parts.config.system)


def point_vae(
    parts: Parts,
    kl_weight: float = 1e-3,
    encoder_widths: tuple[int, ...] = (128, 128, 256, 512),
    encoder_head: tuple[int, ...] = (256, 128),
    flow_depth: int = 14,
    flow_hidden: int = 256,
) -> systems.PointVAE:
    """The model of `parts`. Keywords are config.system: the weight of the latent's term, and the sizes of the PointNet
    and of the flow. The size of the latent is config.network.vector_dim. Raises ConfigError."""
    config = parts.config
    if parts.spec.modality != "cloud":
        raise ConfigError(
            f"config.system.name='point_vae' needs point clouds, config.data.name='clouds'; config.data.name="
            f"{config.data.name!r} has examples of modality {parts.spec.modality!r}"
        )
    for field in ("guidance", "editing"):
        if config[field].name != "none":
            raise ConfigError(
                f"config.{field}.name={config[field].name!r} must be 'none' for config.system.name='point_vae', whose "
                "samples have a latent for their only condition"
            )
    model = diffusion(parts)
    check_no_resampler(parts, model)
    specs = model.network_conditions.specs
    if set(specs) != {CODE}:
        raise ConfigError(
            f"config.network ({config.network.name}) reads the conditions {', '.join(specs) or 'none'}; for "
            "config.system.name='point_vae' it must read a vector and nothing else: set config.network.vector_dim"
        )
    code_dim, dtype = specs[CODE].shape[0], config.training.dtype
    sizes = dict(widths=tuple(encoder_widths), head=tuple(encoder_head))
    channels = parts.spec.shape[-1]
    with refusal("config.system"):
        init_encoder, (encode,) = init_methods(
            lambda rngs: PointNetEncoder(channels, code_dim, **sizes, rngs=rngs), ("encode",), dtype
        )
        init_prior, (to_noise, from_noise) = init_methods(
            lambda rngs: CouplingFlow(code_dim, depth=flow_depth, hidden=flow_hidden, rngs=rngs),
            ("to_noise", "from_noise"),
            "float32",  # in bfloat16 the inverse and the sum of logarithms would be mostly rounding
        )
        return systems.PointVAE(
            diffusion=model,
            code_dim=code_dim,
            init_encoder=init_encoder,
            encoder=encode,
            init_prior=init_prior,
            to_noise=to_noise,
            from_noise=from_noise,
            kl_weight=kl_weight,
        )


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING)
