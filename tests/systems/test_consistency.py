"""Consistency models as systems: fixed points, what is shared and frozen, and which configs are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import build, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses import consistency as losses
from diffusion_jax.losses import intervals, times
from diffusion_jax.networks.mlp import MLP
from diffusion_jax.processes import EDM, bcast
from diffusion_jax.run import job, parameters, train
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.base import stateless
from diffusion_jax.systems.consistency import Consistency
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import Coefficients, System, Train
from tests import runs

POINTS, VARIANCE = 10, 0.25


def exact_denoiser(x, t, cond=None):
    """D(x, t) = v x / (v + sigma^2) of data N(0, v)."""
    return bcast(VARIANCE / (VARIANCE + EDM().sigma(t) ** 2), x) * x


def exact_step(process, D, keys, x, t, s):
    """The flow of N(0, v), x_s = x_t sqrt((v + sigma_s^2) / (v + sigma_t^2))."""
    return bcast(jnp.sqrt((VARIANCE + process.sigma(s) ** 2) / (VARIANCE + process.sigma(t) ** 2)), x) * x


class Exact:
    """A teacher with the denoiser of the Gaussian instead of a network's."""

    def init(self, key):
        return {"unused": jnp.zeros(())}

    def denoiser(self, params, process, cond=None, scale=None):
        return exact_denoiser


def linear_system(step=None, **fields):
    """f(x, t) = slope(t) x with one slope per point of the grid, and 1 at the first: all that a Gaussian needs."""
    process, grid = EDM(), grids.karras()(EDM(), POINTS - 1)[::-1]

    def apply(params, x, c_noise, cond, *, key=None):
        slopes = jnp.append(1.0, params["slopes"])
        return slopes[jnp.abs(jnp.log(process.sigma(grid) / process.sigma(c_noise)[:, None])).argmin(1), None] * x

    return Consistency(
        init_network=lambda key: {"slopes": jnp.ones(POINTS - 1)},
        apply=apply,
        process=process,
        param=lambda process, t: Coefficients(jnp.ones_like(t), jnp.zeros_like(t), jnp.ones_like(t), t),
        solver=solvers.consistency(),
        grid=grids.karras(),
        steps=1,
        shape=(1,),
        times=times.karras(),
        schedule=intervals.fixed(points=POINTS),
        distance=losses.l2(),
        teacher=None if step is None else Exact(),
        step=step,
        **fields,
    )


def of_slopes(system, slopes):
    params = system.init(jax.random.key(0))
    return {**params, "network": {"slopes": jnp.asarray(slopes, jnp.float32)}}


def gradient(system, key, x_0):
    def mean(network, params):
        return system.loss({**params, "network": network}, key, {"x": x_0}, None)[0].mean()

    return jax.jit(lambda params: jax.value_and_grad(mean)(params["network"], params))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("step", "ratio", "close"), [(solvers.heun(), 1.2196, 1e-3), (solvers.euler(), 0.7304, 1e-3), (None, 0.7304, 0.03)]
)
def test_learns_the_product_of_the_slopes_of_its_pairs(step, ratio, close):
    """Newton's method, exact for one slope given the one before it, N - 1 times; see losses/test_consistency.py."""
    system, number = linear_system(step), 60_000 if step is None else 2000
    x_0 = VARIANCE**0.5 * jax.random.normal(jax.random.key(1), (number, 1))
    slope = gradient(system, jax.random.key(2), x_0)
    slopes = jnp.ones(POINTS - 1)
    at = lambda n, value: slope(of_slopes(system, slopes.at[n].set(value)))[1]["slopes"][n]
    for n in range(POINTS - 1):
        low, high = at(n, 0.0), at(n, 1.0)
        slopes = slopes.at[n].set(low / (low - high))
    sigma = np.float32([80.0, 0.002])
    exact = np.sqrt((VARIANCE + sigma[1] ** 2) / (VARIANCE + sigma[0] ** 2))
    np.testing.assert_allclose(slopes[-1] / exact, ratio, rtol=close)


def test_the_exact_function_with_exact_pairs_has_no_loss_and_no_gradient():
    system = linear_system(stateless(exact_step))
    sigma = system.process.sigma(grids.karras()(EDM(), POINTS - 1))[::-1]
    slopes = np.sqrt((VARIANCE + sigma[0] ** 2) / (VARIANCE + sigma[1:] ** 2))
    x_0 = VARIANCE**0.5 * jax.random.normal(jax.random.key(1), (1000, 1))
    measure = gradient(system, jax.random.key(2), x_0)
    loss, slope = measure(of_slopes(system, slopes))
    np.testing.assert_allclose(loss, 0, atol=1e-10)
    np.testing.assert_allclose(slope["slopes"], 0, atol=2e-5)
    assert jnp.abs(measure(of_slopes(system, 1.1 * slopes))[1]["slopes"]).max() > 1e-3


def config_of_run(**changes):
    """A tiny EDM of the digits."""
    config = runs.digits(**{"network__hidden": 16, "network__num_layers": 1, **changes})
    config.process = ConfigDict(dict(name="edm"))
    config.parameterization = ConfigDict(dict(name="edm", sigma_data=0.5))
    config.times = ConfigDict(dict(name="log_normal"))
    config.weighting = ConfigDict(dict(name="edm"))
    config.sampling.grid = ConfigDict(dict(name="karras"))
    return config


def student(directory, system=(), **changes):
    """A tiny consistency model that is distilled from the run in `directory`."""
    config = config_of_run(**changes)
    section = dict(name="consistency", teacher=str(directory), schedule=dict(name="fixed", points=8))
    config.system = ConfigDict(section | dict(system))
    config.weighting = ConfigDict(dict(name="simple"))
    config.times = ConfigDict(dict(name="karras"))
    config.parameterization = ConfigDict(dict(name="consistency", sigma_data=0.5))
    config.loss = ConfigDict(dict(name="huber"))
    config.solver = ConfigDict(dict(name="consistency"))
    config.sampling.grid, config.sampling.steps = ConfigDict(dict(name="karras")), 2
    return config


def continuous(config):
    config.system.schedule = ConfigDict(dict(name="continuous", warmup_steps=2))
    config.loss = ConfigDict(dict(name="l2"))
    config.process = ConfigDict(dict(name="trig", sigma_data=0.5))
    config.parameterization = ConfigDict(dict(name="edm", sigma_data=0.5, label="time"))
    config.times = ConfigDict(dict(name="log_normal", mean=-1.0, std=1.4))
    config.sampling.grid = ConfigDict(dict(name="uniform", t_min=0.0))
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    train.train(config_of_run(), directory)
    return directory


@pytest.fixture(scope="module")
def batch():
    return {"x": jax.random.uniform(jax.random.key(5), (6, 8, 8, 1), minval=-1)}


def test_student_and_target_start_as_the_averaged_teacher(run):
    prepared = job.prepare(student(run, dict(target=dict(name="ema", mu=0.9))))
    assert isinstance(prepared.system, System)
    state = parameters.fresh_state(prepared)
    teacher = build.trained(str(run), "config.system.teacher").load()["network"]
    for tree in (state.params["network"], state.ema["0.999"]["network"], state.params["frozen"]["target"]):
        jax.tree.map(np.testing.assert_array_equal, tree, teacher)
    jax.tree.map(np.testing.assert_array_equal, state.params["frozen"]["teacher"]["network"], teacher)
    random = parameters.fresh_state(job.prepare(student(run, dict(start="random", pairs="shared_noise"))))
    assert "frozen" not in random.params
    assert not np.array_equal(*(p["linear_in"]["kernel"] for p in (random.params["network"], teacher)))


def stepped(system, params, batch, steps=2):
    optimizer = optax.sgd(1e-2)
    state = init_state(system, optimizer, (), jax.random.key(0), params)
    step = jax.jit(make_train_step(system, optimizer, num_steps=10, ema_rates=()))
    for _ in range(steps):
        state, _ = step(state, batch)
    return state.params


def test_the_target_follows_and_the_teacher_stays(run, batch):
    prepared = job.prepare(student(run, dict(target=dict(name="ema", mu=0.9))))
    before = parameters.fresh_state(prepared).params
    after = stepped(prepared.system, before, batch, steps=1)
    frozen = before["frozen"]
    jax.tree.map(np.testing.assert_array_equal, after["frozen"]["teacher"], frozen["teacher"])
    jax.tree.map(
        lambda target, old, new: np.testing.assert_allclose(target, 0.9 * old + 0.1 * new, atol=1e-6),
        after["frozen"]["target"],
        frozen["target"],
        after["network"],
    )
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after["network"], before["network"])
    assert max(jax.tree.leaves(moved)) > 1e-6


def random_params(system):
    """Parameters of which none is zero."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(system.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.float32(0.2 * rng.standard_normal(s.shape)), shapes)


VARIANTS = {
    "distilled": lambda run: student(run),
    "trained": lambda run: student(run, dict(pairs="shared_noise", schedule=dict(name="ratio", stages=2))),
    "continuous": lambda run: continuous(student(run)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_of_an_example_is_its_own(run, batch, variant):
    """With dropout: neither the values of other rows nor theirs of the masks matter."""
    config = VARIANTS[variant](run)
    config.network.dropout = 0.3
    system = build.system(config)
    params = random_params(system)
    loss = jax.jit(lambda batch: system.loss(params, jax.random.key(1), batch, Train(jnp.int32(3), 10))[0])
    other = {"x": batch["x"].at[1:].set(0.3)}
    np.testing.assert_allclose(loss(batch)[0], loss(other)[0], rtol=1e-5)
    assert np.isfinite(loss(batch)).all() and jnp.abs(loss(batch)[1:] - loss(other)[1:]).max() > 1e-4


def test_student_and_target_have_the_same_dropout_mask(run, batch):
    """At equal times with the same noise the two outputs are equal, unless their masks differ."""
    config = student(run, dict(pairs="shared_noise"))
    config.network.dropout = 0.5
    system = build.system(config)
    same = intervals.Schedule(lambda process, t, train: (t, t), lambda train: jnp.float32(2))
    system = dataclasses.replace(system, schedule=same)
    params = random_params(system)
    loss, _ = system.loss(params, jax.random.key(1), batch, Train(jnp.int32(3), 10))
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    x, t = batch["x"], jnp.full(6, 0.5)
    outputs = [system._function(params["network"], None, jax.random.key(i))(x, t) for i in range(2)]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-2  # the masks do matter


def test_guided_teachers_have_a_scale_per_example(run):
    system = linear_system(solvers.euler(), scales=(2.0, 5.0))
    seen = []

    class Guided(Exact):
        def denoiser(self, params, process, cond=None, scale=None):
            seen.append(scale)
            return super().denoiser(params, process, cond)

    system = dataclasses.replace(system, teacher=Guided())
    system.loss(system.init(jax.random.key(0)), jax.random.key(1), {"x": jnp.ones((500, 1))}, None)
    (scale,) = seen
    assert scale.shape == (500,) and 2 <= scale.min() < 2.1 and 4.9 < scale.max() <= 5


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_stops_and_resumes_exactly_and_draws(run, tmp_path, variant):
    config = VARIANTS[variant](run)
    config.system.target = ConfigDict(dict(name="ema", mu=0.9) if variant != "continuous" else dict(name="self"))
    train.train(config, tmp_path / "whole")
    half = config.copy_and_resolve_references()
    half.training.num_steps = 2
    train.train(half, tmp_path / "parts")
    train.train(config, tmp_path / "parts")
    whole, parts = (runs.final_state(config, tmp_path / name) for name in ("whole", "parts"))
    assert whole[0] == parts[0] == 4 and whole[2] == parts[2]
    # The schedule of the points depends on the number of steps; a fixed one does not.
    if variant == "distilled":
        for name, value in whole[1].items():
            np.testing.assert_array_equal(value, parts[1][name], err_msg=name)
    params, _ = parameters.load_params(job.prepare(config), tmp_path / "whole")
    drawn = build.system(config).sample(params, jax.random.key(0), 5)["samples"]
    again = dataclasses.replace(build.system(config), batch_size=2).sample(params, jax.random.key(0), 5)["samples"]
    np.testing.assert_allclose(drawn, again, atol=1e-5)


def pretend(directory, config):
    """A work directory whose config.json is that of `config`."""
    (directory / "checkpoints").mkdir(parents=True)
    saved.write_config(directory, config)
    return directory


def test_refuses_what_cannot_work(tmp_path):
    run = pretend(tmp_path / "run", config_of_run())

    def refused(match, config=None, **system):
        with pytest.raises(ConfigError, match=match):
            build.system(student(run, system) if config is None else config)

    refused(r"config\.system\.pairs='noise' is unknown.*teacher, shared_noise", pairs="noise")
    refused(r"config\.system\.start='warm' is unknown.*teacher, random", start="warm")
    refused(r"config\.system\.solver\.name='ancestral' is unknown.*ddim, euler, heun", solver="ancestral")
    refused(r"config\.system\.schedule\.name='steps' is unknown", schedule=dict(name="steps"))
    refused(r"config\.system\.guidance=\(1\.0, 2\.0\) needs a conditional", guidance=(1.0, 2.0))
    refused(r"guidance=\(2\.0,\) must be \(\) or two", guidance=(2.0,))
    refused(r"config\.system\.guidance=\(1\.0, 2\.0\) guides a teacher", guidance=(1.0, 2.0), pairs="shared_noise")
    classes = dict(network__num_classes=10)
    labelled = pretend(tmp_path / "labelled", config_of_run(**classes))
    twice = student(labelled, dict(guidance=(1.0, 2.0)), **classes)
    build.system(twice)
    twice.guidance = ConfigDict(dict(name="classifier_free", scale=2.0))
    refused(r"guidance\.name='classifier_free' guides a student a second time.*\(1\.0, 2\.0\).*'none'", twice)
    embedded = student(run)
    embedded.guidance = ConfigDict(dict(name="embedded"))
    refused(r"config\.guidance\.name='embedded' needs a network with an embedding of the scale", embedded)
    segments = dict(name="fixed", points=9, segments=2)
    refused(r"solver\.name='consistency' must be 'ddim' with eta=0 for .*segments=2", schedule=segments)
    ratio = dict(name="ratio")
    refused(r"schedule is None; it must be one with a grid", schedule=ratio, target=dict(name="scheduled"))

    without = student(run)
    without.parameterization = ConfigDict(dict(name="edm", sigma_data=0.5))
    refused(r"name='edm'.* does not keep x at t = 0 .*c_out = 0\.002.*name='consistency'", without)
    moved = student(run, dict(schedule=dict(name="fixed", points=8, t_min=1e-3)))
    refused(r"does not keep x at t = 0\.001 .*alpha c_skip = ", moved)

    vp = student(run, dict(schedule=dict(name="fixed", points=3)))
    vp.process, vp.sampling.grid = ConfigDict(dict(name="vp")), ConfigDict(dict(name="uniform"))
    vp.times = ConfigDict(dict(name="karras", t_min=1e-3))
    refused(r"not finite at s = 0 of config\.process\.name='vp'; set config\.system\.schedule\.t_min", vp)

    lpips = student(run)
    lpips.loss = ConfigDict(dict(name="lpips", side=32))
    with pytest.raises(ConfigError, match=r"config\.loss\.vgg='' and lin='' must be the files"):
        parameters.stands_on(job.prepare(lpips))

    tangent = continuous(student(run))
    tangent.loss = ConfigDict(dict(name="huber"))
    refused(r"config\.loss=\{'name': 'huber'\} must be \{'name': 'l2'\}", tangent)
    tangent = continuous(student(run, dict(target=dict(name="ema"))))
    refused(r"config\.system\.target=\{'name': 'ema'\} must be \{'name': 'self'\}", tangent)

    other = config_of_run()
    other.data = ConfigDict(dict(name="folder", image_size=8, channels=1, path="x"))
    refused(r"another data set", student(pretend(tmp_path / "other", other)))
    refused(r"config\.network\.hidden is 32 now and was 16", student(run, network__hidden=32))


def test_a_network_without_a_forward_derivative_is_refused(tmp_path, monkeypatch):
    """Fused attention has a custom derivative for the backward pass alone."""
    run = pretend(tmp_path / "run", config_of_run())
    config = continuous(student(run))
    build.system(config)

    @jax.custom_vjp
    def fused(x):
        return x

    fused.defvjp(lambda x: (x, None), lambda _, g: (g,))
    usual = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, *rest, **options: fused(usual(self, x, *rest, **options)))
    with pytest.raises(ConfigError, match=r"name='continuous' needs the forward-mode derivative.*mlp.*custom_vjp"):
        build.system(config)
