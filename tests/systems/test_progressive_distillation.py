"""Progressive distillation as a system: its stages, the swap of teachers, the fixed point, resuming, and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import build, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses.distillation import progressive_target
from diffusion_jax.processes import TruncatedCosine
from diffusion_jax.run import train
from diffusion_jax.run.job import prepare
from diffusion_jax.solvers import ddim
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import System, Train
from tests.oracles import Gaussian
from tests.runs import final_state, resumed, toy

STAGES = (2, 2, 4)


def teacher_config(**changes):
    config = toy(**{"network__hidden": 8, **changes})
    config.process = ConfigDict(dict(name="truncated_cosine"))
    config.parameterization = ConfigDict(dict(name="edm", sigma_data=0.5))
    config.optimizer = ConfigDict(dict(name="adam", learning_rate=1e-3))
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    train.train(teacher_config(), directory)
    return directory


def config_of(run, **changes):
    config = teacher_config(**changes)
    config.system = ConfigDict(dict(name="progressive_distillation", teacher=str(run), teacher_steps=16, stages=STAGES))
    config.times = ConfigDict(dict(name="uniform"))
    config.weighting = ConfigDict(dict(name="truncated_snr"))
    config.sampling.grid = ConfigDict(dict(name="uniform", t_min=0.0))
    config.sampling.steps = 2
    config.training.num_steps = 8
    config.ema.rates = ()
    config.optimizer = ConfigDict(dict(name="adam", learning_rate=1e-3, schedule="sawtooth", stages=STAGES))
    return config


@pytest.fixture(scope="module")
def system(run):
    return build.system(config_of(run))


def random_params(system, seed=0):
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(system.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.float32(0.3 * rng.standard_normal(x.shape)), shapes)


def test_is_a_system(system):
    assert isinstance(system, System)


def test_the_steps_of_the_student_halve_in_each_stage(system):
    assert [int(system.student_steps(jnp.int32(k))) for k in range(10)] == [8, 8, 4, 4, 2, 2, 2, 2, 2, 2]


def test_the_student_becomes_the_teacher_after_every_stage_but_the_last(system):
    params, advance = random_params(system), jax.jit(system.advance)
    for step in range(8):
        after = advance(params, Train(jnp.int32(step), 8), {})
        same = params["network"] if step in (1, 3) else params["frozen"]["teacher"]["network"]
        jax.tree.map(np.testing.assert_array_equal, after["frozen"]["teacher"]["network"], same)
        jax.tree.map(np.testing.assert_array_equal, after["network"], params["network"])


def test_the_loss_is_the_distance_to_two_steps_of_the_teacher(system):
    """Written with the sampler: the student's step from x_t arrives where two steps of the teacher do."""
    params, key, step = random_params(system), jax.random.key(1), Train(jnp.int32(2), 8)
    x_0 = jax.random.normal(jax.random.key(2), (6, 2))
    found, metrics = system.loss(params, key, {"x": x_0}, step)
    assert metrics["student_steps"] == 4
    time_key, noise_key, _ = jax.random.split(key, 3)
    place = jax.random.randint(time_key, (6,), 0, 4)
    eps = jax.random.normal(noise_key, (6, 2))
    student, teacher = (
        system.denoiser({"network": p}) for p in (params["network"], params["frozen"]["teacher"]["network"])
    )
    process, move = system.process, system.solver.step
    for row in range(6):
        t, s = jnp.float32((place[row] + 1) / 4), jnp.float32(place[row] / 4)
        x_t = process.alpha(t) * x_0[row : row + 1] + process.sigma(t) * eps[row : row + 1]
        middle, _ = move(process, teacher, None, x_t, t, (t + s) / 2, ())
        x_s, _ = move(process, teacher, None, middle, (t + s) / 2, s, ())
        ours, _ = move(process, student, None, x_t, t, s, ())
        # The error in x_s is that in x_0 times a factor.
        factor = process.alpha(s) - process.sigma(s) / process.sigma(t) * process.alpha(t)
        weight = jnp.maximum((process.alpha(t) / process.sigma(t)) ** 2, 1)
        np.testing.assert_allclose(found[row], weight * jnp.mean(((ours - x_s) / factor) ** 2), rtol=2e-2)


def test_no_gradient_reaches_the_teacher(system):
    params = random_params(system)
    batch, step = {"x": jnp.ones((4, 2))}, Train(jnp.int32(0), 8)
    gradient = jax.grad(lambda p: system.loss(p, jax.random.key(0), batch, step)[0].mean())(params)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradient["frozen"]))
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient["network"]))


def test_the_first_teacher_and_student_are_copies_of_the_run(run, tmp_path):
    config = config_of(run)
    config.training.num_steps, config.sampling.steps = 2, 8
    config.optimizer.learning_rate = 1e-30
    train.train(config, tmp_path)
    (_, found, _), (_, given, _) = final_state(config, tmp_path), final_state(teacher_config(), run)
    averaged = {path.split("['0.999']")[1]: x for path, x in given.items() if path.startswith(".ema")}
    assert averaged
    for name, value in averaged.items():
        np.testing.assert_allclose(found[f".params['frozen']['teacher']{name}"], value, atol=1e-6)
        np.testing.assert_allclose(found[f".params{name}"], value, atol=1e-6)


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_interrupted(run, tmp_path):
    """The first part ends with a stage, where the teacher was replaced and the learning rate starts again."""
    resumed(config_of(run), tmp_path, 4, sampling__steps=4)


def test_the_learning_rate_falls_in_every_stage(run):
    rate = prepare(config_of(run)).learning_rate
    np.testing.assert_allclose(
        [float(rate(k)) for k in range(8)], 1e-3 * np.array([1, 0.5, 1, 0.5, 1, 0.75, 0.5, 0.25])
    )


@functools.cache
def linear(steps):
    """A denoiser of N(0, 1/4) in one dimension whose slope at each of the times i / steps is a parameter."""
    grid = jnp.arange(1, steps + 1) / steps
    return grid, lambda slopes: lambda x, t: slopes[jnp.argmin(jnp.abs(grid[:, None] - t), axis=0)][:, None] * x


def test_a_trained_fixed_point_makes_the_samples_of_its_teacher():
    """Gradient descent on the loss of linear students, 8 -> 4 -> 2 -> 1, arrives at the slope of 8 steps of DDIM."""
    process, data = TruncatedCosine(), Gaussian(mean=jnp.zeros(1), covariance=jnp.full((1, 1), 0.25))
    D = exact = data.denoiser(process)
    for steps in (4, 2, 1):
        grid, make = linear(steps)
        x = jnp.linspace(-2, 2, 8)[:, None]
        xs, ts = jnp.tile(x, (steps, 1)), jnp.repeat(grid, 8)
        target = progressive_target(process, D, xs, ts, ts - 1 / steps)

        def loss(slopes, make=make, xs=xs, ts=ts, target=target):
            return jnp.mean((make(slopes)(xs, ts) - target) ** 2)

        def descend(slopes, _, loss=loss, steps=steps):
            return slopes - 0.1 * steps * jax.grad(loss)(slopes), None

        slopes, _ = jax.lax.scan(descend, jnp.zeros(steps), None, length=200)
        D = lambda x, t, make=make, slopes=slopes: make(slopes)(x, jnp.broadcast_to(t, x.shape[:1]))
    one, eight = (
        sample(ddim(), process, D, jax.random.key(0), jnp.ones((1, 1)), jnp.linspace(1.0, 0.0, n + 1))
        for D, n in ((D, 1), (exact, 8))
    )
    np.testing.assert_allclose(one, eight, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("training.num_steps", 5), r"config\.training\.num_steps=5 must be the end of a stage, among 2, 4, 8"),
        (("sampling.steps", 4), r"config\.sampling\.steps=4 must be 2"),
        (("solver", dict(name="heun")), r"config\.solver\.name='heun'.*ddim"),
        (("sampling.grid", dict(name="uniform", t_min=1e-3)), r"config\.sampling\.grid"),
        (("optimizer.stages", (4, 4)), r"config\.optimizer\.stages=\(4, 4\) must be config\.system\.stages"),
        (("system.stages", (2, 2, 2, 2, 2)), r"teacher_steps is 16; it must be a multiple of 32"),
        (("system.stages", ()), r"stages is \(\)"),
        (("process", dict(name="cosine")), None),  # with the parameterization edm only sigma / alpha matters
        (("parameterization", dict(name="v", label="time")), r"config\.parameterization.*starts as a copy"),
        (("network.hidden", 16), r"same network"),
        (("data.kind", "checkerboard"), r"another data set: config\.data\.kind"),
    ],
)
def test_refusals(run, change, message):
    config = config_of(run)
    key, value = change
    *path, last = key.split(".")
    section = config
    for name in path:
        section = section[name]
    with config.unlocked(), section.ignore_type():
        section[last] = ConfigDict(value) if isinstance(value, dict) else value
    if message is None:
        with pytest.raises(ConfigError, match="alpha"):  # the cosine's alpha is 0 at t = 1
            build.system(config)
        return
    with pytest.raises(ConfigError, match=message):
        build.system(config)


def test_low_rank_updates_are_refused_as_the_teacher_is_replaced(run):
    config = config_of(run)
    config.lora.rank, config.lora.modules = 2, "linear"
    with pytest.raises(ConfigError, match=r"config\.lora\.rank=2"):
        prepare(config)


def test_a_run_of_another_model_is_refused(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    saved.write_config(tmp_path, config_of(run))
    with pytest.raises(ConfigError, match="must be the run of a denoiser"):
        build.system(config_of(tmp_path))
