"""--mode=sample: draw samples of a trained run, and the files and pictures of them."""

from __future__ import annotations

import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data.sources import toys
from diffusion_jax.evaluation import sheets
from diffusion_jax.run import requests, workdir
from diffusion_jax.run.job import Job, prepare
from diffusion_jax.run.parameters import params_of
from diffusion_jax.run.report import how, say
from diffusion_jax.training.faults import replacing
from diffusion_jax.types import Params


def sample(config: ConfigDict, directory: pathlib.Path) -> None:
    """Draw config.sampling.num_samples samples from the newest checkpoint into samples/<file>.npz and .png."""
    job = prepare(config)
    workdir.check_writable(directory)
    num = config.sampling.num_samples
    cond = requests.conditions(job, num)
    params, step = params_of(job, directory)
    with jax.set_mesh(job.mesh):
        began = time.monotonic()
        drawn = job.system.sample(params, jax.random.key(config.sampling.seed), num, cond)
        if not drawn:
            raise ConfigError(
                f"config.system.name={config.system.name!r} draws no samples; --mode=evaluate gives its figures, and "
                "config.guidance steers a diffusion model with it"
            )
        seconds = time.monotonic() - began
        path = directory / "samples" / f"{config.sampling.file}.npz"
        if jax.process_index() == 0:
            samples = drawn["samples"]
            with refusal("samples"):
                arrays = {"samples": sheets.to_uint8(samples) if _is_image(samples) else samples}
            with replacing(path) as file:
                np.savez(
                    file,
                    **arrays,
                    **requests.recorded(_conditions_of(drawn), job.system.conditions, job.built.reading.describe),
                )
        pictured = picture(job, params, drawn, path.with_suffix(".png"))
    say(
        f"{num} samples of step {step} ({how(job)}) in {seconds:.1f} s with compilation",
        f"  arrays   {path}",
        f"  picture  {path.with_suffix('.png') if pictured else 'none: they are latents or not finite'}",
    )


def _conditions_of(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in drawn.items() if name not in ("samples", "original")}


def picture(job: Job, params: Params, drawn: dict[str, np.ndarray], path: pathlib.Path) -> bool:
    """Whether `path` is now a picture of the samples: there is none of latents and of samples that are not finite."""
    samples, labels, columns = (
        drawn["samples"],
        requests.captions(_conditions_of(drawn), job.system.conditions, job.built.reading.describe),
        None,
    )
    if "original" in drawn:
        # Pairs side by side, the original first.
        samples = np.stack([drawn["original"], samples], axis=1).reshape(-1, *samples.shape[1:])
        columns = 2 * math.ceil(math.sqrt(len(samples) / 4))
    if not np.isfinite(samples).all() or not (_is_image(samples) or samples.shape[1:] == (2,)):
        return False
    if jax.process_count() > 1 and not _is_image(samples):
        params = multihost_utils.process_allgather(params, tiled=True)  # process 0 draws with them alone
    if jax.process_index() == 0 and _is_image(samples):
        shown = None if labels is None else labels[:256]
        sheets.image_sheet(samples[:256], path=path, columns=columns, labels=shown)
    elif jax.process_index() == 0:
        sheets.scatter_sheet({"samples": samples}, path=path, **_views(job, params))
    return True


def _views(job: Job, params: Params) -> dict[str, Any]:
    """What a picture of points shows next to them."""
    views = dict(job.recipe.views(job.system, params))
    if job.config.data.get("kind", "gaussian_mixture") == "gaussian_mixture":
        views["log_density"] = toys.mixture_log_density
    return views


def _is_image(samples: np.ndarray) -> bool:
    return samples.ndim == 4 and samples.shape[-1] in (1, 3)
