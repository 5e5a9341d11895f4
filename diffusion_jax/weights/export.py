"""The scheduler and model_index.json of a pipeline of diffusers, for the process and sampler of a config."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.weights import schedulers
from diffusion_jax.weights.files import write_json

Section = Mapping[str, Any]
_BETAS = {ours: theirs for theirs, ours in schedulers.BETAS.items()}
_PREDICTIONS = {ours: theirs for theirs, ours in schedulers.PREDICTIONS.items()}
_VARIANCES = {"beta_tilde": "fixed_small", "beta": "fixed_large", "learned": "learned_range"}
_UNLIMITED = 1e6  # for thresholding without a largest percentile, as JSON has no infinity
# Names of the networks -> (class of the pipeline, those of the networks).
_PIPELINES = {
    ("unet",): ("DDPMPipeline", {"unet": "UNet2DModel"}),
    ("unet", "vqvae"): ("LDMPipeline", {"unet": "UNet2DModel", "vqvae": "VQModel"}),
    ("transformer", "vae"): ("DiTPipeline", {"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL"}),
}


class Pipeline(NamedTuple):
    """A pipeline of diffusers: model_index.json and scheduler_config.json, and what its sampler does differently."""

    index: dict[str, Any]
    scheduler: dict[str, Any]
    differs: str = ""


def pipeline(
    networks: Mapping[str, Section],
    *,
    process: Section,
    parameterization: Section,
    solver: Section,
    threshold: Section,
    grid: Section,
) -> Pipeline:
    """The pipeline of diffusers that samples `networks`, arguments by name, as the sections of a config do.

    With `ancestral` sampling of a U-Net it is DDPM's, otherwise DDIM's: then `differs` says which solver it replaces.
    Raises ValueError, which names the option, if diffusers has no scheduler of the process or pipeline of the networks.
    """
    names = tuple(sorted(networks))
    if names not in _PIPELINES:
        raise ValueError(f"it has no pipeline of {', '.join(names)}")
    kind, classes = _PIPELINES[names]
    main = networks[next(name for name in names if name in ("unet", "transformer"))]
    if kind != "DiTPipeline" and main.get("num_classes"):
        raise ValueError(f"its {kind} gives no class to the network (num_classes={main['num_classes']})")
    if kind == "DiTPipeline" and main.get("num_classes", 1000) != 1000:
        raise ValueError(f"its DiTPipeline takes 1000 as the null class (num_classes={main['num_classes']})")
    ancestral, differs = kind == "DDPMPipeline" and solver["name"] == "ancestral", ""
    if main.get("learn_sigma") and not ancestral and kind != "DiTPipeline":
        raise ValueError(f"its {kind} reads no learned variance with the solver {solver['name']!r}")
    options = _process(process, parameterization) | _threshold(threshold) | _grid(grid)
    if ancestral:
        name, options["variance_type"] = "DDPMScheduler", _VARIANCES[solver.get("variance", "beta_tilde")]
        if "set_alpha_to_one" in options:
            raise ValueError(f"its DDPMScheduler ends at the data (grid.end={grid['end']})")
    else:
        name, kind = "DDIMScheduler", kind.replace("DDPM", "DDIM")
        if solver["name"] != "ddim" or solver.get("eta"):
            differs = f"its {kind} samples with DDIM and eta=0 by default instead of {dict(solver)}"
    index: dict[str, Any] = {"_class_name": kind, "scheduler": ["diffusers", name]}
    index |= {part: ["diffusers", class_name] for part, class_name in classes.items()}
    return Pipeline(index, {"_class_name": name, **options}, differs)


def write(folder: pathlib.Path, made: Pipeline) -> list[pathlib.Path]:
    """Write model_index.json and the scheduler of a pipeline, whose networks are folders in `folder`."""
    path = folder / schedulers.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    return [write_json(path, made.scheduler), write_json(folder / "model_index.json", made.index)]


def _process(process: Section, parameterization: Section) -> dict[str, Any]:
    if process["name"] != "discrete_vp":
        raise ValueError(f"it has no scheduler of config.process.name={process['name']!r} here")
    betas, steps = process.get("betas", "linear"), process.get("num_steps", 1000)
    if betas not in _BETAS:
        raise ValueError(f"it has no schedule config.process.betas={betas!r}")
    prediction, label = parameterization["name"], parameterization.get("label", "time")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"it has no prediction type config.parameterization.name={prediction!r}")
    if label != "index" and (label, steps) != ("timestep", 1000):
        raise ValueError(f"it gives the index of the timestep to the network, config.parameterization.label={label!r}")
    return dict(
        num_train_timesteps=steps,
        beta_schedule=_BETAS[betas],
        beta_start=process.get("beta_start", 1e-4),
        beta_end=process.get("beta_end", 0.02),
        prediction_type=_PREDICTIONS[prediction],
        rescale_betas_zero_snr=bool(process.get("zero_terminal_snr", False)),
    )


def _threshold(threshold: Section) -> dict[str, Any]:
    bound = threshold.get("bound", 1.0)
    if threshold["name"] == "static":
        return dict(clip_sample=True, clip_sample_range=bound)
    if threshold["name"] == "none":
        return dict(clip_sample=False)
    if bound != 1:
        raise ValueError(f"its thresholding is to [-1, 1], config.sampling.threshold.bound={bound}")
    largest = threshold.get("largest", math.inf)
    return dict(
        clip_sample=False,
        thresholding=True,
        dynamic_thresholding_ratio=threshold.get("percentile", 0.995),
        sample_max_value=min(largest, _UNLIMITED),
    )


def _grid(grid: Section) -> dict[str, Any]:
    """Spacing of the timesteps; a grid in continuous time has none, and gets the default."""
    if grid["name"] != "discrete":
        return {}
    options = dict(timestep_spacing=grid.get("spacing", "leading"), steps_offset=grid.get("offset", 0))
    return options | ({"set_alpha_to_one": False} if grid.get("end", 0) else {})
