"""Reflow: pairs of noise and sample, the loss on them, what straight paths are worth, and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import parameterizations, solvers
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data.sources.pairs import noise_of, open_pairs
from diffusion_jax.losses import denoising_loss, weightings
from diffusion_jax.processes import RectifiedFlow
from diffusion_jax.run import sample as sampling
from diffusion_jax.run import train
from diffusion_jax.run.job import prepare
from diffusion_jax.run.parameters import load_params
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import Spec, Train
from tests.oracles import Gaussian, Mixture
from tests.runs import resumed, toy

FLOW = RectifiedFlow()


def flow_config(**changes):
    config = toy(**{"network__hidden": 8, **changes})
    config.process = ConfigDict(dict(name="rectified_flow"))
    config.parameterization = ConfigDict(dict(name="velocity", label="time"))
    config.weighting = ConfigDict(dict(name="velocity_matching"))
    config.solver = ConfigDict(dict(name="heun"))
    config.sampling.grid = ConfigDict(dict(name="uniform", t_min=0.0))
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a flow with 64 pairs of the seed 3."""
    directory = tmp_path_factory.mktemp("flow")
    train.train(flow_config(), directory)
    config = flow_config()
    config.sampling.update(dict(file="pairs", num_samples=64, seed=3))
    sampling.sample(config, directory)
    return directory


def config_of(run, **system):
    config = flow_config()
    config.system = ConfigDict(dict(name="reflow", teacher=str(run), **system))
    config.solver = ConfigDict(dict(name="euler"))
    return config


def test_the_noise_is_what_the_samples_started_from(run):
    """The teacher's sampler carries the noise of the pairs to their samples."""
    job = prepare(config_of(run))
    pairs = job.examples
    assert len(pairs) == 64
    batch = pairs.batch(np.array([5, 0, 63]))
    teacher = prepare(flow_config())
    params = load_params(teacher, run)[0]
    D = teacher.system.denoiser(params)
    times = teacher.system.grid(FLOW, teacher.system.steps)
    drawn = sample(solvers.heun(), FLOW, D, jax.random.key(0), jnp.asarray(batch["noise"]), times)
    np.testing.assert_allclose(drawn, batch["x"], atol=1e-4)
    np.testing.assert_array_equal(noise_of(3, np.array([63]), (2,))[0], batch["noise"][2])


@pytest.mark.slow
def test_training_starts_from_the_teacher_and_resumes_exactly(run, tmp_path):
    config = config_of(run)
    config.optimizer.schedule = "constant"
    resumed(config, tmp_path, 2)
    teacher = load_params(prepare(flow_config()), run)[0]["network"]
    student = load_params(prepare(config), tmp_path / "whole")[0]["network"]
    apart = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(teacher), jax.tree.leaves(student), strict=True)]
    assert 0 < max(apart) < 0.02, "a few small steps away"


def test_the_loss_is_that_of_its_pairs(run):
    """Held-out examples have no noise of their own, and it is drawn."""
    system = build.system(config_of(run))
    params = jax.tree.map(lambda x: x + 0.1, system.init(jax.random.key(0)))
    x, key, step = jnp.ones((4, 2)), jax.random.key(1), Train(jnp.int32(0), 1)
    batches = [{"x": x, "noise": jnp.full((4, 2), noise)} for noise in (0.0, 1.0)]
    losses = [system.loss(params, key, batch, step)[0] for batch in batches]
    assert jnp.abs(losses[0] - losses[1]).min() > 1e-4
    assert system.evaluate(params, key, {"x": x})["loss"].shape == (4,)
    assert set(system.batch) == {"x", "noise"}


def test_the_loss_takes_the_noise_of_the_pairs():
    """Of x_0 = noise / 2 the velocity is x / (1 + t) exactly: no other noise gives a loss of zero."""
    noise = jax.random.normal(jax.random.key(0), (64, 1))
    apply = lambda params, x, c_noise, cond=None, *, key=None: x / (1 + c_noise[:, None])
    param = parameterizations.velocity_prediction(parameterizations.unit_time_label)
    times = lambda process, key, n: (jnp.linspace(0.01, 1, n), jnp.ones(n))
    loss = denoising_loss(apply, param, FLOW, weightings.velocity_matching(), times)
    key = jax.random.key(1)
    assert loss({}, key, noise / 2, eps=noise)[0].max() < 1e-8
    assert loss({}, key, noise / 2)[0].mean() > 0.1


MIXTURE = Mixture(weights=jnp.array([0.3, 0.7]), means=jnp.array([[-1.5], [1.0]]), variances=jnp.array([0.1, 0.2]))


@functools.cache
def reflowed():
    """Noise and its image under the flow of MIXTURE."""
    noise = jax.random.normal(jax.random.key(0), (200_000, 1))
    times = jnp.linspace(1, 0, 257)
    x_0 = jax.jit(lambda x: sample(solvers.heun(), FLOW, MIXTURE.denoiser(FLOW), jax.random.key(0), x, times))(noise)
    return np.asarray(noise[:, 0]), np.asarray(x_0[:, 0])


@pytest.mark.slow
def test_the_flow_is_the_monotone_map():
    """F_0^-1(Phi(z)): the samples of a flow in one dimension are in the order of their noise."""
    noise, x_0 = reflowed()
    order = np.argsort(noise)
    assert np.mean(np.diff(x_0[order]) < -1e-4) < 1e-3
    exact = jax.scipy.stats.norm.cdf(noise[:200])
    np.testing.assert_allclose(MIXTURE.cdf(FLOW, jnp.asarray(x_0[:200, None]), jnp.float32(0)), exact, atol=2e-3)


@pytest.mark.slow
def test_the_second_flow_is_straight_and_one_step_is_the_monotone_map():
    """E[noise - x_0 | x_t] of the pairs is their own difference, as monotone pairs do not cross: one step arrives.

    Independent pairs do cross, and one step of their flow goes to the mean.
    """
    noise, x_0 = reflowed()
    velocity = noise - x_0
    for t in (0.2, 0.5, 0.9):
        x_t = (1 - t) * x_0 + t * noise
        order = np.argsort(x_t)
        # The variance of the velocity among neighbours is what the regression cannot explain: the straightness S.
        within = velocity[order].reshape(-1, 100).var(1).mean()
        assert within < 1e-3 * velocity.var()
        crossed = np.random.default_rng(0).permutation(noise)
        order = np.argsort((1 - t) * x_0 + t * crossed)
        assert (crossed - x_0)[order].reshape(-1, 100).var(1).mean() > 0.1 * (crossed - x_0).var()
    # At t = 1 the velocity is a function of the noise, and the step x - v is x_0 itself, the monotone map.
    order = np.argsort(noise)
    step = noise[order] - velocity[order]
    np.testing.assert_allclose(step, np.sort(x_0), atol=1e-2)


def test_pairs_of_a_gaussian_flow_keep_the_marginals_at_no_higher_cost():
    data = Gaussian(mean=jnp.array([0.5, -1.0]), covariance=jnp.array([[0.5, 0.3], [0.3, 0.4]]))
    noise = jax.random.normal(jax.random.key(0), (20_000, 2))
    x_0 = data.flow(FLOW, noise, jnp.float32(1), jnp.float32(0))
    # The velocity of the pairs is linear in x_t, so that its flow is exact in one step.
    centred = x_0 - data.mean
    matrix = jnp.linalg.lstsq(noise, centred)[0]
    np.testing.assert_allclose(noise @ matrix, centred, atol=1e-3)
    np.testing.assert_allclose(matrix.T @ matrix, data.covariance, atol=1e-3)
    independent = jnp.mean(jnp.sum((noise[::-1] - x_0) ** 2, 1))
    assert jnp.mean(jnp.sum((noise - x_0) ** 2, 1)) < 0.75 * independent


def write(path, num=256, **changes):
    noise = noise_of(0, np.arange(num), (2,))
    arrays = {"samples": 0.5 * noise + 0.1, "seed": np.uint32(0)} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


WANTED = {"x": Spec((2,)), "noise": Spec((2,))}


def test_a_file_may_hold_the_noise_itself_and_classes(tmp_path):
    noise = np.random.default_rng(0).standard_normal((256, 2)).astype(np.float32)
    classes = np.arange(256) % 3
    path = write(tmp_path / "pairs.npz", samples=noise / 2, noise=noise, seed=None, cond=classes)
    source = open_pairs(path, {**WANTED, "label": Spec((), "int32", values=3)})
    batch = source.batch(np.array([7, 1]))
    np.testing.assert_array_equal(batch["noise"], noise[[7, 1]])
    np.testing.assert_array_equal(batch["label"], [1, 1])
    assert source.num_classes == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(seed=None), "neither a seed nor an array 'noise'"),
        (dict(seed=np.uint32(1)), "not the noise of its samples"),  # that of another seed
        (dict(samples=np.ones((256, 3), np.float32)), r"samples of \(3,\)"),
        (dict(samples=None), "no samples"),
        (dict(noise=np.ones((4, 2), np.float32)), "noise of"),
        (dict(samples=np.full((256, 2), np.nan, np.float32)), "not finite"),
    ],
)
def test_files_that_are_no_pairs_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_pairs(write(tmp_path / "pairs.npz", **changes), WANTED)


def test_classes_are_refused_where_there_are_none(tmp_path):
    path = write(tmp_path / "pairs.npz")
    with pytest.raises(ValueError, match="no classes"):
        open_pairs(path, {**WANTED, "label": Spec((), "int32", values=3)})
    with pytest.raises(ValueError, match="pairs have no condition tokens"):
        open_pairs(path, {**WANTED, "tokens": Spec((4,), "int32")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("process", dict(name="vp")), r"config\.process\.name='vp' must be 'rectified_flow'"),
        (("loss", dict(name="score_matching")), r"config\.loss\.name='score_matching'"),
        (("parameterization", dict(name="velocity", label="unit_time")), r"config\.parameterization"),
        (("network", dict(name="mlp", hidden=16)), r"same network"),
        (("data.kind", "checkerboard"), r"another data set: config\.data\.kind"),
    ],
)
def test_refusals(run, change, message):
    config = config_of(run)
    key, value = change
    *path, last = key.split(".")
    section = config[path[0]] if path else config
    section[last] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=message):
        build.system(config)


def test_missing_pairs_are_refused_with_the_command_that_draws_them(run, tmp_path):
    job = prepare(config_of(run, pairs=str(tmp_path / "none.npz")))
    with pytest.raises(ConfigError, match=r"config\.system\.pairs: .*none\.npz does not exist.*--mode=sample"):
        job.examples  # noqa: B018


def test_pairs_of_another_seed_are_refused(run, tmp_path):
    with np.load(run / "samples" / "pairs.npz") as arrays:
        assert arrays["seed"] == 3
        np.savez(tmp_path / "pairs.npz", samples=arrays["samples"], seed=np.uint32(0))
    with pytest.raises(ConfigError, match=r"config\.system\.pairs: .*not the noise of its samples"):
        prepare(config_of(run, pairs=str(tmp_path / "pairs.npz"))).examples  # noqa: B018
