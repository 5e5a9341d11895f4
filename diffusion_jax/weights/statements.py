"""What public checkpoints say of their noise schedule: a scheduler_config.json, or keys and tables of a single file.

Prediction type, beta schedule and zero terminal SNR belong to a model: a config that says otherwise samples noise, or a
wrong image. Threshold and variance belong to the sampler, of which a config may choose another.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.processes.discrete import discrete_vp
from diffusion_jax.weights import schedulers
from diffusion_jax.weights.schedulers import PREDICTIONS, VARIANCES, Options, choice

_EDM_KEYS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
# Names in a single file that say something of its schedule instead of holding weights.
MARKERS = ("v_pred", "ztsnr", *_EDM_KEYS)
_SPECIFIED = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}  # of modelspec.prediction_type


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """What a checkpoint says of its process and prediction; None for what it does not say.

    Attributes:
      where: the file that says it.
      prediction: (key, value) there and the name of the parameterization.
      process: the section `process`, of a scheduler_config.json.
      alpha_squared: of timesteps 0..T-1, from a scheduler or a table in a file [T].
      zero_snr: whether the terminal SNR is zero, of files that only mark it.
      sampler: options of the sampler as (key, value there, key of the config, value there): threshold and variance.
    """

    where: str
    prediction: tuple[str, str, str] | None = None
    process: Options | None = None
    alpha_squared: np.ndarray | None = None
    zero_snr: bool | None = None
    sampler: tuple[tuple[str, Any, str, Any], ...] = ()


def of_pipeline(pipeline: pathlib.Path) -> Said | None:
    """What the scheduler of a pipeline says; None if it has none. Raises ValueError, see `schedulers.read`."""
    scheduler = schedulers.read(pipeline)
    if scheduler is None:
        return None
    where, options = f"{scheduler.path} ({scheduler.name})", scheduler.options
    if scheduler.variance_exploding:
        sigmas = {key: options[key] for key in ("sigma_min", "sigma_max")}
        return Said(where=where, process=dict(name="ve", **sigmas))
    section, raw = scheduler.process(), options["prediction_type"]
    sampler: tuple[tuple[str, Any, str, Any], ...] = ()
    clipping = [key for key in ("thresholding", "clip_sample") if key in options]
    if clipping:
        key = next((key for key in clipping if options[key]), "clip_sample")
        sampler = ((key, options.get(key), "sampling.threshold", scheduler.threshold()),)
    if options.get("variance_type") in VARIANCES:
        kind = options["variance_type"]
        sampler = (*sampler, ("variance_type", kind, "solver.variance", VARIANCES[kind]))
    return Said(
        where=where,
        prediction=("prediction_type", raw, scheduler.prediction()),
        process=section,
        alpha_squared=alpha_squared(section),
        sampler=sampler,
    )


def of_file(path: pathlib.Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Said | None:
    """What a single file says: keys such as v_pred and ztsnr, its tables of betas, and the metadata of its header.

    Raises ValueError for models of EDM's process (edm_mean, edm_vpred.sigma_max) and unknown prediction types.
    """
    marks = {name: next((key for key in tensors if _ends_with(key, name)), "") for name in MARKERS}
    for name in _EDM_KEYS:
        if marks[name]:
            raise ValueError(f"{path}: {marks[name]!r} marks a model of EDM's process, which is not supported")
    prediction = None
    if marks["v_pred"]:
        prediction = ("v_pred", "present", "v")
    elif specified := metadata.get("modelspec.prediction_type"):
        key = "modelspec.prediction_type"
        kind = choice({key: str(specified).lower().replace("-", "_")}, key, _SPECIFIED)
        prediction = (key, specified, PREDICTIONS[kind])
    elif str(metadata.get("ss_v_parameterization")) in ("True", "False"):
        value = metadata["ss_v_parameterization"]
        prediction = ("ss_v_parameterization", value, "v" if value == "True" else "eps")
    zero = True if marks["ztsnr"] or metadata.get("ss_zero_terminal_snr") == "True" else None
    table = _table(tensors)
    if prediction is None and zero is None and table is None:
        return None
    return Said(where=str(path), prediction=prediction, alpha_squared=table, zero_snr=zero)


def merged(statements: Iterable[Said | None]) -> Said | None:
    """One statement of several: what the first does not say is taken from the next."""
    result = None
    for said in statements:
        if result is None or said is None:
            result = result or said
            continue
        own = result.alpha_squared is not None or result.zero_snr is not None or result.process is not None
        rest = {} if own else dict(process=said.process, alpha_squared=said.alpha_squared, zero_snr=said.zero_snr)
        where = result.where if own and result.prediction else f"{result.where} and {said.where}"
        prediction, sampler = result.prediction or said.prediction, result.sampler or said.sampler
        result = dataclasses.replace(result, where=where, prediction=prediction, sampler=sampler, **rest)
    return result


def alpha_squared(section: Options) -> np.ndarray:
    """alpha^2 at the timesteps 0..T-1 of a section `process` with the name discrete_vp."""
    return np.asarray(discrete_vp(**{key: value for key, value in section.items() if key != "name"}).alpha_squared)[1:]


def without_markers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file without those that only mark the schedule."""
    return {key: tensor for key, tensor in tensors.items() if not any(_ends_with(key, name) for name in MARKERS)}


def _table(tensors: Mapping[str, Any]) -> np.ndarray | None:
    for name, alpha in (("alphas_cumprod", lambda x: x), ("betas", lambda x: np.cumprod(1 - x))):
        if name in tensors and len(tensors[name].shape) == 1 and tensors[name].shape[0] > 1:
            return alpha(np.asarray(tensors[name], np.float64))
    return None


def _ends_with(key: str, name: str) -> bool:
    return key == name or key.endswith(f".{name}")
