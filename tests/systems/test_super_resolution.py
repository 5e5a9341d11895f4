"""Super-resolution with conditioning augmentation: exact laws of Gaussian pairs, and cascades of systems."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import parameterizations, processes, solvers, systems
from diffusion_jax.config import build, from_file
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses import denoising_loss, times, weightings
from diffusion_jax.networks.conditions import Conditions, structure
from diffusion_jax.solvers import grids
from diffusion_jax.systems.super_resolution import Base, SuperResolution, blurred
from diffusion_jax.types import System, Train

# x ~ N(0, 1) is one pixel, and its smaller image y = x + NOISE n. A base that errs makes N(SHIFT, 1 + NOISE^2).
NOISE, SHIFT = 0.5, 1.5
PROCESS = processes.Cosine()
PIXEL = (1, 1, 1)


def exact(params, x_t, c_noise, cond, key=None):
    """E[x given x_t and z] for z = alpha(s) y + sigma(s) eps, with the level s that the network reads."""
    t, s = jnp.broadcast_to(c_noise, len(x_t)), cond["vector"][:, 0]
    row = lambda v: v[:, None, None, None]
    a, b, c, d = PROCESS.alpha(t), PROCESS.sigma(t), PROCESS.alpha(s), PROCESS.sigma(s)
    of_z = c / ((c * NOISE) ** 2 + d**2)
    precision = 1 + (a / b) ** 2 + c * of_z
    return (row(a / b**2) * x_t + row(of_z) * cond["image"]) / row(precision)


def plain(shape=PIXEL, apply=exact, conditions=None, **changes) -> systems.Diffusion:
    if conditions is None:
        conditions = Conditions({"vector": structure((1,))}, image_shape=PIXEL)
    param = parameterizations.x0_prediction(label=parameterizations.unit_time_label)
    return systems.Diffusion(
        init_network=lambda key: {},
        apply=apply,
        process=PROCESS,
        param=param,
        loss_fn=denoising_loss(apply, param, PROCESS, weightings.simple(), times.uniform(1e-3, 0.999)),
        solver=solvers.heun(),
        grid=grids.uniform(t_min=1e-3, t_max=0.999),
        steps=40,
        shape=shape,
        modality="image",
        network_conditions=conditions,
        batch_size=4000,
        **changes,
    )


def base(mean: float, std: float) -> Base:
    """A base that makes N(mean, std^2)."""

    def apply(params, x_t, c_noise, cond, key=None):
        t = jnp.broadcast_to(c_noise, len(x_t))[:, None, None, None]
        a, b = PROCESS.alpha(t), PROCESS.sigma(t)
        return mean + a * std**2 * (x_t - a * mean) / ((a * std) ** 2 + b**2)

    return Base(plain(apply=apply, conditions=Conditions()), lambda: {"network": {}})


def model(**changes) -> SuperResolution:
    return SuperResolution(**{**dict(diffusion=plain(), levels=(0.0, 1.0)), **changes})


def moments(level: float) -> tuple[float, float]:
    """Mean and variance of samples on the base that errs, without its clipping."""
    c, d = float(PROCESS.alpha(jnp.float32(level))), float(PROCESS.sigma(jnp.float32(level)))
    of_z = c / ((c * NOISE) ** 2 + d**2)
    precision = 1 + c * of_z
    slope = of_z / precision
    return slope * c * SHIFT, slope**2 * (c**2 * (1 + NOISE**2) + d**2) + 1 / precision


def drawn(system: SuperResolution, image: jax.Array) -> np.ndarray:
    cond = {"image": image[:, None, None, None]}
    return system.sample({"network": {}}, jax.random.key(1), len(image), cond)["samples"].ravel()


def test_is_a_system():
    assert isinstance(model(), System)


@pytest.mark.parametrize("level", [0.0, 0.4, 0.999])
def test_noise_on_the_smaller_image_hides_the_faults_of_its_model(level):
    """The law of samples is the exact one at each level, from that of the smaller images to the unconditional one."""
    y = SHIFT + np.sqrt(1 + NOISE**2) * jax.random.normal(jax.random.key(0), (4000,))
    x = drawn(model(level=level), y)
    mean, variance = moments(level)
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / len(x))
    assert abs(x.var() / variance - 1) < 4 * np.sqrt(2 / len(x))


def test_the_fault_that_remains_falls_with_the_level():
    means, variances = zip(*(moments(level) for level in (0.0, 0.2, 0.4, 0.6, 0.8, 0.999)), strict=True)
    divergence = [(v + m**2 - 1 - np.log(v)) / 2 for m, v in zip(means, variances, strict=True)]
    assert (np.diff(divergence) < 0).all()
    assert divergence[-1] < 1e-4


def test_a_network_that_reads_another_level_draws_another_law():
    reads = lambda params, x, t, cond, key=None: exact(params, x, t, {**cond, "vector": 0 * cond["vector"]})
    y = SHIFT + np.sqrt(1 + NOISE**2) * jax.random.normal(jax.random.key(0), (4000,))
    x = drawn(model(diffusion=plain(apply=reads), level=0.6), y)
    assert abs(x.mean() - moments(0.6)[0]) > 0.1


def test_the_mean_of_draws_is_the_linear_regression_and_a_draw_has_twice_its_error():
    x, noise = jax.random.normal(jax.random.key(0), (2, 4000))
    y = x + NOISE * noise
    draws, regression = drawn(model(), y), np.asarray(y) / (1 + NOISE**2)
    ratio = np.mean((draws - np.asarray(x)) ** 2) / np.mean((regression - np.asarray(x)) ** 2)
    assert abs(ratio - 2) < 0.15  # the standard error of each mean square is 0.02 of it
    few = jnp.tile(jnp.linspace(-2, 2, 5), 800)
    means = drawn(model(), few).reshape(800, 5).mean(0)
    error = NOISE / np.sqrt(1 + NOISE**2) / np.sqrt(800)
    assert np.abs(means - np.linspace(-2, 2, 5) / (1 + NOISE**2)).max() < 4 * error


def test_blur_is_a_gaussian_of_three_pixels():
    point = jnp.zeros((3, 5, 5, 1)).at[:, 2, 2].set(1)
    spread = np.asarray(blurred(point, jnp.array([0.0, 0.6, 100.0])))[..., 0]
    np.testing.assert_allclose(spread[0], point[0, ..., 0], atol=1e-6)
    weights = np.exp(-0.5 * np.array([1, 0, 1]) / 0.6**2)
    weights /= weights.sum()
    np.testing.assert_allclose(spread[1, 1:4, 1:4], np.outer(weights, weights), atol=1e-6)
    np.testing.assert_allclose(spread[2, 1:4, 1:4], np.full((3, 3), 1 / 9), atol=1e-3)
    np.testing.assert_allclose(spread.sum((1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(blurred(jnp.full((1, 4, 4, 2), 0.3), jnp.ones(1)), 0.3, atol=1e-6)


def test_training_blurs_half_of_the_rows_and_sampling_none():
    seen = {}

    def loss(params, key, x, cond, **options):
        seen.update(cond)
        return jnp.zeros(len(x)), {}

    shape = (3, 3, 1)
    conditions = Conditions(image_shape=shape)
    diffusion = dataclasses.replace(plain(shape=shape, conditions=conditions), loss_fn=loss)
    system = SuperResolution(diffusion=diffusion, blur=(0.4, 0.8))
    batch = {"x": jnp.zeros((1000, *shape)), "image": jnp.zeros((1000, *shape)).at[:, 1, 1].set(1)}
    system.loss({"network": {}}, jax.random.key(0), batch, Train(jnp.int32(0), 1))
    centre = np.asarray(seen["image"][:, 1, 1, 0])
    assert abs((centre < 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)
    of_std = lambda std: float((1 / (1 + 2 * np.exp(-0.5 / std**2))) ** 2)
    least, most = centre[centre < 1].min(), centre[centre < 1].max()
    assert of_std(0.8) <= least + 1e-6 and most <= of_std(0.4) + 1e-6
    assert least < of_std(0.77) and most > of_std(0.43)
    system.loss({"network": {}}, jax.random.key(0), batch, None)
    np.testing.assert_array_equal(seen["image"], batch["image"])


def test_training_passes_the_level_of_the_noise_it_adds():
    seen = {}

    def loss(params, key, x, cond, **options):
        seen.update(cond)
        return jnp.zeros(len(x)), {}

    system = model(diffusion=dataclasses.replace(plain(), loss_fn=loss), levels=(0.2, 0.7))
    batch = {"x": jnp.zeros((4000, *PIXEL)), "image": jnp.full((4000, *PIXEL), 0.5)}
    system.loss({"network": {}}, jax.random.key(0), batch, Train(jnp.int32(0), jnp.float32(0)))
    s, z = seen["vector"][:, 0], seen["image"].ravel()
    assert 0.2 <= s.min() < 0.21
    assert 0.69 < s.max() <= 0.7
    eps = (z - PROCESS.alpha(s) * 0.5) / PROCESS.sigma(s)
    assert abs(eps.mean()) < 4 / np.sqrt(4000)
    assert abs(eps.var() - 1) < 4 * np.sqrt(2 / 4000)
    system.loss({"network": {}}, jax.random.key(0), batch, None)
    np.testing.assert_array_equal(seen["vector"], 0)
    np.testing.assert_array_equal(seen["image"], batch["image"])


def test_a_cascade_enlarges_the_samples_of_its_base():
    """Samples are those of the stage alone, under the samples of the base alone, in [-1, 1]; the base's law reaches
    them."""
    below = base(0.0, 0.8)
    cascade, alone = model(base=below, level=0.3), model(level=0.3)
    key, ids = jax.random.key(5), jnp.arange(50)
    small = below.system.sample({"network": {}}, key, 50)["samples"]
    draw = functools.partial(alone.draw, {"network": {}}, jax.random.fold_in(key, 1), ids)
    expected = draw({"image": jnp.clip(small, -1, 1)}, alone.numbers())["samples"]
    x = cascade.sample({"network": {}}, key, 50)["samples"]
    np.testing.assert_allclose(x, expected, atol=1e-5)
    assert np.corrcoef(small.ravel(), x.ravel())[0, 1] > 0.3
    few = dataclasses.replace(cascade, diffusion=dataclasses.replace(cascade.diffusion, batch_size=7))
    np.testing.assert_allclose(few.sample({"network": {}}, key, 20)["samples"], x[:20], atol=1e-5)
    assert cascade.evaluations() == 2 * alone.evaluations()
    assert not cascade.conditions
    assert set(alone.conditions) == set(alone.batch) - {"x"} == {"image"}


def test_the_noise_of_stages_is_independent():
    """Base and stage that copy their priors have no correlation, in a row and between rows."""
    noisy = lambda params, x_t, t, cond, key=None: x_t
    below = Base(plain(apply=noisy, conditions=Conditions()), lambda: {"network": {}})
    key, ids, params = jax.random.key(0), jnp.arange(2000), {"network": {}}
    small = below.system.draw(params, key, ids, None, None)["samples"].ravel()
    x = model(diffusion=plain(apply=noisy), base=below).sample(params, key, 2000)["samples"].ravel()
    for shift in (0, 1, -1):
        assert abs(np.corrcoef(small, np.roll(x, shift))[0, 1]) < 4 / np.sqrt(2000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(levels=(0.5, 0.2)), "levels is"),
        (dict(levels=(0.0, 0.3), level=0.4), "level is"),
        (dict(levels=(0.0, 0.0)), "has no level"),
        (dict(blur=(0.6, 0.4)), "blur is"),
        (dict(diffusion=plain(conditions=Conditions(image_shape=PIXEL))), "needs a network that reads one number"),
        (dict(diffusion=plain(conditions=Conditions({"vector": structure((1,))}))), "no condition 'image'"),
        (dict(base=Base(plain(shape=(2, 2, 1)), dict)), "enlarges images of"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_a_process_that_grows_is_refused():
    config = from_file("configs/sr3.py")
    config.system.update(levels=(0.0, 0.5))
    config.network.vector_dim = 1
    build.system(config)
    config.process = ConfigDict(dict(name="edm"))
    with pytest.raises(ConfigError, match="needs a variance-preserving process"):
        build.system(config)
    config = from_file("configs/sr3.py")
    config.data = ConfigDict(dict(name="toy", kind="rings"))
    with pytest.raises(ConfigError, match="enlarges images"):
        build.system(config)
