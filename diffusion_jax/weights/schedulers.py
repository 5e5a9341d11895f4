"""Schedulers of diffusers: scheduler_config.json as the process, parameterization and sampler of a config.

`SCHEDULERS` lists the classes of diffusers whose process and sampler exist here, with
the options that they read and their defaults there; every other class is refused by its name.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.processes.discrete import beta_table
from diffusion_jax.weights.files import read_json

FILE = "scheduler/scheduler_config.json"
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "beta_tilde",
    "fixed_small_log": "beta_tilde",  # the same number, kept as its logarithm
    "fixed_large": "beta",
    "learned_range": "learned",
}
SPACINGS = ("leading", "linspace", "trailing")

_TABLE = dict(
    num_train_timesteps=1000,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule="linear",
    trained_betas=None,
    prediction_type="epsilon",
)
_ZERO = dict(rescale_betas_zero_snr=False)
_DYNAMIC = dict(thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0)
_CLIP = dict(clip_sample=True, clip_sample_range=1.0)
_LEADING = dict(timestep_spacing="leading", steps_offset=0)
_LINSPACE = dict(timestep_spacing="linspace", steps_offset=0)
_LATER = dict(beta_start=0.00085, beta_end=0.012)
_SIGMAS = dict(use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
_FLOW = dict(use_flow_sigmas=False)
_ORDERED = dict(solver_order=2, lower_order_final=True)
_DPM = dict(algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type="zero", variance_type=None)
_DPM |= dict(lambda_min_clipped=-math.inf)

Options = Mapping[str, Any]


def _dpm_solver(options: Options) -> dict[str, Any]:
    names = {"dpmsolver++": "dpm_solver_pp", "dpmsolver": "dpm_solver", "sde-dpmsolver++": "sde_dpm_solver_pp"}
    name = choice(options, "algorithm_type", names)
    kind = {} if name == "sde_dpm_solver_pp" else {"kind": "multistep"}
    types = {"midpoint": "midpoint", "heun": "heun"}
    return dict(name=name, order=options["solver_order"], solver_type=choice(options, "solver_type", types), **kind)


def _unipc(options: Options) -> dict[str, Any]:
    variant = choice(options, "solver_type", {"bh1": "bh1", "bh2": "bh2"})
    prediction = "x0" if options["predict_x0"] else "eps"
    return dict(name="unipc", order=options["solver_order"], variant=variant, prediction=prediction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Class:
    """A scheduler class of diffusers.

    Attributes:
      defaults: the options that it reads, with the value that each has there if the file does not name it.
      solver: options -> section `solver` of a config that takes the same steps; None if no solver here does.
      steps: number of steps that its pipeline takes by default, at most those of training.
    """

    defaults: Options
    solver: Callable[[Options], dict[str, Any]] | None = None
    steps: int = 50


_DDPM = Class(
    defaults=_TABLE | _ZERO | _DYNAMIC | _CLIP | _LEADING | dict(variance_type="fixed_small"),
    solver=lambda options: dict(name="ancestral", variance=choice(options, "variance_type", VARIANCES)),
    steps=1000,
)
_DDIM = Class(
    defaults=_TABLE | _ZERO | _DYNAMIC | _CLIP | _LEADING | dict(set_alpha_to_one=True),
    solver=lambda options: dict(name="ddim"),
)
_LCM = Class(
    defaults=_TABLE
    | _LATER
    | _ZERO
    | _DYNAMIC
    | _LEADING
    | dict(beta_schedule="scaled_linear", clip_sample=False, clip_sample_range=1.0, set_alpha_to_one=True)
    | dict(original_inference_steps=50, timestep_scaling=10.0),
    steps=4,
)
_KDPM = Class(defaults=_TABLE | _LATER | _SIGMAS | _LINSPACE)
SCHEDULERS: dict[str, Class] = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "LCMScheduler": _LCM,
    "PNDMScheduler": Class(
        defaults=_TABLE | _LEADING | dict(skip_prk_steps=False, set_alpha_to_one=False),
        solver=lambda options: dict(name="plms" if options["skip_prk_steps"] else "pndm"),
    ),
    "LMSDiscreteScheduler": Class(
        defaults=_TABLE | _SIGMAS | _LINSPACE,
        solver=lambda options: dict(name="lms"),
    ),
    # Euler's rule in sigma / alpha is DDIM, and Euler's ancestral one DDPM's.
    "EulerDiscreteScheduler": Class(
        defaults=_TABLE
        | _ZERO
        | _SIGMAS
        | _LINSPACE
        | dict(interpolation_type="linear", sigma_min=None, sigma_max=None, timestep_type="discrete")
        | dict(final_sigmas_type="zero"),
        solver=lambda options: dict(name="ddim"),
    ),
    "EulerAncestralDiscreteScheduler": Class(
        defaults=_TABLE | _ZERO | _LINSPACE,
        solver=lambda options: dict(name="ancestral"),
    ),
    "DPMSolverMultistepScheduler": Class(
        defaults=_TABLE
        | _ZERO
        | _DYNAMIC
        | _SIGMAS
        | _FLOW
        | _LINSPACE
        | _ORDERED
        | _DPM
        | dict(euler_at_final=False, use_lu_lambdas=False),
        solver=_dpm_solver,
    ),
    "UniPCMultistepScheduler": Class(
        defaults=_TABLE
        | _ZERO
        | _DYNAMIC
        | _SIGMAS
        | _FLOW
        | _LINSPACE
        | _ORDERED
        | dict(predict_x0=True, solver_type="bh2", disable_corrector=(), solver_p=None, final_sigmas_type="zero")
        | dict(sigma_min=None, sigma_max=None, shift_terminal=None),
        solver=_unipc,
    ),
    "DEISMultistepScheduler": Class(
        defaults=_TABLE
        | _DYNAMIC
        | _SIGMAS
        | _FLOW
        | _LINSPACE
        | _ORDERED
        | dict(algorithm_type="deis", solver_type="logrho"),
        solver=lambda options: dict(name="deis", order=options["solver_order"]),
    ),
    "DPMSolverSinglestepScheduler": Class(
        defaults=_TABLE | _DYNAMIC | _SIGMAS | _FLOW | _ORDERED | _DPM | dict(lower_order_final=False)
    ),
    "SASolverScheduler": Class(defaults=_TABLE | _DYNAMIC | _SIGMAS | _FLOW | _LINSPACE),
    "HeunDiscreteScheduler": Class(
        defaults=_TABLE | _LATER | _SIGMAS | _LINSPACE | _CLIP | dict(clip_sample=False),
    ),
    "KDPM2DiscreteScheduler": _KDPM,
    "KDPM2AncestralDiscreteScheduler": _KDPM,
    "DPMSolverSDEScheduler": _KDPM,
    "ScoreSdeVeScheduler": Class(
        defaults=dict(
            num_train_timesteps=2000, snr=0.15, sigma_min=0.01, sigma_max=1348.0, sampling_eps=1e-5, correct_steps=1
        ),
        solver=lambda options: dict(
            name="predictor_corrector",
            predictor="reverse_diffusion",
            snr=options["snr"],
            corrector_steps=options["correct_steps"],
        ),
        steps=2000,
    ),
}
# Options whose only value with a counterpart here is the default; the first group changes what the network is given.
_OF_MODEL = ("use_flow_sigmas", "timestep_type")
_OF_SAMPLER = (*_SIGMAS, "use_lu_lambdas", "euler_at_final", "lower_order_final", "final_sigmas_type")
_OF_SAMPLER += ("interpolation_type", "disable_corrector", "solver_p", "shift_terminal", "lambda_min_clipped")
_NUMBERS = ("beta_start", "beta_end", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value")
_NUMBERS += ("snr", "sampling_eps")
_LARGEST_COUNT = 2**20  # as a table of betas is made of it
_COUNTS = ("num_train_timesteps", "steps_offset", "solver_order", "correct_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduler:
    """A scheduler_config.json that was read: the class and all options that it reads.

    Attributes:
      path: of the file.
      name: of the class in diffusers.
      options: those of the file, completed by the defaults of the class.
    """

    path: pathlib.Path
    name: str
    options: Options

    @property
    def variance_exploding(self) -> bool:
        """Whether the process is that of score SDEs with alpha = 1, and the network predicts the score."""
        return "snr" in self.options

    def process(self) -> dict[str, Any]:
        """The section `process` of a config, of a discrete process. Raises ValueError."""
        options, count = self.options, self.options["num_train_timesteps"]
        if options["trained_betas"] is not None:
            betas = self._trained_betas()
        else:
            name = self._said(lambda: choice(options, "beta_schedule", BETAS))
            ends = dict(beta_start=options["beta_start"], beta_end=options["beta_end"])
            betas = dict(betas=name, **({} if name == "cosine" else ends))
        zero = dict(zero_terminal_snr=True) if options.get("rescale_betas_zero_snr") else {}
        return dict(name="discrete_vp", num_steps=count, **betas, **zero)

    def prediction(self) -> str:
        """The name of the parameterization of a discrete process."""
        return PREDICTIONS[self.options["prediction_type"]]

    def threshold(self) -> dict[str, Any]:
        """The section `sampling.threshold`: thresholding comes before clipping, as there."""
        options = self.options
        if options.get("thresholding"):
            ratio, largest = options["dynamic_thresholding_ratio"], options["sample_max_value"]
            return dict(name="dynamic", percentile=ratio, largest=largest)
        if options.get("clip_sample"):
            bound = options["clip_sample_range"]
            return dict(name="static", **({} if bound == 1 else {"bound": bound}))
        return dict(name="none")

    def solver(self) -> dict[str, Any]:
        """The section `solver` that takes the same steps. Raises ValueError, which names class and option."""
        kind = SCHEDULERS[self.name]
        if kind.solver is None:
            raise ValueError(f"{self.path}: no solver takes the steps of {self.name}; give a config of your own")
        for name in _OF_SAMPLER:
            if name in self.options and self.options[name] != kind.defaults[name]:
                self._refuse(name, "there is no such option here; give a config of your own")
        for name in ("sigma_min", "sigma_max"):
            if not self.variance_exploding and self.options.get(name) is not None:
                self._refuse(name, "the noise levels are those of the betas; give a config of your own")
        return self._said(lambda: kind.solver(self.options))

    def grid(self) -> dict[str, Any]:
        """The section `sampling.grid` of a discrete process."""
        options = self.options
        spacing = self._said(lambda: choice(options, "timestep_spacing", {name: name for name in SPACINGS}))
        offset = options["steps_offset"] if spacing == "leading" else 0
        end = min(offset, 1) if not options.get("set_alpha_to_one", True) else 0
        return dict(name="discrete", spacing=spacing) | {k: v for k, v in dict(offset=offset, end=end).items() if v}

    def _trained_betas(self) -> dict[str, Any]:
        betas = _numbers(self.options["trained_betas"])
        if betas is None or len(betas) != self.options["num_train_timesteps"]:
            self._refuse(
                "trained_betas", f"it must be num_train_timesteps={self.options['num_train_timesteps']} numbers"
            )
        for name in BETAS.values():
            ends = {} if name == "cosine" else dict(beta_start=float(betas[0]), beta_end=float(betas[-1]))
            if np.allclose(beta_table(name, len(betas), **ends), betas, rtol=1e-4, atol=1e-8):
                return dict(betas=name, **ends)
        self._refuse("trained_betas", f"they must be those of a schedule: {', '.join(BETAS)}")
        raise AssertionError

    def _said(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except ValueError as error:
            raise ValueError(f"{self.path} ({self.name}): {error}") from error

    def _refuse(self, name: str, reason: str) -> None:
        raise ValueError(f"{self.path} ({self.name}): {name}={str(self.options[name])[:100]!r} is refused: {reason}")


def read(pipeline: pathlib.Path) -> Scheduler | None:
    """The scheduler in the folder of a pipeline; None if it has none. Raises ValueError, see `parse`."""
    path = pipeline / FILE
    return parse(path, read_json(path), _class_of(pipeline)) if path.is_file() else None


def parse(path: pathlib.Path, config: Options, name: Any = None) -> Scheduler:
    """The scheduler that the content of a scheduler_config.json describes; `name` is its class if the file says none.

    Options that the class does not read are ignored, as in diffusers, and null is false.

    Raises ValueError for a class whose process or output has no counterpart here (EDM, flow matching, consistency
    models, ...), and for values of another type or unknown; class, option and value are named.
    """
    name = config.get("_class_name") or name
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(
            f"{path}: _class_name={str(name)[:100]!r} is not supported; it must be {', '.join(SCHEDULERS)}"
        )
    defaults = SCHEDULERS[name].defaults
    options = {key: _normal(config.get(key, default), default) for key, default in defaults.items()}
    if config.get("predict_epsilon") is False and "prediction_type" not in config:  # diffusers before its version 0.10
        options["prediction_type"] = "sample"
    result = Scheduler(path=path, name=name, options=options)
    if "prediction_type" in options:
        result._said(lambda: choice(options, "prediction_type", PREDICTIONS))
    unused = () if options.get("trained_betas") is None else ("beta_start", "beta_end")
    if options.get("beta_schedule") == "squaredcos_cap_v2":
        unused = ("beta_start", "beta_end")
    positive = ("sigma_min", "sigma_max") if result.variance_exploding else ()
    for key, value in options.items():
        if isinstance(defaults[key], bool) and not isinstance(value, bool):
            result._refuse(key, "it must be true or false")
        if key in unused or key not in (*_NUMBERS, *_COUNTS, *positive):
            continue
        kinds, limit = (int, _LARGEST_COUNT) if key in _COUNTS else (int | float, 2**31)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if not number or not 0 <= value < limit or (key in positive and value == 0):
            result._refuse(key, f"it must be a number less than {limit}")
    for key in _OF_MODEL:
        if key in options and options[key] != defaults[key]:
            result._refuse(key, f"it must be {defaults[key]!r}: the network is given other noise levels")
    return result


def _class_of(pipeline: pathlib.Path) -> str | None:
    """The class of the scheduler that model_index.json names."""
    index = pipeline / "model_index.json"
    entry = read_json(index).get("scheduler") if index.is_file() else None
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def choice(options: Options, name: str, known: Mapping[str, str]) -> str:
    """`known`[the option `name`]. Raises ValueError, which names option and value, if it is not one of `known`."""
    value = options[name]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}={str(value)[:100]!r} is not supported; it must be one of {', '.join(known)}")
    return known[value]


def _normal(value: Any, default: Any) -> Any:
    """A value of the JSON file: null is false for a switch, and lists are tuples."""
    if value is None and isinstance(default, bool):
        return False
    return tuple(value) if isinstance(value, list) else value


def _numbers(value: Any) -> np.ndarray | None:
    if not isinstance(value, tuple) or not all(type(x) in (int, float) and abs(x) < 2**31 for x in value):
        return None
    return np.asarray(value, np.float64)
