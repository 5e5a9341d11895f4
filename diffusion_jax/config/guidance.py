"""From config.guidance to a `Guidance` that stands on another run: a noisy classifier, or a weaker model."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from diffusion_jax import systems
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.config.trained import Trained
from diffusion_jax.guidance import steering
from diffusion_jax.guidance.steering import Guidance
from diffusion_jax.run.workdir import changes


def classifier(
    config: ConfigDict,
    trained: Callable[[str, str], Trained],
    *,
    path: str = "",
    scale: float = 1.0,
    schedule: str = "constant",
) -> Guidance:
    """Guidance by the noisy classifier that was trained in the work directory `path`.

    Raises ConfigError if there is none, or if its process, its images or its classes are others than those of `config`.
    """
    run = trained(path, "config.guidance.path")
    if not isinstance(run.system, systems.NoisyClassifier):
        raise ConfigError(
            f"config.guidance.path={path!r} must be a run of config.system.name='noisy_classifier', not "
            f"{run.config.system.name!r}"
        )
    check_alike(config, run)
    here, there = config.network.get("num_classes", 0), run.config.network.num_classes
    if here and here != there:
        raise ConfigError(
            f"config.guidance.path={path!r}: the classifier has {there} classes, config.network.num_classes={here}"
        )
    classify = run.system
    return steering.classifier(classify.log_prob, run.load, classify.conditions, scale=scale, schedule=schedule)


def autoguidance(
    config: ConfigDict,
    trained: Callable[[str, str], Trained],
    *,
    path: str = "",
    ema_rate: float = 0.0,
    scale: float = 1.0,
    schedule: str = "constant",
    interval: tuple[float, ...] = (),
) -> Guidance:
    """Guidance by the weaker model in the work directory `path`, with its average of `ema_rate` (0: its own choice).

    `path` may be the run that is sampled itself, with an average of another rate. Raises ConfigError if there is no
    such run, or if its process, its images or its conditions are others than those of `config`.
    """
    run = trained(path, "config.guidance.path")
    if not isinstance(run.system, systems.Diffusion):
        raise ConfigError(
            f"config.guidance.path={path!r} must be a run of config.system.name='diffusion', not "
            f"{run.config.system.name!r}"
        )
    check_alike(config, run)
    for key in ("num_classes", "vector_dim", "token_dim", "vocabulary", "max_tokens", "image_channels"):
        here, there = (c.network.get(key, 0) for c in (config, run.config))
        if here != there:
            raise ConfigError(
                f"config.guidance.path={path!r}: config.network.{key} is {here} here and {there} there; a weaker model "
                "needs the same conditions"
            )
    if ema_rate:
        if str(ema_rate) not in map(str, run.config.ema.rates):
            raise ConfigError(
                f"config.guidance.ema_rate={ema_rate} is not among the averages of {path!r}, {run.config.ema.rates}"
            )
        run.config.sampling.ema_rate = ema_rate
    weak = run.system.unguided
    return steering.autoguidance(weak.denoiser, run.load, scale=scale, schedule=schedule, interval=interval)


def check_alike(config: ConfigDict, run: Trained) -> None:
    """Raises ConfigError unless the run's process, and the size and channels of its data, are those of `config`."""
    saved = run.config.to_dict()
    fields = {"process": config.process, "data": {key: config.data.get(key) for key in ("image_size", "channels")}}
    there = {"process": saved["process"], "data": {key: saved["data"].get(key) for key in ("image_size", "channels")}}
    differences = changes(ConfigDict(fields), there)
    if differences:
        raise ConfigError(
            f"{run.field}={str(run.directory)!r} was trained for another model: {'; '.join(differences)}. What steers "
            "a model must know the noise and the images that the model has"
        )
