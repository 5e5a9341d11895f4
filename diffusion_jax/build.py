"""From a config to objects: literal tables of names, and the only reader of configs.

A config section is a `name` from its table and keyword arguments of the constructor found there. Whatever does not
fit is refused here, before anything is compiled or written.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from diffusion_jax import (
    bounds,
    data,
    dequantization,
    grids,
    judging,
    likelihood,
    losses,
    parameterizations,
    processes,
    solvers,
    systems,
    times,
    weightings,
)
from diffusion_jax.data import toys
from diffusion_jax.defaults import defaults
from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.functional import fourier_features, init_apply
from diffusion_jax.networks.mlp import MLP
from diffusion_jax.networks.ncsnpp import NCSNpp
from diffusion_jax.networks.refinenet import NCSN, NCSNv2
from diffusion_jax.networks.unet import UNet
from diffusion_jax.sections import ConfigError, check_type, construct, lookup, suggest
from diffusion_jax.training import optimizers
from diffusion_jax.training.writers import JsonlWriter, TensorBoardWriter, WandbWriter, Writers
from diffusion_jax.types import Params, Process, System

PROCESSES = {
    "vp": processes.VP,
    "subvp": processes.SubVP,
    "ve": processes.VE,
    "cosine": processes.Cosine,
    "edm": processes.EDM,
    "rectified_flow": processes.RectifiedFlow,
    "discrete_vp": processes.discrete_vp,
    "learned_vp": processes.learned_vp,
}
PARAMETERIZATIONS = {
    "eps": parameterizations.eps_prediction,
    "x0": parameterizations.x0_prediction,
    "score": parameterizations.score_prediction,
    "v": parameterizations.v_prediction,
    "velocity": parameterizations.velocity_prediction,
    "edm": parameterizations.edm_preconditioning,
}
LABELS = {
    "time": parameterizations.time_label,
    "index": parameterizations.index_label,
    "log_sigma": parameterizations.log_sigma_label,
    "log_snr": parameterizations.log_snr_label,
}
WEIGHTINGS = {
    "simple": weightings.simple,
    "sigma_squared": weightings.sigma_squared,
    "likelihood": weightings.likelihood,
    "uniform": weightings.uniform,
    "velocity_matching": weightings.velocity_matching,
    "edm": weightings.edm,
    "min_snr": weightings.min_snr,
    "p2": weightings.p2,
    "sigmoid": weightings.sigmoid,
}
TIMES = {
    "uniform": times.uniform,
    "low_discrepancy": times.low_discrepancy,
    "discrete": times.discrete,
    "levels": times.levels,
    "log_normal": times.log_normal,
    "logit_normal": times.logit_normal,
    "importance": times.importance,
    "loss_second_moment": times.loss_second_moment,
}
GRIDS = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "karras": grids.karras,
    "uniform_log_snr": grids.uniform_log_snr,
    "discrete": grids.discrete,
    "levels": grids.levels,
}
LOSSES = {
    "denoising": losses.denoising_loss,
    "score_matching": losses.score_matching_loss,
    "hybrid": losses.hybrid_loss,
    "vlb": losses.vlb_loss,
}
LEARNED_VARIANCE = ("hybrid", "vlb")  # losses of a network with a second output
NETWORKS = {
    "mlp": MLP,
    "unet": UNet,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
    "ncsnpp": NCSNpp,
    "dit": DiT,
}
PREDICTORS = {
    "ancestral": solvers.ancestral,
    "ddim": solvers.ddim,
    "euler_maruyama": solvers.euler_maruyama,
    "reverse_diffusion": solvers.reverse_diffusion,
    "euler": solvers.euler,
    "heun": solvers.heun,
}


def _predictor_corrector(
    predictor: str = "reverse_diffusion", snr: float = 0.16, corrector_steps: int = 1
) -> solvers.Solver:
    """Any solver of one network evaluation as predictor, then Langevin correction."""
    return solvers.predictor_corrector(
        construct(PREDICTORS, "solver.predictor", {"name": predictor}),
        solvers.langevin_corrector(snr, corrector_steps),
    )


SOLVERS = {
    **PREDICTORS,
    "adaptive_ode": solvers.adaptive_ode,
    "adaptive_sde": solvers.adaptive_sde,
    "annealed_langevin": solvers.annealed_langevin,
    "deis": solvers.deis,
    "dpm_solver": solvers.dpm_solver,
    "dpm_solver_pp": solvers.dpm_solver_pp,
    "exponential_sde": solvers.exponential_sde,
    "lms": solvers.lms,
    "plms": solvers.plms,
    "pndm": solvers.pndm,
    "sde_dpm_solver_pp": solvers.sde_dpm_solver_pp,
    "seeds": solvers.seeds,
    "unipc": solvers.unipc,
    "predictor_corrector": _predictor_corrector,
}
GUIDANCE = {"none": lambda: lambda D: D}
LIKELIHOODS = {"none": lambda: None, "ode": likelihood.ode, "bound": bounds.bound}
LOGGERS = {"jsonl": "json", "tensorboard": "tensorboardX", "wandb": "wandb"}  # and the module that each needs


def check_keys(config: ConfigDict) -> None:
    """Refuse sections, and keys of sections without a `name`, that `defaults` does not have, lacks or has otherwise.

    Raises ConfigError. Keys of named sections are checked when they are constructed.
    """
    known = defaults()
    for key in config:
        if key not in known:
            raise ConfigError(f"config.{key} is unknown{suggest(key, list(known))}; there are {', '.join(known)}")
    for key, section in known.items():
        if key not in config:
            raise ConfigError(f"config.{key} is missing; begin with diffusion_jax.defaults.defaults()")
        if isinstance(section, ConfigDict) and not isinstance(config[key], ConfigDict):
            raise ConfigError(f"config.{key}={config[key]!r} must be a section with keys, such as config.{key}.name")
        check_type(key, config[key], type(section).__name__)
        if isinstance(section, ConfigDict) and "name" not in section:
            for name in config[key]:
                if name not in section:
                    raise ConfigError(
                        f"config.{key}.{name} is unknown{suggest(name, list(section))}; there are {', '.join(section)}"
                    )
            for name, value in section.items():
                if name not in config[key]:
                    raise ConfigError(f"config.{key}.{name} is missing; it is {value!r} by default")
                check_type(f"{key}.{name}", config[key][name], type(value).__name__)
    for field, least in (
        ("training.num_steps", 1),
        ("training.batch_size", 1),
        ("training.log_every", 1),
        ("training.checkpoint_every", 1),
        ("training.sample_every", 0),
        ("training.accumulate", 1),
        ("training.keep_last", 1),
        ("training.keep_every", 0),
        ("sampling.num_samples", 1),
        ("sampling.steps", 1),
        ("sampling.batch_size", 1),
        ("evaluation.num_samples", 2),
        ("seed", 0),
        ("sampling.seed", 0),
    ):
        section, _, name = field.rpartition(".")
        value = config[section][name] if section else config[name]
        check_type(field, value, "int")
        if value < least:
            raise ConfigError(f"config.{field}={value!r} must be an integer of at least {least}")
    if config.training.batch_size % config.training.accumulate:
        raise ConfigError(
            f"config.training.accumulate={config.training.accumulate} must divide "
            f"config.training.batch_size={config.training.batch_size}"
        )
    for name in config.training.loggers:
        if importlib.util.find_spec(lookup(LOGGERS, "training.loggers", name)) is None:
            raise ConfigError(f"config.training.loggers: {name!r} needs pip install 'diffusion_jax[{name}]'")
    if config.ema.rates or config.sampling.ema_rate:
        ema_rate(config)


def data_shape(config: ConfigDict) -> tuple[int, ...]:
    """The shape of one example: [size, size, channels], or [2] for points in the plane."""
    if config.data.get("name") == "toy":
        return (2,)
    for key in ("image_size", "channels"):
        if not isinstance(config.data.get(key), int) or config.data[key] < 1:
            raise ConfigError(
                f"config.data.{key}={config.data.get(key)!r} must be a positive integer for images such as those of "
                f"{config.data.get('name')!r}"
            )
    return (config.data.image_size, config.data.image_size, config.data.channels)


def data_levels(config: ConfigDict) -> int:
    """The number of grey levels of the data, 0 where a likelihood is asked for that takes it as continuous."""
    section = config.evaluation.likelihood
    if section.get("dequantization") == "none":
        return 0
    return section.get("levels", config.data.get("levels", 256))


def system(config: ConfigDict) -> System:
    """The system that a config describes."""
    return lookup(SYSTEMS, "system.name", config.system.name)(config)


def _diffusion(config: ConfigDict) -> systems.Diffusion:
    process = construct(PROCESSES, "process", config.process)
    param = parameterization(config)
    weighting = construct(WEIGHTINGS, "weighting", config.weighting)
    steps = {"num_steps": process.num_steps} if hasattr(process, "num_steps") else {}
    draw_times, resampler = construct(TIMES, "times", config.times, weighting=weighting, **steps), None
    if isinstance(draw_times, times.Resampler):
        resampler = draw_times
        draw_times = resampler.draw(resampler.init())
    grid = construct(GRIDS, "sampling.grid", config.sampling.grid)
    drawn, _ = jax.jit(draw_times, static_argnums=2)(process, jax.random.key(0), 4096)
    visited = _sampling_times(config, process, grid)[:-1]  # what happens at the last time depends on the solver
    last = [config.times.t_max] if "t_max" in config.times else []
    figures = _likelihood(config, process, grid)
    if config.evaluation.likelihood.name == "ode":
        last += [config.evaluation.likelihood.get("t_min", 1e-5), config.evaluation.likelihood.get("t_max", 1.0)]
    _check_coefficients(config, process, param, np.concatenate([drawn, visited, np.float32(last)]))
    init, apply = network(config)
    learned = config.loss.name in LEARNED_VARIANCE
    _check_learned_variance(config, init, apply, learned)
    loss = construct(
        LOSSES,
        "loss",
        config.loss,
        apply=apply,
        param=param,
        process=process,
        weighting=weighting,
        times=draw_times,
        levels=config.data.get("levels", 256),
    )
    # Solvers that lower their order, or spread noise, over the steps of a run are told how many there are.
    # annealed_langevin's num_steps are those at each level.
    total = {} if config.solver.name == "annealed_langevin" else {"num_steps": config.sampling.steps}
    return systems.Diffusion(
        init_network=init,
        apply=apply,
        process=process,
        param=param,
        loss_fn=loss,
        guidance=construct(GUIDANCE, "guidance", config.guidance),
        solver=construct(SOLVERS, "solver", config.solver, **total),
        grid=grid,
        steps=config.sampling.steps,
        shape=data_shape(config),
        num_classes=config.network.get("num_classes", 0),
        batch_size=config.sampling.batch_size,
        clip=config.sampling.clip,
        denoise=config.sampling.denoise,
        likelihood=figures,
        learned_variance=learned,
        resampler=resampler,
    )


def _vdm(config: ConfigDict) -> systems.VDM:
    """Of the sections loss, weighting and times, which say how other systems are trained, nothing is used."""
    if config.data.get("dequantize", False):
        raise ConfigError("config.data.dequantize=True: the bound of VDM is that of grey levels; it must be false")
    given = dict(diffusion=_diffusion(config), levels=config.data.get("levels", 256))
    return construct({"vdm": systems.VDM}, "system", config.system, **given)


SYSTEMS = {"diffusion": _diffusion, "vdm": _vdm}


def parameterization(config: ConfigDict) -> parameterizations.Parameterization:
    """The parameterization, its `label` looked up by name; `level` counts the levels of config.times."""
    section = dict(config.parameterization)
    if "label" in section:
        labels = dict(LABELS)
        if config.times.name == "levels":
            labels["level"] = parameterizations.level_label(config.times.num_levels)
        section["label"] = lookup(labels, "parameterization.label", section["label"])
    return construct(PARAMETERIZATIONS, "parameterization", section)


def network(config: ConfigDict) -> tuple[Callable, Callable]:
    """(init, apply) of the network, which is told the data's shape where it asks for it.

    `fourier` in its section names the exponents of `fourier_features`, which any network may have before it.
    """
    shape, section = data_shape(config), config.network.to_dict()
    exponents = section.pop("fourier", ())
    check_type("network.fourier", exponents, "tuple")
    if not all(isinstance(n, int) for n in exponents):
        raise ConfigError(f"config.network.fourier={exponents!r} must hold integers, the exponents n of 2^n pi x")
    features = (*shape[:-1], shape[-1] * (1 + 2 * len(exponents)))
    given = {"shape": features, **({"out_channels": shape[-1]} if exponents else {})}
    if len(shape) == 3:
        given |= {"image_size": shape[0], "in_channels": features[-1]}

    def make(rngs):
        return construct(NETWORKS, "network", section, rngs=rngs, **given)

    try:
        init, apply = init_apply(make, config.training.dtype)
        return init, fourier_features(apply, exponents) if exponents else apply
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.training.dtype: {error}") from error


def optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer and its learning rate by step."""
    section = {**config.optimizer.to_dict(), "num_steps": config.training.num_steps}
    name = section.pop("name")
    lookup(optimizers.DIRECTIONS, "optimizer.name", name)
    return construct(
        {name: functools.partial(optimizers.make_optimizer, name=name)}, "optimizer", section | {"name": name}
    )


def source(config: ConfigDict, *, evaluation: bool = False) -> data.Source:
    """The training split of the data set, or the split that evaluation compares with. Opens files; ConfigError."""
    section = {key: value for key, value in config.data.items() if value != ""}
    name = section["name"]
    loaded = construct({name: functools.partial(data.load, name=name)}, "data", section, evaluation=evaluation)
    if loaded.shape != data_shape(config):
        raise ConfigError(f"config.data: {name} holds examples of {loaded.shape}, not {data_shape(config)}")
    if config.system.name == "vdm":
        try:
            dequantization.check_levels(data.arrays(loaded, 256)["x"], config.data.get("levels", 256))
        except ValueError as error:
            raise ConfigError(f"config.data (for config.system.name='vdm'): {error}") from error
    if config.evaluation.likelihood.name != "none" and data_levels(config):
        try:
            dequantization.check_levels(data.arrays(loaded, 256)["x"], data_levels(config))
        except ValueError as error:
            raise ConfigError(f"config.evaluation.likelihood ({config.evaluation.likelihood.name}): {error}") from error
    num_classes = config.network.get("num_classes", 0)
    if (num_classes and loaded.num_classes > num_classes) or (num_classes and not loaded.num_classes):
        raise ConfigError(
            f"config.network.num_classes={num_classes} must be 0 or at least the {loaded.num_classes} classes of {name}"
        )
    return loaded


def writers(config: ConfigDict, directory: pathlib.Path, step: int) -> Writers:
    """The writers that config.training.loggers names; none on processes other than 0."""
    if jax.process_index():
        return Writers()
    table = {
        "jsonl": lambda: JsonlWriter(directory / "metrics.jsonl", resume_step=step),
        "tensorboard": lambda: TensorBoardWriter(directory / "tensorboard", resume_step=step),
        "wandb": lambda: WandbWriter(directory, name=directory.name, config=config.to_dict()),
    }
    return Writers([table[name]() for name in config.training.loggers])


def metrics(config: ConfigDict, source: data.Source, directory: pathlib.Path | None = None) -> list[judging.Metric]:
    """What config.evaluation.metrics names, see `judging.metrics`."""
    return judging.metrics(config, source, directory, levels=data_levels(config))


def ema_rate(config: ConfigDict) -> str:
    """The name of the average that samples come from: config.sampling.ema_rate, or the first of config.ema.rates."""
    rates = [str(rate) for rate in config.ema.rates]
    rate = str(config.sampling.ema_rate) if config.sampling.ema_rate else rates[0]
    if rate not in rates:
        raise ConfigError(f"config.sampling.ema_rate={rate} is not among config.ema.rates=({', '.join(rates)})")
    return rate


def plane(config: ConfigDict, built: systems.Diffusion, params: Params) -> dict[str, Callable]:
    """What a picture of points in the plane shows beside them: the learned score at a small time, the exact density."""
    t = jnp.float32(0.1)
    D = built.denoiser(params, None)
    pictures = {"score": jax.jit(lambda x: parameterizations.score(built.process, D, x, t))}
    if config.data.get("kind", "gaussian_mixture") == "gaussian_mixture":
        pictures["log_density"] = toys.mixture_log_density
    return pictures


def _sampling_times(config: ConfigDict, process: Process, grid: Callable) -> jax.Array:
    """The times that a solver steps through. Refuses a grid that does not fit the process or the number of steps."""
    section = config.sampling.grid
    try:
        times = jax.jit(grid, static_argnums=1)(process, config.sampling.steps)
    except AttributeError as error:
        raise ConfigError(
            f"config.sampling.grid.name={section.name!r} needs a discrete process; "
            f"config.process.name={config.process.name!r} is continuous"
        ) from error
    except ValueError as error:
        raise ConfigError(f"config.sampling.steps={config.sampling.steps}: {error}") from error
    if not np.isfinite(times).all() or (np.diff(times)[1:] >= 0).any():
        raise ConfigError(
            f"config.sampling.grid ({section.name}): sigma / alpha is zero or infinite at an end of its times for the "
            f"process {config.process.name!r}; set config.sampling.grid.t_min and t_max inside the range"
        )
    return times


def _likelihood(config: ConfigDict, process: Process, grid: Callable) -> likelihood.Likelihood | None:
    """The figures of config.evaluation.likelihood. Refuses a bound whose steps the process does not have."""
    section = config.evaluation.likelihood
    built = construct(LIKELIHOODS, "evaluation.likelihood", section, grid=grid, levels=data_levels(config))
    if section.name != "bound":
        return built
    if not section.get("steps") and not hasattr(process, "num_steps"):
        raise ConfigError(
            "config.evaluation.likelihood.steps=0 stands for all steps of a discrete process, but "
            f"config.process.name={config.process.name!r} is continuous; give their number"
        )
    try:
        grid(process, section.get("steps") or process.num_steps)
    except ValueError as error:
        raise ConfigError(f"config.evaluation.likelihood.steps={section.get('steps', 0)}: {error}") from error
    return built


def _check_learned_variance(config: ConfigDict, init: Callable, apply: Callable, learned: bool) -> None:
    """Refuse a network without the outputs that the loss needs, and what asks for a variance that is not learned."""
    shape, given = data_shape(config), jax.ShapeDtypeStruct
    cond = {"label": given((1,), np.int32)} if config.network.get("num_classes", 0) else None
    with_batch = given((1, *shape), np.float32)
    try:
        out = jax.eval_shape(apply, jax.eval_shape(init, jax.random.key(0)), with_batch, given((1,), np.float32), cond)
    except ValueError as error:
        raise ConfigError(f"config.network ({config.network.name}) does not fit the data: {error}") from error
    channels = shape[-1] * (2 if learned else 1)
    if out.shape[-1] != channels:
        raise ConfigError(
            f"config.network.out_channels={out.shape[-1]} must be {channels} for the {shape[-1]} channels of the data "
            f"and config.loss.name={config.loss.name!r}{', which learns variances beside means' if learned else ''}"
        )
    for field, section in (("solver", config.solver), ("evaluation.likelihood", config.evaluation.likelihood)):
        if section.get("variance") == "learned" and not learned:
            raise ConfigError(
                f"config.{field}.variance='learned' needs a config.loss.name among {', '.join(LEARNED_VARIANCE)}; "
                f"it is {config.loss.name!r}"
            )
    if config.times.name == "loss_second_moment" and not learned:
        raise ConfigError(
            f"config.times.name='loss_second_moment' follows the terms of the bound, which config.loss.name="
            f"{config.loss.name!r} has not; choose one of {', '.join(LEARNED_VARIANCE)}"
        )


def _check_coefficients(config: ConfigDict, process: Process, param: Callable, times: np.ndarray) -> None:
    """Refuse a parameterization that is not finite at one of `times`, such as eps where alpha = 0."""
    try:
        coefficients = jax.jit(param)(process, times)
    except AttributeError as error:
        raise ConfigError(
            f"config.parameterization.label={config.parameterization.get('label')!r} needs a discrete process; "
            f"config.process.name={config.process.name!r} is continuous"
        ) from error
    for name, value in coefficients._asdict().items():
        bad = ~np.isfinite(np.asarray(value))
        if bad.any():
            raise ConfigError(
                f"config.parameterization.name={config.parameterization.name!r}: {name} is not finite at "
                f"t = {float(times[np.argmax(bad)]):g} of the process {config.process.name!r}; use another "
                "parameterization, or t_min and t_max inside the range in config.times and config.sampling.grid"
            )
