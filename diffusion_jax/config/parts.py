"""The parts that a config names (process, parameterization, network, solver, ...), each constructed once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from diffusion_jax.config import names, trained
from diffusion_jax.config.sections import ConfigError, check_sizes, check_type, construct, lookup, refusal
from diffusion_jax.guidance import steering
from diffusion_jax.guidance.editing import Editing
from diffusion_jax.guidance.steering import Guidance
from diffusion_jax.losses.times import Resampler, Times
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.functional import conditions_of, embedder, featurizer, fourier_features, init_apply
from diffusion_jax.parameterizations import Parameterization, level_label
from diffusion_jax.training import optimizers
from diffusion_jax.types import Apply, BridgeProcess, Cond, Params, Placed, Process, Solver, Spec, System

_CHECKED_TIMES = 4096  # number of training times at which coefficients are checked


class Network(NamedTuple):
    """A network as pure functions, its conditions, and its description for import and export."""

    init: Callable[[Any], Params]
    apply: Apply
    embed: Callable[[Params, Cond], Any]  # embeds conditions, once per sample
    conditions: Conditions
    placed: Placed
    features: Callable[..., list[Any]]  # (params, x, c_noise, cond) -> activations of the decoder path


class Parts:
    """The parts of a config for examples of `spec`, one attribute each, constructed at the first access.

    Each raises ConfigError if its section is invalid. `Parts` has no branches on systems: recipes combine the parts.
    `system_of` builds the system of another config and its role, for parts that depend on another run. `levels` is the
    number of grey levels of the data, by default config.data.levels. With `planning` a run that was not trained yet is
    replaced by its config file, which is enough to build its system.
    """

    def __init__(
        self,
        config: ConfigDict,
        spec: Spec,
        system_of: Callable[[ConfigDict], tuple[System, str]],
        levels: int | None = None,
        planning: bool = False,
    ) -> None:
        self.config = config
        self.spec = spec
        self.levels = config.data.get("levels", 256) if levels is None else levels
        self._system_of = system_of
        self._planning = planning
        self._runs: dict[str, trained.Trained] = {}

    def at(self, spec: Spec) -> Parts:
        """The parts of the same config for other examples, such as the latents of a first stage."""
        there = Parts(self.config, spec, self._system_of, levels=256, planning=self._planning)
        there._runs = self._runs
        return there

    def section(self, name: str) -> dict[str, Any]:
        """A section of the config, as a plain dict."""
        return self.config[name].to_dict()

    def trained(self, path: str, field: str, role: str, config_file: str = "") -> trained.Trained:
        """The trained run in the work directory `path`, opened once; see `trained.open_run`, also for errors.

        `config_file`, "FILE.py:VARIANT", is the config to train it with.
        """
        if path not in self._runs:
            options = dict(config_file=config_file, planning=self._planning)
            self._runs[path] = trained.open_run(path, field, self._system_of, role, **options)
        return self._runs[path]

    @property
    def configs_of_runs(self) -> dict[str, ConfigDict]:
        """The configs of the trained runs that the system is built on, by the key that names them."""
        return {run.field: run.config for run in self._runs.values() if run.field.startswith("config.system.")}

    @functools.cached_property
    def process(self) -> Process:
        if self.config.process.get("name") in names.BRIDGES:
            raise ConfigError(
                f"config.process.name={self.config.process.name!r} is a bridge between two data sets, for "
                f"config.system.name='bridge' or 'schroedinger_bridge', not {self.config.system.name!r}; choose one of "
                f"{', '.join(names.PROCESSES)}"
            )
        if self.config.process.name in names.CATEGORICAL_PROCESSES:
            raise ConfigError(
                f"config.process.name={self.config.process.name!r} is categorical, for config.system.name="
                f"'discrete_diffusion'; config.system.name={self.config.system.name!r} needs one of real numbers, "
                f"{', '.join(names.PROCESSES)}"
            )
        process = construct(names.PROCESSES, "process", self.config.process)
        check_noise_grows(self.config, process)
        return process

    @functools.cached_property
    def bridge(self) -> BridgeProcess:
        """The bridge process of config.process."""
        if self.config.process.get("name") in names.PROCESSES:
            raise ConfigError(
                f"config.process.name={self.config.process.name!r} ends in noise, and config.system.name="
                f"{self.config.system.name!r} needs a bridge to a second data set: {', '.join(names.BRIDGES)}"
            )
        return construct(names.BRIDGES, "process", self.config.process)

    @functools.cached_property
    def bridge_parameterization(self) -> Parameterization:
        """The parameterization on a bridge of config.parameterization."""
        section = dict(self.config.parameterization)
        if "label" in section:
            section["label"] = lookup(names.LABELS, "parameterization.label", section["label"])
        return construct(names.BRIDGE_PARAMETERIZATIONS, "parameterization", section)

    @property
    def bridge_times(self) -> Times:
        """Distribution of the training times of a bridge, on its reference process. Raises ConfigError."""
        times = construct(names.TIMES, "times", self.config.times, weighting=None)
        if isinstance(times, Resampler) or self.config.times.name == "importance":
            raise ConfigError(f"config.times.name={self.config.times.name!r} needs a weighting; a bridge has none")
        return times

    @functools.cached_property
    def parameterization(self) -> Parameterization:
        """The parameterization. The label "level" is the index of the noise level of config.times."""
        section = dict(self.config.parameterization)
        if "label" in section:
            labels = dict(names.LABELS)
            if self.config.times.name == "levels":
                labels["level"] = level_label(self.config.times.num_levels)
            section["label"] = lookup(labels, "parameterization.label", section["label"])
        return construct(names.PARAMETERIZATIONS, "parameterization", section)

    @functools.cached_property
    def weighting(self) -> Callable:
        return construct(names.WEIGHTINGS, "weighting", self.config.weighting)

    @functools.cached_property
    def _times(self) -> Times | Resampler:
        """Distribution of training times, or a resampler. Only those with a parameter `weighting` get it."""
        steps = {} if self.process.num_steps is None else {"num_steps": self.process.num_steps}
        return construct(names.TIMES, "times", self.config.times, weighting=self.weighting, **steps)

    @property
    def resampler(self) -> Resampler | None:
        """Importance sampling of training times by past losses; None for a fixed density."""
        return self._times if isinstance(self._times, Resampler) else None

    @property
    def times(self) -> Times:
        """Distribution of training times; for a resampler, that of step 0."""
        return self.resampler.draw(self.resampler.init()) if self.resampler else self._times

    @functools.cached_property
    def grid(self) -> Callable:
        return construct(names.GRIDS, "sampling.grid", self.config.sampling.grid)

    @functools.cached_property
    def solver(self) -> Solver:
        # Some solvers depend on the number of steps: they need as many as their order, or add noise in some steps. For
        # annealed Langevin dynamics `num_steps` is the number of steps at each noise level.
        total = {} if self.config.solver.name == "annealed_langevin" else {"num_steps": self.config.sampling.steps}
        return construct(names.SOLVERS, "solver", self.config.solver, **total)

    @functools.cached_property
    def guidance(self) -> Guidance:
        return self._guidance("guidance", self.section("guidance"))

    def _guidance(self, field: str, section: Mapping[str, Any]) -> Guidance:
        """The guidance of a section, chained with that of its own section `then`."""
        then = plain(section["then"], f"{field}.then") if "then" in section else None
        own = {key: value for key, value in section.items() if key != "then"}
        first = construct(names.GUIDANCE, field, own, parts=self, place=field)
        if then is None:
            return first
        with refusal(f"config.{field}.then.name={then['name']!r}"):
            return steering.chain(first, self._guidance(f"{field}.then", then))

    @functools.cached_property
    def editing(self) -> Editing:
        return construct(names.EDITING, "editing", self.config.editing)

    @functools.cached_property
    def threshold(self) -> Callable:
        return construct(names.THRESHOLDS, "sampling.threshold", self.config.sampling.threshold)

    @property
    def likelihood_levels(self) -> int:
        """Number of grey levels of the data; 0 if the likelihood treats the data as continuous."""
        section = self.config.evaluation.likelihood
        return 0 if section.get("dequantization") == "none" else section.get("levels", self.levels)

    @functools.cached_property
    def likelihood(self) -> Callable | None:
        """The likelihood of config.evaluation.likelihood; None for "none"."""
        section = self.config.evaluation.likelihood
        likelihood = construct(
            names.LIKELIHOODS, "evaluation.likelihood", section, grid=self.grid, levels=self.likelihood_levels
        )
        steps = section.get("steps") or self.process.num_steps
        if section.name == "bound" and steps:
            try:
                self.grid(self.process, steps)
            except ValueError as error:
                raise ConfigError(f"config.evaluation.likelihood.steps={section.get('steps', 0)}: {error}") from error
        return likelihood

    def network(self, *, channels: int | None = None, **given: int) -> Network:
        """The network of config.network for examples of `spec`, or of `channels` channels instead of theirs.

        `given` are further sizes that its constructor may take, such as the number of output channels.

        With `fourier` in its section, exponents n, `fourier_features` are concatenated to the input of any network.
        """
        shape, section = self.spec.shape, self.section("network")
        shape = (*shape[:-1], channels or shape[-1])
        placed = Placed(section.get("name", ""), {k: v for k, v in section.items() if k != "name"}, ("network",), shape)
        exponents = section.pop("fourier", ())
        check_type("network.fourier", exponents, "tuple")
        if not all(isinstance(n, int) for n in exponents):
            raise ConfigError(f"config.network.fourier={exponents!r} must hold integers, the exponents n of 2^n pi x")
        features = (*shape[:-1], shape[-1] * (1 + 2 * len(exponents)))
        sizes = {"shape": features, **({"out_channels": shape[-1]} if exponents or channels else {})}
        if len(shape) == 3:
            sizes |= {"image_size": shape[0], "in_channels": features[-1]}
        sizes |= given

        if section.get("name") in names.NETWORKS:
            check_sizes(names.NETWORKS[section["name"]], "network", section)

        def make(rngs):
            return construct(names.NETWORKS, "network", section, rngs=rngs, **sizes)

        dtype = self.config.training.dtype
        try:
            init, apply = init_apply(make, dtype)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"config.training.dtype: {error}") from error
        conditions = conditions_of(make)
        embed = embedder(make, dtype) if conditions.shapes else lambda params, cond: cond
        features = featurizer(make, dtype)
        if exponents:
            apply, features = (fourier_features(function, exponents) for function in (apply, features))
        return Network(init, apply, embed, conditions, placed, features)

    def times_of_training(self) -> tuple[np.ndarray, np.ndarray]:
        """Many training times and their weights, for checks of finiteness. Drawn with a fixed key."""
        draw = jax.jit(self.times, static_argnums=2)
        times, weights = draw(self.process, jax.random.key(0), _CHECKED_TIMES)
        return np.asarray(times), np.asarray(weights)

    def optimizer(self) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The optimizer, and its learning rate as a function of the step."""
        section = {**self.section("optimizer"), "num_steps": self.config.training.num_steps}
        name = section.pop("name")
        lookup(optimizers.DIRECTIONS, "optimizer.name", name)
        make = functools.partial(optimizers.make_optimizer, name=name)
        return construct({name: make}, "optimizer", section | {"name": name})


def check_noise_grows(config: ConfigDict, process: Process) -> None:
    """Raises ConfigError unless alpha and sigma are finite, at least 0, and sigma / alpha grows with t."""
    t = jnp.asarray(np.append(0, np.geomspace(1e-3, 1, 16)), jnp.float32)
    try:
        alpha, sigma = (np.asarray(f(t), np.float64) for f in (process.alpha, process.sigma))
    except ArithmeticError:  # of plain numbers, such as a division by 0
        alpha, sigma = np.full((2, len(t)), np.nan)
    finite = np.isfinite([alpha, sigma]).all() and min(alpha.min(), sigma.min()) >= 0
    growing = sigma[1:] * alpha[:-1] - sigma[:-1] * alpha[1:]
    if not finite or growing.min() < -1e-6 or not growing.max() > 0:
        values = ", ".join(f"config.process.{key}={value!r}" for key, value in config.process.items())
        raise ConfigError(
            f"{values}: the noise must grow with t, with alpha and sigma finite and at least 0; here sigma runs from "
            f"{sigma[0]:.4g} to {sigma[-1]:.4g} and alpha from {alpha[0]:.4g} to {alpha[-1]:.4g}"
        )


def no_likelihood(config: ConfigDict, reason: str) -> None:
    """Raises ConfigError, with the `reason`, unless config.evaluation.likelihood.name is "none"."""
    name = config.evaluation.likelihood.name
    if name != "none":
        raise ConfigError(f"config.evaluation.likelihood.name={name!r} must be 'none': {reason}")


def positive(field: str, value: Any, *, zero: bool = False) -> float:
    """Returns `value` as a float. Raises ConfigError unless it is a finite positive number, or 0 if `zero`."""
    allowed = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if not allowed or (value == 0 and not zero):
        raise ConfigError(f"config.{field}={value!r} must be a {'number of at least 0' if zero else 'positive number'}")
    return float(value)


def plain(section: Any, field: str) -> Mapping[str, Any]:
    """Returns a section within a section, such as config.guidance.then. Raises ConfigError if it has no `name`."""
    if not isinstance(section, ConfigDict | Mapping) or "name" not in section:
        raise ConfigError(f"config.{field}={section!r} must be a section such as dict(name='none')")
    return section.to_dict() if isinstance(section, ConfigDict) else section
