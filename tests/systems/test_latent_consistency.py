"""Latent consistency models: guidance in closed form, what a student starts from, and which configs are refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import build, from_file
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses import consistency as losses
from diffusion_jax.losses import intervals, times
from diffusion_jax.networks.conditioning import GUIDANCE, guided
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.parameterizations import x0_prediction
from diffusion_jax.processes import DiscreteVP, bcast, beta_table
from diffusion_jax.run import job, parameters, train
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.base import stateless
from diffusion_jax.systems.consistency import Consistency
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.teacher import Teacher
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import Coefficients, Embedded
from tests import runs
from tests.networks import random_params
from tests.systems.test_consistency import pretend

PROCESS = DiscreteVP.from_betas(beta_table("scaled_linear", 1000))
VARIANCE, DIM, T_MIN = 0.25, 16, 0.001


def spread(t):
    """The variance of x_t for data of variance `VARIANCE`."""
    return VARIANCE * PROCESS.alpha(t) ** 2 + PROCESS.sigma(t) ** 2


def denoised(x, t, mean):
    """E[x_0 | x_t] of data N(mean, v). Guided from mean 0 by the scale w, it is that of N(w mean, v)."""
    alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
    return (bcast(sigma**2, x) * mean + bcast(VARIANCE * alpha, x) * x) / bcast(spread(t), x)


def flow(x, t, s, mean):
    """x_s on the trajectory of the probability-flow ODE of N(mean, v) through x_t."""
    centred = x - bcast(PROCESS.alpha(t), x) * mean
    return bcast(PROCESS.alpha(s), x) * mean + bcast(jnp.sqrt(spread(s) / spread(t)), x) * centred


def exact_step(process, D, keys, x, t, s):
    """The flow of a Gaussian, whose mean is that which D has: of the guided denoiser, if D is guided."""
    sigma, alpha = process.sigma(t), process.alpha(t)
    mean = (bcast(spread(t), x) * D(x, t) - bcast(VARIANCE * alpha, x) * x) / bcast(sigma**2, x)
    return flow(x, t, s, mean)


def embedded(params, cond):
    """The embedding of a network whose condition is the mean of the data."""
    return Embedded(vector=cond["vector"])


def scale_of(embedding):
    """The scale that an embedding stands for, from its slowest sine, of 0.1 w."""
    return 1 + 10 * jnp.arcsin(embedding[:, DIM // 2 - 1])


FIELDS = dict(
    process=PROCESS,
    network_conditions=Conditions(vector_dim=1),
    solver=solvers.consistency(),
    grid=grids.latent_consistency(),
    steps=4,
    shape=(1,),
    embed=embedded,
)


def teacher():
    def apply(params, x, c_noise, cond, *, key=None):
        return denoised(x, c_noise, cond.vector)

    return Teacher(
        diffusion=Diffusion(
            init_network=lambda key: {"unused": jnp.zeros(())},
            apply=apply,
            param=x0_prediction(lambda process, t: t),
            loss_fn=None,
            **FIELDS,
        )
    )


def student(scale=scale_of, end=None, **fields):
    """f = (1 + error t) times where the guided flow ends, for a network that reads the scale from its embedding."""

    def apply(params, x, c_noise, cond, *, key=None):
        at = jnp.full_like(c_noise, T_MIN) if end is None else end(c_noise)
        mean = scale(cond.others[GUIDANCE])[:, None] * cond.vector
        there = flow(x, c_noise, at, mean)
        if end is segment:  # D of the step of DDIM that leads there
            ratio = PROCESS.sigma(at) / PROCESS.sigma(c_noise)
            weight = PROCESS.alpha(at) - ratio * PROCESS.alpha(c_noise)
            there = jnp.where((c_noise > at + 1e-6)[:, None], (there - bcast(ratio, x) * x) / bcast(weight, x), 0)
        return (1 + params["error"] * c_noise)[:, None] * there

    return Consistency(
        init_network=lambda key: {"error": jnp.zeros(())},
        apply=apply,
        param=lambda process, t: Coefficients(jnp.ones_like(t), jnp.zeros_like(t), jnp.ones_like(t), t),
        times=times.uniform(t_min=0.0),
        schedule=fields.pop("schedule", intervals.fixed(points=51, spacing="uniform", t_min=T_MIN)),
        distance=losses.l2(),
        teacher=teacher(),
        step=stateless(exact_step),
        scales=(1.0, 8.0),
        guidance_dim=DIM,
        **{**FIELDS, **fields},
    )


def segment(t):
    return SEGMENTED.start(PROCESS, t)


SEGMENTED = intervals.fixed(points=49, spacing="uniform", t_min=T_MIN, segments=4)


def measured(system, error=0.0):
    """Loss and slope by the error of f, of data with a mean of its own in every row."""
    mean = jax.random.normal(jax.random.key(3), (400, 1))
    x_0 = mean + VARIANCE**0.5 * jax.random.normal(jax.random.key(1), mean.shape)
    params = system.init(jax.random.key(0))

    def total(error):
        network = {"error": error}
        return system.loss({**params, "network": network}, jax.random.key(2), {"x": x_0, "vector": mean}, None)[
            0
        ].mean()

    return jax.jit(jax.value_and_grad(total))(jnp.float32(error))


def test_the_exact_function_of_the_guided_flow_has_no_loss_and_no_gradient():
    """At every scale, which the network reads. Guidance of Gaussians N(m, v) and N(0, v) by w is that of N(w m, v)."""
    loss, slope = measured(student())
    assert loss < 1e-7 and abs(slope) < 1e-5
    assert abs(measured(student(), 0.1)[1]) > 1e-2
    wrong = measured(student(scale=lambda embedding: jnp.ones(len(embedding))))
    assert wrong[0] > 1e-3


def test_the_exact_function_of_segments_has_no_loss_and_its_samples_follow_the_flow():
    system = student(end=segment, schedule=SEGMENTED)
    loss, slope = measured(system)
    assert loss < 1e-7 and abs(slope) < 1e-4
    assert abs(measured(system, 0.1)[1]) > 1e-3
    assert measured(student(schedule=SEGMENTED))[0] > 1e-5  # of the whole trajectory, with one segment
    mean, scale = jnp.float32([[0.5], [-1.0]]), jnp.float32([2.0, 5.0])
    x_T = jnp.float32([[0.3], [1.7]])
    cond = system.conditioned({}, {"vector": mean}, scale)
    x, ddim = x_T, solvers.ddim()
    grid = grids.uniform(t_min=0.0)(PROCESS, 4)
    for t, s in itertools.pairwise(grid):
        f = lambda x, t: system.apply({"error": 0.0}, x, jnp.full(len(x), t), cond)
        x, _ = ddim.step(PROCESS, f, None, x, t, jnp.maximum(s, T_MIN), ())
    expected = flow(x_T, jnp.float32(1), jnp.float32(T_MIN), scale[:, None] * mean)
    np.testing.assert_allclose(x, expected, atol=1e-4)


NETWORK = dict(block_out_channels=(8, 16), norm_num_groups=4, num_attention_heads=2, transformer_layers=(1, 0))


def tiny(variant, **sections):
    """A variant of lcm.py, or its teacher, with a small U-Net and two steps of training."""
    config = from_file(f"configs/{variant}")
    config.network.update(NETWORK)
    config.system.get("text_encoder", ConfigDict()).update(hidden_size=64, num_hidden_layers=1)
    config.update(training=dict(num_steps=2, batch_size=4, checkpoint_every=2, sample_every=0))
    config.evaluation.metrics, config.evaluation.after_training = (), False
    config.sampling.update(num_samples=2, batch_size=2, steps=4)
    for name, section in sections.items():
        config[name] = ConfigDict(section)
    return config


def lcm(run, variant="digits", **system):
    config = tiny(f"lcm.py:{variant}")
    config.system.update(teacher=str(run), **system)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("words")
    train.train(tiny("stable_diffusion.py:digits"), directory)
    return directory


@pytest.mark.slow
def test_a_student_starts_as_its_teacher_and_only_it_is_trained(run):
    prepared = job.prepare(lcm(run))
    params = parameters.fresh_state(prepared).params
    teacher = build.trained(str(run), "config.system.teacher").load()
    time = params["network"]["encoder"]["time_embedding"]
    assert time["cond_proj"]["kernel"].shape == (64, 8) and not time["cond_proj"]["kernel"].any()
    del time["cond_proj"]
    jax.tree.map(np.testing.assert_array_equal, params["network"], teacher["network"])
    params = parameters.fresh_state(prepared).params
    for name in ("first_stage", "text"):
        jax.tree.map(np.testing.assert_array_equal, params["frozen"][name], teacher["frozen"][name])
    # After two steps of training the residual branches of the teacher are still zero, and nothing before them learns.
    params["network"] = random_params(lambda key: params["network"])
    system = prepared.system
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1), minval=-1)
    batch = {"x": x, "tokens": jnp.asarray(system.tokenize(["one", "two", "three", "four"]))}
    optimizer = optax.sgd(1e-2)
    state = init_state(system, optimizer, (), jax.random.key(0), params)
    before = jax.tree.map(np.asarray, params)
    after = jax.jit(make_train_step(system, optimizer, num_steps=10, ema_rates=()))(state, batch)[0].params
    for name in ("teacher", "text"):
        jax.tree.map(np.testing.assert_array_equal, after["frozen"][name], before["frozen"][name])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after["network"], before["network"])
    assert moved["encoder"]["time_embedding"]["cond_proj"]["kernel"] > 0
    jax.tree.map(
        lambda target, old, new: np.testing.assert_allclose(target, 0.95 * old + 0.05 * new, atol=1e-6),
        after["frozen"]["target"],
        before["frozen"]["target"],
        after["network"],
    )


@pytest.mark.slow
def test_low_rank_updates_leave_the_base_as_it_is(run, tmp_path):
    config = lcm(run, "digits_lora")
    train.train(config, tmp_path)
    teacher = build.trained(str(run), "config.system.teacher").load()["network"]
    _, arrays, _ = runs.final_state(config, tmp_path)
    paths = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(teacher)}
    for path, value in paths.items():
        np.testing.assert_array_equal(arrays[f".params['frozen']['network']{path}"], value)
        np.testing.assert_array_equal(arrays[f".params['frozen']['teacher']['network']{path}"], value)
    assert any("['lora']" in path and "'up'" in path and np.abs(x).max() > 0 for path, x in arrays.items())
    params, _ = parameters.load_params(job.prepare(config), tmp_path)
    assert np.isfinite(build.system(config).sample(params, jax.random.key(0), 2, _words(config, 2))["samples"]).all()


def _words(config, num):
    return {"tokens": np.asarray(build.system(config).tokenize(["three"] * num))}


@pytest.mark.slow
def test_refuses_what_cannot_work(tmp_path):
    run = pretend(tmp_path / "run", tiny("stable_diffusion.py:digits"))

    def refused(match, config):
        with pytest.raises(ConfigError, match=match):
            build.system(config)

    refused(r"time_cond_proj_dim=64 reads the scale .* config\.system\.guidance is empty", lcm(run, guidance=()))
    twice = lcm(run)
    twice.guidance = ConfigDict(dict(name="classifier_free", scale=2.0))
    refused(r"guidance\.name='classifier_free' guides a student a second time.*'embedded'", twice)
    unread = lcm(run)
    unread.guidance = ConfigDict(dict(name="none"))
    refused(r"time_cond_proj_dim=64: .* config\.guidance\.name must be 'embedded'; 'none' does not give it$", unread)
    without = lcm(run)
    del without.network.time_cond_proj_dim
    refused(r"config\.guidance\.name='embedded' needs a network with an embedding", without)
    low_rank = lcm(run)
    low_rank.lora.rank = 4
    refused(r"time_cond_proj_dim=64 must be 0 with config\.lora\.rank=4", low_rank)
    foreign = lcm(run)
    foreign.data.name = "mnist"
    refused(r"was trained on another data set: config\.data\.name is 'mnist' here", foreign)
    network = lcm(run)
    network.network.layers_per_block = 2
    refused(r"needs the same network: config\.network\.layers_per_block is 2 now and was 1", network)
    latent = lcm(run)
    latent.system.name = "latent_consistency"
    refused(r"must be the run of a latent diffusion model; it is a run of config\.system\.name='text_to_image'", latent)
    guided = tiny("stable_diffusion.py:digits", guidance=dict(name="embedded", scale=2.0))
    guided.network.time_cond_proj_dim = 64
    refused(r"was distilled with guidance already.*guided twice", lcm(pretend(tmp_path / "guided", guided)))
    segments = lcm(run, schedule=ConfigDict(dict(name="fixed", points=51, spacing="uniform", t_min=T_MIN, segments=5)))
    refused(r"config\.solver\.name='consistency' must be 'ddim' with eta=0 for .*segments=5", segments)
    segments.solver = ConfigDict(dict(name="ddim"))
    segments.sampling.grid = ConfigDict(dict(name="uniform", t_min=0.0))
    refused(r"config\.sampling\.steps=4 .*crosses the beginning of a segment of .*segments=5", segments)
    segments.sampling.steps = 10
    build.system(segments)


def test_an_embedding_at_zero_leaves_the_network_exactly_as_it_is():
    """Bit for bit at every scale; once it is not zero, the scale matters."""
    sizes = dict(image_size=2, layers_per_block=1, token_dim=6, max_tokens=3, **NETWORK)
    init, apply = init_apply(lambda rngs: UNet2DConditionModel(**sizes, time_cond_proj_dim=12, rngs=rngs))
    _, base = init_apply(lambda rngs: UNet2DConditionModel(**sizes, rngs=rngs))
    params = random_params(init)
    time = params["encoder"]["time_embedding"]
    kernel = time.pop("cond_proj")["kernel"]
    x, c_noise = jax.random.normal(jax.random.key(0), (2, 2, 2, 4)), jnp.float32([3.0, 800.0])
    tokens = Embedded(context=jax.random.normal(jax.random.key(1), (2, 3, 6)))
    expected = jax.jit(base)(params, x, c_noise, tokens)
    run = jax.jit(apply)

    def output(kernel, scale):
        encoder = {**params["encoder"], "time_embedding": {**time, "cond_proj": {"kernel": kernel}}}
        return run({**params, "encoder": encoder}, x, c_noise, guided(tokens, scale, 12))

    for scale in (1.0, 7.5):
        np.testing.assert_array_equal(output(0 * kernel, jnp.full(2, scale)), expected)
    both = output(kernel, jnp.float32([1.0, 7.5]))
    np.testing.assert_allclose(both[0], output(kernel, jnp.ones(2))[0], atol=1e-5)
    assert jnp.abs(both[1] - output(kernel, jnp.ones(2))[1]).max() > 1e-3
