"""From a config to objects: literal tables of names, and the only reader of configs.

A config section is a `name` from its table and keyword arguments of the constructor found there. Whatever does not
fit is refused here, before anything is compiled or written.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from diffusion_jax import data, losses, parameterizations, processes, solvers, systems
from diffusion_jax.config import fits, guidance, judging
from diffusion_jax.config.recipes import first_stage, text_to_image
from diffusion_jax.config.sections import ConfigError, check_type, construct, lookup, refusal
from diffusion_jax.config.trained import Trained, open_run
from diffusion_jax.data import images, tokenization
from diffusion_jax.data.derived import averaged
from diffusion_jax.data.sources import latents, toys
from diffusion_jax.guidance import steering, thresholding
from diffusion_jax.likelihood import bounds, dequantization, ode
from diffusion_jax.losses import times, weightings
from diffusion_jax.networks.adm import ADM
from diffusion_jax.networks.conditions import NO_RATES, Conditions
from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.edm import DhariwalUNet, SongUNet
from diffusion_jax.networks.encoder_unet import EncoderUNet
from diffusion_jax.networks.functional import embedder, fourier_features, init_apply
from diffusion_jax.networks.mlp import MLP
from diffusion_jax.networks.ncsnpp import NCSNpp
from diffusion_jax.networks.refinenet import NCSN, NCSNv2
from diffusion_jax.networks.unet import UNet
from diffusion_jax.run import requests
from diffusion_jax.solvers import grids
from diffusion_jax.systems import augmentation
from diffusion_jax.training import optimizers
from diffusion_jax.training.writers import JsonlWriter, TensorBoardWriter, WandbWriter, Writers
from diffusion_jax.types import Cond, Params, Process, System, needs_of

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
    "timestep": parameterizations.timestep_label,
    "log_sigma": parameterizations.log_sigma_label,
    "log_sigma_unit": parameterizations.log_sigma_unit_label,
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
NETWORKS = {
    "mlp": MLP,
    "unet": UNet,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
    "ncsnpp": NCSNpp,
    "adm": ADM,
    "song_unet": SongUNet,
    "dhariwal_unet": DhariwalUNet,
    "dit": DiT,
    "encoder_unet": EncoderUNet,
    **text_to_image.NETWORKS,
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
GUIDANCE = {
    "none": steering.none,
    "classifier_free": steering.classifier_free,
    "classifier": guidance.classifier,
    "autoguidance": guidance.autoguidance,
    "instruct_pix2pix": steering.instruct_pix2pix,
}
THRESHOLDS = {"none": lambda: lambda D: D, "static": thresholding.static, "dynamic": thresholding.dynamic}
LIKELIHOODS = {"none": lambda: None, "ode": ode.ode_likelihood, "bound": bounds.bound_likelihood}


def data_shape(config: ConfigDict) -> tuple[int, ...]:
    """The shape of one example: [size, size, channels], or [2] for points in the plane."""
    if config.data.get("name") == "toy":
        return (2,)
    if config.data.get("name") == "latents":
        with refusal("config.data"):
            return latents.read_header(config.data.get("path", ""), config.data.split).shape
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


def conditions(config: ConfigDict) -> Conditions:
    """The conditions that config.network asks for, or that the system gives it others for."""
    if config.system.name == "text_to_image":
        return text_to_image.conditions(config)
    if config.network.name in text_to_image.NETWORKS:
        return text_to_image.network_conditions(config, data_shape(config)[0])
    numbers = ("num_classes", "vector_dim", "token_dim", "vocabulary", "max_tokens")
    image, low_res = config.network.get("image_channels", 0), config.network.get("low_res", 0)
    size = (low_res, low_res) if low_res else data_shape(config)[:2]
    with refusal("config.network"):
        return Conditions(
            **{name: config.network.get(name, 0) for name in numbers},
            image_shape=(*size, image) if image else (),
        )


def _diffusion(
    config: ConfigDict,
    cond_dropout: float = 0.0,
    cond_dropouts: Mapping[str, float] = NO_RATES,
    augment: float = 0.0,
) -> systems.Diffusion:
    process = construct(PROCESSES, "process", config.process)
    param = parameterization(config)
    weighting = construct(WEIGHTINGS, "weighting", config.weighting)
    steps = {} if process.num_steps is None else {"num_steps": process.num_steps}
    draw_times, resampler = construct(TIMES, "times", config.times, weighting=weighting, **steps), None
    if isinstance(draw_times, times.Resampler):
        resampler = draw_times
        draw_times = resampler.draw(resampler.init())
    grid = construct(GRIDS, "sampling.grid", config.sampling.grid)
    init, apply = network(config)
    read = conditions(config)
    likelihood = _likelihood(config, process, grid)
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
    solver = construct(SOLVERS, "solver", config.solver, **total)
    guide = construct(GUIDANCE, "guidance", config.guidance, config=config, trained=trained)
    learned = needs_of(loss).learned_variance
    drawn, weights = jax.jit(draw_times, static_argnums=2)(process, jax.random.key(0), 4096)
    visited = fits.sampling_times(config, process, grid)
    fits.check_training(config, process=process, param=param, loss=loss, drawn=np.asarray(drawn), weights=weights)
    fits.check_sampling(config, process=process, param=param, solver=solver, guidance=guide, times=visited)
    fits.check_likelihood(config, process=process, param=param, likelihood=likelihood)
    parts = {"solver": solver, "evaluation.likelihood": likelihood, "times": resampler}
    fits.check_outputs(config, data_shape(config), init, apply, read, parts, learned_variance=learned)
    fits.check_guidance(config, guide, read, cond_dropout, cond_dropouts)
    fits.check_augmentation(config, augment)
    return systems.Diffusion(
        init_network=init,
        apply=apply,
        process=process,
        param=param,
        loss_fn=loss,
        network_conditions=read,
        cond_dropout=cond_dropout,
        cond_dropouts=cond_dropouts,
        augment=functools.partial(augmentation.augment, probability=augment) if augment else None,
        embed=embedding(config) if read.shapes else lambda params, cond: cond,
        guidance=guide,
        threshold=construct(THRESHOLDS, "sampling.threshold", config.sampling.threshold),
        solver=solver,
        grid=grid,
        steps=config.sampling.steps,
        shape=data_shape(config),
        batch_size=config.sampling.batch_size,
        denoise=config.sampling.denoise,
        likelihood=likelihood,
        learned_variance=learned,
        resampler=resampler,
    )


def _vdm(config: ConfigDict) -> systems.VDM:
    """Of the sections loss, weighting and times, which say how other systems are trained, nothing is used."""
    if config.data.get("dequantize", False):
        raise ConfigError("config.data.dequantize=True: the bound of VDM is that of grey levels; it must be false")
    given = dict(diffusion=_diffusion(config), levels=config.data.get("levels", 256))
    return construct({"vdm": systems.VDM}, "system", config.system, **given)


def _variational_dequantization(config: ConfigDict) -> systems.VariationalDequantization:
    """Of the sections that describe a diffusion model only `network`, that of the flow, is used."""
    run = trained(config.system.get("model", ""), "config.system.model")
    if not isinstance(run.system, systems.Diffusion):
        raise ConfigError(
            f"config.system.model={config.system.model!r} must be a run of config.system.name='diffusion', not "
            f"{run.config.system.name!r}"
        )
    levels = config.data.get("levels", 256)
    for field, here, there in (
        ("the shape of an example", data_shape(config), data_shape(run.config)),
        ("config.data.levels", levels, run.config.data.get("levels", 256)),
    ):
        if here != there:
            raise ConfigError(f"config.system.model={config.system.model!r}: {field} is {there} there and {here} here")
    if config.data.get("dequantize", False) or not run.config.data.get("dequantize", False):
        raise ConfigError(
            "config.data.dequantize must be false here, where the noise is learned, and true in the run of "
            f"config.system.model={config.system.model!r}, whose density is one of dequantized data"
        )
    if config.evaluation.likelihood.name not in ("none", "ode"):
        raise ConfigError(
            f"config.evaluation.likelihood.name={config.evaluation.likelihood.name!r} must be 'ode' or 'none': a bound "
            "of grey levels needs no dequantization"
        )
    init, apply = network(config, channels=2 * data_shape(config)[-1])
    figures = construct(LIKELIHOODS, "evaluation.likelihood", config.evaluation.likelihood, levels=levels)
    given = dict(init_network=init, apply=apply, diffusion=run.system, levels=levels, likelihood=figures)
    section = {key: value for key, value in config.system.items() if key != "model"}
    return construct({config.system.name: systems.VariationalDequantization}, "system", section, **given)


def _noisy_classifier(config: ConfigDict) -> systems.NoisyClassifier:
    """Of the sections that describe a diffusion model `process`, `times`, `network` and what `parameterization` tells
    the network are used."""
    process = construct(PROCESSES, "process", config.process)
    param = parameterization(config)
    steps = {} if process.num_steps is None else {"num_steps": process.num_steps}
    draw_times = construct(TIMES, "times", config.times, **steps)
    if isinstance(draw_times, times.Resampler):
        raise ConfigError(f"config.times.name={config.times.name!r} follows the bound, which a classifier has not")
    drawn, weights = jax.jit(draw_times, static_argnums=2)(process, jax.random.key(0), 4096)
    fits.check_drawn(config, process, param, np.asarray(drawn), np.asarray(weights))
    if config.network.name != "encoder_unet":
        raise ConfigError(f"config.network.name={config.network.name!r} must be 'encoder_unet' for a classifier")
    init, apply = network(config)
    given = dict(init_network=init, apply=apply, process=process, param=param, times=draw_times)
    return systems.NoisyClassifier(num_classes=config.network.get("num_classes", 0), **given)


def _conditional_diffusion(config: ConfigDict) -> systems.Diffusion:
    return construct({"diffusion": functools.partial(_diffusion, config)}, "system", config.system)


SYSTEMS = {
    "diffusion": _conditional_diffusion,
    "noisy_classifier": _noisy_classifier,
    "vdm": _vdm,
    "variational_dequantization": _variational_dequantization,
}
SYSTEMS |= dict.fromkeys(
    ("autoencoder_kl", "vqgan"), lambda config: first_stage.autoencoder(config, data_shape(config))
)
SYSTEMS["latent_diffusion"] = lambda config: first_stage.latent_diffusion(config, trained, system)
SYSTEMS["text_to_image"] = lambda config: text_to_image.text_to_image(config, system)
# What a fresh start takes from other runs, by system.
PRETRAINED = {
    "autoencoder_kl": first_stage.pretrained,
    "vqgan": first_stage.pretrained,
    "latent_diffusion": lambda config: first_stage.pretrained_first_stage(config, trained),
    "text_to_image": text_to_image.pretrained,
    "variational_dequantization": lambda config: {
        "frozen": {"diffusion": trained(config.system.model, "config.system.model").load()}
    },
}


def trained(path: str, field: str) -> Trained:
    """The trained run in the work directory `path`, which `field` of a config names. Raises ConfigError."""
    return open_run(path, field, system)


def pretrained(config: ConfigDict) -> dict[str, Any]:
    """Parameters that a fresh start of the system takes from other runs, such as {"frozen": {"first_stage": ...}}."""
    return PRETRAINED.get(config.system.name, lambda config: {})(config)


def parameterization(config: ConfigDict) -> parameterizations.Parameterization:
    """The parameterization, its `label` looked up by name; `level` counts the levels of config.times."""
    section = dict(config.parameterization)
    if "label" in section:
        labels = dict(LABELS)
        if config.times.name == "levels":
            labels["level"] = parameterizations.level_label(config.times.num_levels)
        section["label"] = lookup(labels, "parameterization.label", section["label"])
    return construct(PARAMETERIZATIONS, "parameterization", section)


def network(config: ConfigDict, channels: int | None = None) -> tuple[Callable, Callable]:
    """(init, apply) of the network, which is told the data's shape where it asks for it.

    `channels` are those that it takes and gives, in the place of the data's.
    `fourier` in its section names the exponents of `fourier_features`, which any network may have before it.
    """
    make, exponents = _network(config, channels)
    try:
        init, apply = init_apply(make, config.training.dtype)
        return init, fourier_features(apply, exponents) if exponents else apply
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.training.dtype: {error}") from error


def embedding(config: ConfigDict, channels: int | None = None) -> Callable[[Params, Cond], Any]:
    """How the network reads conditions, see `functional.embedder`."""
    return embedder(_network(config, channels)[0], config.training.dtype)


def _network(config: ConfigDict, channels: int | None) -> tuple[Callable, tuple[int, ...]]:
    """The constructor of the network, given random numbers, and the exponents of its Fourier features."""
    shape, section = data_shape(config), config.network.to_dict()
    shape = (*shape[:-1], channels or shape[-1])
    exponents = section.pop("fourier", ())
    check_type("network.fourier", exponents, "tuple")
    if not all(isinstance(n, int) for n in exponents):
        raise ConfigError(f"config.network.fourier={exponents!r} must hold integers, the exponents n of 2^n pi x")
    features = (*shape[:-1], shape[-1] * (1 + 2 * len(exponents)))
    given = {"shape": features, **({"out_channels": shape[-1]} if exponents or channels else {})}
    if len(shape) == 3:
        given |= {"image_size": shape[0], "in_channels": features[-1]}

    return lambda rngs: construct(NETWORKS, "network", section, rngs=rngs, **given), exponents


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
    name, read = section["name"], conditions(config)
    tokenize: Callable | None = tokenizer(config)
    low_res = config.network.get("low_res", 0)
    derive = averaged(low_res) if low_res else None
    if config.system.name == "text_to_image":
        tokenize, derive = text_to_image.tokenizer(config), text_to_image.derived(config)
    loaded = construct(
        {name: functools.partial(data.load, name=name)},
        "data",
        section,
        evaluation=evaluation,
        max_tokens=read.max_tokens,
        tokenize=tokenize,
        shapes={kind: entry.shape for kind, entry in read.shapes.items() if kind in images.CONDITIONS},
        derive=derive,
    )
    if loaded.shape != data_shape(config):
        raise ConfigError(f"config.data: {name} holds examples of {loaded.shape}, not {data_shape(config)}")
    if config.system.name in ("vdm", "variational_dequantization"):
        try:
            dequantization.check_levels(data.arrays(loaded, 256)["x"], config.data.get("levels", 256))
        except ValueError as error:
            raise ConfigError(f"config.data (for config.system.name={config.system.name!r}): {error}") from error
    if config.evaluation.likelihood.name != "none" and data_levels(config):
        try:
            dequantization.check_levels(data.arrays(loaded, 256)["x"], data_levels(config))
        except ValueError as error:
            raise ConfigError(f"config.evaluation.likelihood ({config.evaluation.likelihood.name}): {error}") from error
    example = loaded.batch(np.zeros(1, np.int64))
    for condition, entry in read.shapes.items():
        found = np.shape(example.get(condition))[1:]
        if condition != "label" and (condition not in example or found != entry.shape):
            raise ConfigError(
                f"config.network needs the condition {condition!r} of shape {entry.shape}, which config.data.name="
                f"{name!r} {'gives as ' + str(found) if condition in example else 'does not give'}"
            )
    num_classes = read.num_classes
    if (num_classes and loaded.num_classes > num_classes) or (num_classes and not loaded.num_classes):
        raise ConfigError(
            f"config.network.num_classes={num_classes} must be 0 or at least the {loaded.num_classes} classes of {name}"
        )
    return loaded


def tokenizer(config: ConfigDict) -> tokenization.Tokenizer | None:
    """What makes ids of captions for a network that learns to read, of config.data.tokenizer; None for bytes.

    Raises ConfigError: there is none in that folder, or its ids are not those of the network.
    """
    path, read = config.data.get("tokenizer", ""), conditions(config)
    if not path:
        return None
    given = f"config.data.tokenizer={path!r}"
    if config.system.name == "text_to_image" or not read.vocabulary:
        raise ConfigError(
            f"{given} is for networks with a vocabulary of their own; a text-to-image model has config.system.tokenizer"
        )
    with refusal(given):
        found = tokenization.load_for_network(path, read.max_tokens)
    if found.size > read.vocabulary:
        raise ConfigError(f"{given} has {found.size} tokens, which config.network.vocabulary={read.vocabulary} is not")
    return found


def reconstructed(config: ConfigDict, num: int) -> dict[str, np.ndarray] | None:
    """What an autoencoder's samples are reconstructions of: `num` held-out images, some again if there are fewer.

    None for other systems, and with config.sampling.cond="prior".
    """
    if config.system.name not in first_stage.NETWORKS or config.sampling.cond == "prior":
        return None
    found = source(config, evaluation=True)
    return requests.going_round({"x": data.shuffled(found, num)["x"]}, num)


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


def plane(config: ConfigDict, built: systems.Diffusion, params: Params) -> dict[str, Callable]:
    """What a picture of points in the plane shows beside them: the learned score at a small time, the exact density."""
    t = jnp.float32(0.1)
    D = built.denoiser(params, None)
    pictures = {"score": jax.jit(lambda x: parameterizations.score(built.process, D, x, t))}
    if config.data.get("kind", "gaussian_mixture") == "gaussian_mixture":
        pictures["log_density"] = toys.mixture_log_density
    return pictures


def _likelihood(config: ConfigDict, process: Process, grid: Callable) -> ode.Likelihood | None:
    """The metrics of config.evaluation.likelihood. Refuses a number of steps that the grid does not have."""
    section = config.evaluation.likelihood
    built = construct(LIKELIHOODS, "evaluation.likelihood", section, grid=grid, levels=data_levels(config))
    steps = section.get("steps", 0) or process.num_steps
    if section.name == "bound" and steps:
        try:
            grid(process, steps)
        except ValueError as error:
            raise ConfigError(f"config.evaluation.likelihood.steps={section.get('steps', 0)}: {error}") from error
    return built
