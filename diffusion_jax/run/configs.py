"""Configs of public checkpoints, derived from the folder of a pipeline or of a network."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config.defaults import defaults, replace
from diffusion_jax.weights import autoencoders, folders, schedulers
from diffusion_jax.weights.options import with_defaults
from diffusion_jax.weights.schedulers import SCHEDULERS, Scheduler

_FIRST_STAGES = {"autoencoder_kl": "autoencoder_kl", "vq_model": "vqgan"}  # network -> system
_DENOISERS = ("unet", "ncsnpp", "dit")


def config_of(source: pathlib.Path, first_stage: str = "") -> ConfigDict:
    """Derive a config from a folder of diffusers: a pipeline with its scheduler, a denoiser, or a first stage.

    A denoiser by itself, for which nothing says so, gets DDPM's process, a `NCSNpp` the VE process, with a warning.

    Args:
      source: the folder.
      first_stage: work directory of the first stage, for latent diffusion.

    Raises ValueError for networks and schedulers that are not supported.
    """
    pipeline = folders.is_pipeline(source)
    component = _denoiser(source) if pipeline else folders.open_component(source)
    family, arguments = component.family, component.arguments
    default = with_defaults(family.network, {})
    changed = {key: value for key, value in arguments.items() if value != default[key] and key != "image_size"}
    channels = changed.pop("in_channels", default["in_channels"])
    if changed.get("out_channels") == channels:
        del changed["out_channels"]
    sections: dict[str, Any] = dict(
        network=dict(name=family.name, **changed),
        data=dict(
            name="folder",
            split="train",
            eval_split="train",
            image_size=arguments["image_size"],
            channels=channels,
            path="",
        ),
        evaluation=dict(metrics=(), after_training=False),
    )
    if family.name in _FIRST_STAGES:
        scale = autoencoders.scaling_factor(component.config)
        sections |= dict(
            system=dict(name=_FIRST_STAGES[family.name], latent_scale=scale),
            loss=dict(name="l1"),
        )
    elif family.name in _DENOISERS:
        scheduler = _scheduler(source, component)
        sections |= _ve(component, scheduler) if family.name == "ncsnpp" else _discrete(arguments, scheduler)
        if first_stage:
            factor = 2 ** (len(_stage_component(source).arguments["block_out_channels"]) - 1)
            sections["system"] = dict(name="latent_diffusion", first_stage=first_stage)
            sections["data"] |= dict(image_size=factor * arguments["image_size"], channels=3)
    else:
        raise ValueError(f"{source}: no config can be derived for the network {family.name!r}; give --config=FILE.py")
    return replace(defaults(), **sections)


def first_stage_folder(source: pathlib.Path) -> pathlib.Path | None:
    """The first stage of a pipeline; None if it has none, or `source` is no pipeline."""
    if not folders.is_pipeline(source):
        return None
    return next((source / name for name in folders.components(source) if name in ("vae", "vqvae")), None)


def _discrete(arguments: Mapping[str, Any], scheduler: Scheduler | None) -> dict[str, Any]:
    """The sections of a config with the process and sampler of a scheduler; without one those of DDPM."""
    learned = bool(arguments.get("learn_sigma"))
    if scheduler is None:
        process = dict(name="discrete_vp", betas="linear", num_steps=1000, beta_start=1e-4, beta_end=0.02)
        prediction, solver, steps = "eps", dict(name="ancestral"), 250
        solver |= dict(variance="learned") if learned else {}
        grid, threshold = dict(name="discrete", spacing="linspace"), dict(name="static")
    else:
        process, prediction, solver = scheduler.process(), scheduler.prediction(), scheduler.solver()
        grid, threshold, steps = scheduler.grid(), scheduler.threshold(), SCHEDULERS[scheduler.name].steps
        if solver.get("variance") == "learned" and not learned:
            raise ValueError(
                f"{scheduler.path} ({scheduler.name}): variance_type='learned_range' needs a network of it"
            )
    return dict(
        process=process,
        parameterization=dict(name=prediction, label="index"),
        times=dict(name="discrete", num_steps=process["num_steps"]),
        loss=dict(name="hybrid" if learned else "denoising"),
        solver=solver,
        sampling=dict(
            steps=min(steps, process["num_steps"]), batch_size=16, num_samples=16, grid=grid, threshold=threshold
        ),
    )


def _ve(component: folders.Component, scheduler: Scheduler | None) -> dict[str, Any]:
    """The sections of a config with the VE process. With `center_input_sample` the model is of images in [0, 1]."""
    unit = bool(component.config.get("center_input_sample"))
    scale = 2.0 if unit else 1.0
    options = SCHEDULERS["ScoreSdeVeScheduler"].defaults if scheduler is None else scheduler.options
    solver = SCHEDULERS["ScoreSdeVeScheduler"].solver(options) if scheduler is None else scheduler.solver()
    end = options["sampling_eps"]
    return dict(
        process=dict(name="ve", sigma_min=scale * options["sigma_min"], sigma_max=scale * options["sigma_max"]),
        parameterization=dict(name="score", label="log_sigma_unit" if unit else "log_sigma", scale_by_sigma=True),
        weighting=dict(name="sigma_squared"),
        times=dict(name="uniform", t_min=end),
        solver=solver,
        sampling=dict(
            steps=options["num_train_timesteps"],
            batch_size=16,
            num_samples=16,
            grid=dict(name="uniform", t_min=end),
            denoise=True,
        ),
    )


def _scheduler(source: pathlib.Path, component: folders.Component) -> Scheduler | None:
    """The scheduler of the pipeline that `source` is or belongs to; None, with a warning, for a network by itself.

    Raises ValueError for a pipeline that has none, and for one whose process is not that of the network.
    """
    pipeline = folders.pipeline_around(source)
    scheduler = None if pipeline is None else schedulers.read(pipeline)
    ve = component.family.name == "ncsnpp"
    if scheduler is None and pipeline is not None:
        raise ValueError(
            f"{pipeline} has no {schedulers.FILE}, so its noise schedule is unknown; give --config=FILE.py"
        )
    if scheduler is None:
        process = "the VE process of ScoreSdeVeScheduler" if ve else "the process and prediction type of DDPM"
        warnings.warn(f"{source} has no {schedulers.FILE}; the config has {process} with its defaults", stacklevel=2)
    elif ve != scheduler.variance_exploding:
        raise ValueError(
            f"{scheduler.path}: {scheduler.name} is not supported for the network {component.family.name!r}"
        )
    return scheduler


def _denoiser(pipeline: pathlib.Path) -> folders.Component:
    names = [name for name in folders.components(pipeline) if name in ("unet", "transformer")]
    if len(names) != 1:
        raise ValueError(f"{pipeline} must have one component unet or transformer; it has {', '.join(names) or 'none'}")
    return folders.open_component(pipeline / names[0])


def _stage_component(pipeline: pathlib.Path) -> folders.Component:
    return folders.open_component(first_stage_folder(pipeline))
