"""The recipe of `systems.LatentDiffusion`, diffusion models of the latents of a trained first stage."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from diffusion_jax import systems
from diffusion_jax.config import data
from diffusion_jax.config.parts import Parts, no_likelihood, positive
from diffusion_jax.config.recipes.diffusion import diffusion
from diffusion_jax.config.recipes.first_stage import scaling_factor
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe
from diffusion_jax.config.sections import ConfigError, construct, refusal
from diffusion_jax.config.trained import Trained
from diffusion_jax.data.sources.latents import read_header
from diffusion_jax.systems.latent_diffusion import first_stage_params
from diffusion_jax.training.checksums import checksums
from diffusion_jax.types import Params, Spec
from diffusion_jax.weights import public

ROLE = "latent_diffusion_model"
_OTHERS = ("first_stage", "first_stage_config")
_OWN = ("name", "decode_batch_size")  # keys of config.system that a diffusion model does not have
_LATENTS = ("normalize", "latent_scale")  # those that say how latents are normalised


def build(parts: Parts) -> systems.LatentDiffusion:
    """The latent diffusion model of a config. Raises ConfigError."""
    section = parts.section("system")
    stage = _normalised(first_stage_of(parts).system, section)
    no_likelihood(parts.config, "the density of latents is not that of images")
    own = {key: section[key] for key in _OWN if key in section}
    options = {key: value for key, value in section.items() if key not in (*_OWN, *_LATENTS, *_OTHERS)}
    latents = parts.at(Spec(stage.latent_shape, modality="latents"))
    model = construct({own["name"]: functools.partial(diffusion, latents)}, "system", {**options, "name": own["name"]})
    networks = {**model.networks, **public.within(stage.networks, ("frozen", "first_stage"))}
    precomputed = parts.spec.modality == "latents"
    fields = dict(diffusion=model, first_stage=stage, precomputed=precomputed, networks=networks)
    return construct({own["name"]: systems.LatentDiffusion}, "system", own, **fields)


def _normalised(stage: systems.Autoencoder, section: Mapping[str, Any]) -> systems.Autoencoder:
    """The first stage with `normalize` and `latent_scale` of config.system instead of its own. Raises ConfigError."""
    options = {}
    if "latent_scale" in section:
        options["latent_scale"] = positive("system.latent_scale", section["latent_scale"])
    if "normalize" in section:
        options["normalize"] = section["normalize"]
        if "latent_scale" in section:
            raise ConfigError(
                f"config.system.normalize={section['normalize']!r} has no effect with config.system.latent_scale="
                f"{section['latent_scale']!r}; leave one of them out"
            )
        options["latent_scale"] = 0.0
    if not options:
        return stage
    with refusal("config.system"):
        made = dataclasses.replace(stage, **options)

    def factor(params: Params) -> dict[str, float]:
        """The scaling factor of diffusers, for exports."""
        if made.latent_scale or made.normalize != "channels":
            return {"scaling_factor": 1 / float(made.shift_and_scale(params)[1][0])}
        return {"scaling_factor": scaling_factor(params["frozen"]["latents"], 0.0)}

    networks = {name: placed._replace(extra=factor) for name, placed in stage.networks.items()}
    return dataclasses.replace(made, networks=networks)


def stands_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """The frozen first stage."""
    return {"frozen/first_stage": lambda: first_stage_params(first_stage_of(parts).load())}


def first_stage_of(parts: Parts) -> Trained:
    """The run of config.system.first_stage. Raises ConfigError if there is none or it does not fit the data."""
    config, field, path = parts.config, "config.system.first_stage", parts.config.system.get("first_stage", "")
    config_file = config.system.get("first_stage_config", "") or "configs/autoencoder_kl.py"
    run = parts.trained(path, field, role="first_stage", config_file=config_file)
    if run.system.modality != "image":
        _check_front_end(parts, run, f"{field}={path!r}")
    precomputed = parts.spec.modality == "latents"
    shape = (config.data.get("image_size"), config.data.get("image_size"), config.data.get("channels"))
    shape = shape if precomputed else parts.spec.shape
    if run.system.shape != shape:
        raise ConfigError(
            f"{field}={path!r} is for examples of {run.system.shape}; "
            f"{'config.data.image_size and channels give' if precomputed else 'those of config.data are'} {shape}"
        )
    if precomputed:
        with refusal("config.data"):
            header = read_header(config.data.get("path", ""), config.data.get("split", "train"))
        own = fingerprint(run.load())
        if header.first_stage != own or header.image_shape != shape:
            raise ConfigError(
                f"config.data.path={config.data.path!r} holds latents of images of {header.image_shape} from weights "
                f"{header.first_stage}; {field}={path!r} has weights {own} for {shape}. Encode with it: "
                f"--mode=encode --workdir={path} --to={config.data.path} and the --config of this first stage"
            )
    return run


def _check_front_end(parts: Parts, run: Trained, field: str) -> None:
    """Raises ConfigError unless the first stage of spectrograms read them from the same front end, for new examples."""
    if parts.spec.modality == "latents":
        raise ConfigError(
            f"{field} is for spectrograms, whose front end files of latents do not have; config.data.name='latents' "
            "must be 'audio'"
        )
    ours, theirs = (data.facts(config).get("mel") for config in (parts.config, run.config))
    if ours != theirs:
        raise ConfigError(f"{field} was trained on spectrograms of {theirs}; config.data.mel gives {ours}")


def fingerprint(params: Params) -> str:
    """A hash, 16 hexadecimal digits, of the parameters of the network of a first stage."""
    sums = json.dumps(checksums(params["network"]), sort_keys=True)
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING | {"evaluation.likelihood"}, stands_on=stands_on, role=ROLE)
