"""Trained models in Python: `diffusion_jax.load` of a work directory or a public checkpoint.

model = diffusion_jax.load("runs/ncsn")
images = model.sample(jax.random.key(0), 16)
D = model.denoiser()  # D(x_t, t) = E[x_0 | x_t], for solvers, guidance and likelihoods
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from diffusion_jax.config import build, from_file, names
from diffusion_jax.config.defaults import defaults
from diffusion_jax.config.sections import ConfigError, drop_replaced, refusal
from diffusion_jax.run import requests, workdir
from diffusion_jax.run.configs import config_of, first_stage_folder
from diffusion_jax.run.convert import fetch, to_workdir
from diffusion_jax.run.job import Job, prepare
from diffusion_jax.run.parameters import load_params, params_of
from diffusion_jax.types import BridgeProcess, Cond, Denoiser, Params, Process, System
from diffusion_jax.weights.public import is_public


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A trained model: its config, system, averaged parameters, and the step that they were saved at."""

    config: ConfigDict
    system: System
    params: Params
    step: int
    job: Job = dataclasses.field(repr=False)
    classes: tuple[str, ...] = ()  # the names of the classes in the order of their numbers, if the run has any

    @property
    def process(self) -> Process | BridgeProcess:
        """The process of the config; of a bridge that between its two data sets."""
        parts = self.job.built.parts
        return parts.bridge if self.config.process.name in names.BRIDGES else parts.process

    def sample(self, key: Key[Array, ""], num: int, cond: Cond | str = None) -> np.ndarray:
        """Draw `num` samples, [num, *shape], with the solver, steps and guidance of the config.

        Sample i depends on fold_in(key, i) and cond[i] only.

        Args:
          key: a typed key.
          num: number of samples.
          cond: conditions by name, [num, ...] each, such as {"label": labels}, or a text as config.sampling.cond:
            "3,cat" for classes, "a cat|a dog" for captions, or a file. None: without any, or cycling through the
            classes.

        Raises ValueError for conditions that do not fit the model, or a model that draws no samples.
        """
        if self.system.makes is None:
            raise ValueError(f"config.system.name={self.config.system.name!r} draws no samples")
        with jax.set_mesh(self.job.mesh):
            return self.system.sample(self.params, key, num, self.conditions(cond, num))["samples"]

    def denoiser(self, cond: Cond | str = None, num: int = 1) -> Denoiser:
        """The denoiser D(x, t) = E[x_0 | x_t] under the conditions `cond`, with the guidance of the config.

        For latent diffusion x are latents. A text `cond` is that of `num` rows, see `sample`.
        """
        return self.system.denoiser(self.params, self.conditions(cond, num))

    def conditions(self, cond: Cond | str, num: int) -> Cond:
        """Conditions by name of `num` samples for a text, see `sample`; other conditions are returned."""
        if not isinstance(cond, str):
            return cond
        reading = self.job.built.reading
        return requests.requested(cond, self.system.conditions, num, reading.tokenize, lambda: self.classes)


def load(
    path: str | pathlib.Path, config: ConfigDict | str | None = None, changes: Mapping[str, Any] | None = None
) -> Pretrained:
    """Load a trained model with its averaged parameters (EMA).

    Args:
      path: a work directory, a folder of diffusers (a pipeline or a network), a file of weights, or "hub:owner/name".
      config: a config or "FILE.py:VARIANT". By default that of the work directory, or what is derived from the
        folder. A single file and a text-to-image pipeline need it.
      changes: keys of the config with new values, such as {"solver.name": "heun", "sampling.steps": 18}.

    Raises ConfigError or another ValueError, which say what is missing or does not fit.
    """
    directory = fetch(str(path))
    public = is_public(directory)
    if isinstance(config, str):
        config = from_file(config)
    with tempfile.TemporaryDirectory() as scratch:
        if config is None:
            config = _public_config(directory, scratch) if public else _config_of_run(directory)
        config = _changed(config, changes or {})
        job = prepare(config)
        with jax.set_mesh(job.mesh):
            params, step = load_params(job, directory) if public else params_of(job, directory)
    classes = () if public else workdir.read_classes(directory)
    return Pretrained(config=config, system=job.system, params=params, step=step, job=job, classes=classes)


def _config_of_run(directory: pathlib.Path) -> ConfigDict:
    if not (directory / "config.json").exists():
        raise ConfigError(
            f"{str(directory)!r} is neither a work directory with config.json, nor a folder of diffusers, nor a file"
        )
    return build.reset_unread(build.trained(str(directory), "path").config)


def _public_config(directory: pathlib.Path, scratch: str) -> ConfigDict:
    """The config that is derived from a folder of diffusers; its first stage is converted to the folder `scratch`."""
    if directory.is_file():
        raise ConfigError(f"{str(directory)!r} does not say which network its weights are of; give config='FILE.py'")
    with refusal(f"{str(directory)!r}: no config can be derived from it; give config='FILE.py:VARIANT'"):
        stage = first_stage_folder(directory)
        if stage is None:
            return config_of(directory)
        derived = config_of(directory, str(pathlib.Path(scratch, "first_stage")))
        to_workdir(stage, pathlib.Path(scratch, "first_stage"))
        return derived


def _changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with `changes`, for all devices of this machine and no training."""
    original, config = config, config.copy_and_resolve_references()
    config.unlock()
    config.mesh = defaults().mesh
    config.training.batch_size, config.training.accumulate = jax.device_count(), 1
    for key, value in changes.items():
        *path, last = key.split(".")
        section = config
        for name in path:
            if not isinstance(section.get(name), ConfigDict):
                raise ConfigError(f"changes[{key!r}]: the config has no section {name!r}")
            section = section[name]
        with section.ignore_type():
            section[last] = value
    drop_replaced(config, original)
    return config
