"""The system of normalizing flows: its density, noise, denoising, samples, training, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy import stats

from diffusion_jax import data, systems
from diffusion_jax.config import build, defaults, replace
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.likelihood import exact_likelihood
from diffusion_jax.likelihood.dequantization import from_levels
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import System, Train
from tests.runs import resumed

MEAN, STD = 0.3, 0.5
TRAIN = Train(step=jnp.int32(0), num_steps=10)


def affine(**fields) -> systems.NormalizingFlow:
    """The flow z = (x - m) / s of vectors of two numbers, whose density is N(m, s^2)."""

    def forward(params, x, cond, *, key=None):
        return (x - params["m"]) / params["s"], jnp.full(len(x), -x[0].size * jnp.log(params["s"]))

    def invert(params, z, cond, null, scale):
        return params["m"] + params["s"] * z

    made = systems.NormalizingFlow(
        init_network=lambda key: {"m": jnp.float32(MEAN), "s": jnp.float32(STD)},
        forward=forward,
        invert=invert,
        shape=(2,),
    )
    return dataclasses.replace(made, **fields)


def config_of(name="tarflow", **changes):
    networks = {
        "tarflow": dict(patch_size=1, channels=8, num_blocks=2, layers_per_block=1, head_dim=4),
        "real_nvp": dict(num_couplings=2, hidden=8, num_layers=1),
    }
    config = replace(
        defaults(),
        system=dict(name="normalizing_flow"),
        network=dict(name=name, **networks[name]),
        data=dict(name="toy", split="train", eval_split="test", kind="gaussian_mixture", num_examples=256),
        training=dict(num_steps=4, batch_size=16, log_every=1, checkpoint_every=2, sample_every=0),
        optimizer=dict(name="adam", learning_rate=2e-3, schedule="cosine", warmup_steps=0, clip_norm=1.0),
        ema=dict(rates=(0.999,)),
        sampling=dict(num_samples=6, batch_size=6, steps=1),
        evaluation=dict(num_samples=32, metrics=(), after_training=False),
    )
    return replace(config, **changes)


def digits(**changes):
    data = dict(name="digits", split="train", eval_split="test", image_size=8, channels=1, path="")
    return config_of(**{"data": dict(**data, levels=17, dequantize=True), **changes})


@functools.cache
def system_of(name, num_classes=0):
    config = config_of(name)
    config.network.num_classes = num_classes
    system = build.system(config)
    shapes, rng = jax.eval_shape(system.init, jax.random.key(0)), np.random.default_rng(0)
    return system, jax.tree.map(lambda x: jnp.float32(0.2 * rng.standard_normal(x.shape)), shapes)


def test_the_loss_is_the_negative_log_likelihood_per_dimension():
    system = affine()
    assert isinstance(system, System)
    params, x = system.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 2))
    expected = stats.norm(MEAN, STD).logpdf(x).sum(1)
    np.testing.assert_allclose(system.log_prob(params, x), expected, rtol=1e-5)
    loss, _ = system.loss(params, jax.random.key(2), {"x": x}, None)
    np.testing.assert_allclose(loss, -expected / 2, rtol=1e-5)
    np.testing.assert_allclose(system.evaluate(params, jax.random.key(2), {"x": x})["loss"], loss, rtol=1e-6)


def test_noise_is_added_to_the_data():
    """The mean loss under noise of variance v is ((x - m)^2 + v) / (2 s^2) + log s + log(2 pi) / 2."""
    system, x = affine(noise_std=0.4), jnp.full((20_000, 2), 0.8)
    params = system.init(jax.random.key(0))
    loss, _ = system.loss(params, jax.random.key(1), {"x": x}, TRAIN)
    expected = ((0.8 - MEAN) ** 2 + 0.16) / (2 * STD**2) + np.log(STD) + np.log(2 * np.pi) / 2
    assert float(loss.mean()) == pytest.approx(expected, abs=5 * float(loss.std()) / np.sqrt(20_000))
    plain, _ = affine().loss(params, jax.random.key(1), {"x": x}, TRAIN)
    assert float(plain.std()) < 1e-6


def test_tweedies_step_is_exact_for_a_gaussian():
    """x_0 ~ N(m, c^2), x = x_0 + sigma eps: E[x_0 | x] = m + c^2 / (c^2 + sigma^2) (x - m)."""
    sigma = 0.3
    system = affine(noise_std=sigma)
    params, x = system.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 2))
    shrink = (STD**2 - sigma**2) / STD**2
    np.testing.assert_allclose(system.denoised(params, x), MEAN + shrink * (x - MEAN), rtol=1e-5)
    drawn = system.sample(params, jax.random.key(2), 4000)["samples"]
    assert drawn.var() == pytest.approx((shrink * STD) ** 2, rel=0.05)
    assert affine().sample(params, jax.random.key(2), 4000)["samples"].var() == pytest.approx(STD**2, rel=0.05)


def test_bits_per_dim_of_grey_levels():
    """Of one level of four in the middle of a wide density, which is constant over a cell: -log2 of its mass."""
    levels, k = 4, jnp.array([[0, 3], [1, 2]])
    system = affine(likelihood=exact_likelihood(levels=levels))
    params = {"network": {"m": jnp.float32(0), "s": jnp.float32(100)}}
    found = system.evaluate(params, jax.random.key(0), {"x": 2 * k / 3 - 1.0})
    mass = stats.norm(0, 100).pdf(0) * 2 / levels
    np.testing.assert_allclose(found["bits_per_dim"], -np.log2(mass), rtol=1e-4)
    # Under noise that fills the cells, the mean over draws is the bound E_u log p, here known.
    x = jnp.repeat(2 * k[:1] / 3 - 1.0, 20_000, axis=0)
    params = system.init(jax.random.key(0))
    found = system.evaluate(params, jax.random.key(0), {"x": x})["bits_per_dim"]
    u = (np.arange(1000) + 0.5) / 1000
    cells = [np.asarray(from_levels(np.array(level), u, levels)) for level in (0, 3)]
    expected = -np.mean([stats.norm(MEAN, STD).logpdf(cell).mean() for cell in cells]) / np.log(2) + np.log2(levels / 2)
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / np.sqrt(20_000))


@pytest.mark.parametrize("name", ["tarflow", "real_nvp"])
def test_samples_are_the_inverse_of_normal_noise_and_depend_on_their_index_alone(name):
    system, params = system_of(name)
    whole = system.sample(params, jax.random.key(3), 5)["samples"]
    z, _ = system.forward(params["network"], whole, None)
    expected = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(3), i), (2,)))(jnp.arange(5))
    np.testing.assert_allclose(z, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(system.sample(params, jax.random.key(3), 3)["samples"], whole[:3], rtol=1e-3, atol=1e-4)
    assert system.evaluations() == 1 and affine(noise_std=0.1).evaluations() == 2


def test_classes_reach_the_loss_and_the_samples_and_are_dropped():
    system, params = system_of("tarflow", num_classes=3)
    x, labels = jax.random.normal(jax.random.key(0), (3, 2)), jnp.arange(3)
    assert set(system.batch) == {"x", "label"}
    key, batch = jax.random.key(0), {"x": x, "label": labels}
    with_classes, _ = system.loss(params, key, batch, None)
    without, _ = system.loss(params, key, {"x": x, "label": jnp.full(3, 3)}, None)
    assert np.abs(with_classes - without).max() > 1e-4
    fields = dict(network_conditions=system.network_conditions, forward=system.forward, invert=system.invert)
    dropping = affine(**fields, cond_dropout=1 - 1e-6)
    np.testing.assert_allclose(dropping.loss(params, key, batch, TRAIN)[0], without, rtol=1e-5)
    np.testing.assert_allclose(dropping.loss(params, key, batch, None)[0], with_classes, rtol=1e-5)
    drawn = {
        scale: affine(**fields, guidance_scale=scale).sample(params, key, 3)["samples"] for scale in (0.0, 1.0, 2.0)
    }
    np.testing.assert_allclose(drawn[1.0], system.sample(params, key, 3, {"label": labels})["samples"], rtol=1e-5)
    assert np.abs(drawn[2.0] - drawn[1.0]).max() > 1e-4 and np.abs(drawn[0.0] - drawn[1.0]).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["real_nvp", "tarflow"])
def test_a_resumed_run_equals_one_that_was_not_interrupted(name, tmp_path):
    config = config_of(name)
    config.optimizer.schedule, config.network.dropout = "constant", 0.2
    resumed(config, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("name", ["tarflow", "real_nvp"])
def test_training_comes_closer_to_the_entropy_of_the_toy(name):
    """A mixture whose entropy is known: the loss is not below it, and falls by a third of what it started above."""
    sizes = dict(channels=16, head_dim=16) if name == "tarflow" else dict(hidden=32, num_couplings=6)
    config = config_of(name)
    config.network.update(sizes)
    system, optimizer = build.system(config), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    state = jax.jit(lambda key: init_state(system, optimizer, (), key))(jax.random.key(0))
    step = jax.jit(make_train_step(system, optimizer, num_steps=500, ema_rates=()))
    source = data.load(name="toy", kind="gaussian_mixture", num_examples=20_000)
    x, rng = data.arrays(source)["x"], np.random.default_rng(0)
    exact, losses = -np.mean(source.facts["log_density"](x)) / 2, []
    for _ in range(500):
        state, metrics = step(state, {"x": x[rng.integers(0, len(x), 256)]})
        losses.append(float(metrics["loss"]))
    assert exact - 0.03 < np.mean(losses[-50:]) < exact + 2 / 3 * (losses[0] - exact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(network=dict(name="mlp")), "config.network.name='mlp' must be one of tarflow, real_nvp"),
        (dict(training=dict(dtype="bfloat16")), "must be 'float32'"),
        (dict(guidance=dict(name="classifier_free", scale=2.0)), "this network reads none"),
        (dict(system=dict(name="normalizing_flow", noise_std=-1.0)), "noise_std is -1.0"),
        (dict(system=dict(name="normalizing_flow", cond_dropout=1.0)), "cond_dropout is 1.0"),
        (dict(network=dict(name="tarflow", patch_size=3)), "patch_size=3"),
        (dict(evaluation=dict(likelihood=dict(name="ode"))), "'ode' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build.system(config_of(**changes))


def test_grey_levels_need_noise():
    assert isinstance(build.system(digits()), System)
    plain = dict(name="digits", split="train", eval_split="test", image_size=8, channels=1, path="", levels=17)
    with pytest.raises(ConfigError, match=r"config.data.dequantize=False must be true"):
        build.system(digits(data=plain))
    noisy = dict(name="normalizing_flow", noise_std=0.1)
    assert build.system(digits(data=plain, system=noisy)).noise_std == 0.1
    with pytest.raises(ConfigError, match="dequantization='none'"):
        build.system(digits(system=noisy, evaluation=dict(likelihood=dict(name="exact"))))
    guided = digits(guidance=dict(name="classifier_free", scale=2.0))
    guided.network = ConfigDict({**guided.network.to_dict(), "num_classes": 10})
    with pytest.raises(ConfigError, match="cond_dropout=0 must be positive"):
        build.system(guided)


def test_the_likelihood_is_of_examples_with_their_noise():
    """Of examples at the mean with noise of 0.2 it is the mean of log N(m + 0.2 n; m, s^2), as in the loss."""
    noise = 0.2
    system = affine(noise_std=noise, likelihood=lambda log_prob, key, x: {"nats": log_prob(x)})
    params = system.init(jax.random.key(0))
    found = system.evaluate(params, jax.random.key(0), {"x": jnp.full((4000, 2), MEAN)})
    expected = 2 * (stats.norm.logpdf(0, 0, STD) - noise**2 / STD**2 / 2)
    np.testing.assert_allclose(np.mean(found["nats"]), expected, atol=0.01)
    np.testing.assert_allclose(np.mean(found["loss"]), -expected / 2, atol=0.01)
