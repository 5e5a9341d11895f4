"""Grey levels as densities: cells, bits per dimension, and bounds that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from diffusion_jax import data, processes
from diffusion_jax.evaluation.density import compressor, density_baseline
from diffusion_jax.likelihood import dequantization
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.mlp import MLP

RNG = np.random.default_rng(0)


def on_levels(k, levels):
    return jnp.asarray(2 * np.asarray(k) / (levels - 1) - 1, jnp.float32)


def keys(n, seed=0):
    return processes.row_keys(jax.random.key(seed), jnp.arange(n))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_level_owns_a_cell(levels):
    k = np.arange(levels)
    x = on_levels(k, levels)
    np.testing.assert_array_equal(dequantization.to_levels(x, levels), k)
    noisy, log_q = dequantization.uniform(levels)(keys(4096), jnp.broadcast_to(x, (4096, levels)))
    np.testing.assert_array_equal(log_q, np.zeros(4096))
    assert (noisy >= 2 * k / levels - 1 - 1e-6).all() and (noisy <= 2 * (k + 1) / levels - 1 + 1e-6).all()
    # Uniform in the cell: mean 1/2 and variance 1/12 of its width, within 5 standard errors.
    u = (np.asarray(noisy, np.float64) + 1) * levels / 2 - k
    np.testing.assert_allclose(u.mean(), 0.5, rtol=0, atol=5 / np.sqrt(12 * u.size))
    np.testing.assert_allclose(u.var(), 1 / 12, rtol=0, atol=5 * np.sqrt(1 / 180 / u.size))


def test_a_row_does_not_depend_on_its_batch():
    x = on_levels(RNG.integers(0, 256, (6, 3)), 256)
    whole, _ = dequantization.uniform()(keys(6), x)
    np.testing.assert_array_equal(dequantization.uniform()(keys(6)[2:4], x[2:4])[0], whole[2:4])


def test_the_data_pipeline_has_the_same_cells():
    source = data.load(name="digits", dequantize=True, levels=17)
    indices = np.arange(50)
    plain, noisy = source.batch(indices)["x"], source.batch(indices, np.random.default_rng(0))["x"]
    dequantization.check_levels(plain, 17)
    k = np.asarray(dequantization.to_levels(jnp.asarray(plain), 17))
    assert k.max() == 16
    u = (noisy.astype(np.float64) + 1) * 17 / 2 - k
    assert -1e-5 <= u.min() < 0.01 and 0.99 < u.max() <= 1 + 1e-5


def test_bits_of_a_piecewise_constant_density_are_exact():
    """A density that is constant on every cell has exactly the code length of its levels."""
    levels, p = 4, np.array([0.1, 0.2, 0.3, 0.4])
    k = RNG.integers(0, levels, (512, 3))
    noisy, _ = dequantization.uniform(levels)(keys(512), on_levels(k, levels))
    cell = np.floor((np.asarray(noisy) + 1) * levels / 2).astype(int)
    nats = np.log(p * levels / 2)[cell].sum(axis=1)
    bits = dequantization.bits_per_dim(jnp.asarray(nats), 3, levels)
    np.testing.assert_allclose(bits, -np.log2(p[k]).mean(axis=1), rtol=0, atol=1e-5)


def test_bits_of_another_density_are_more_than_the_entropy():
    """Levels of probability P, density N(0, v): the mean of the figure is H(P) + KL of cells + what varies in them."""
    levels, p, v = 4, np.array([0.1, 0.4, 0.3, 0.2]), 0.3
    k = RNG.choice(levels, (40_000, 1), p=p)
    noisy, _ = dequantization.uniform(levels)(keys(40_000), on_levels(k, levels))
    nats = -0.5 * np.asarray(noisy)[:, 0] ** 2 / v - 0.5 * np.log(2 * np.pi * v)
    bits = np.asarray(dequantization.bits_per_dim(jnp.asarray(nats), 1, levels))
    edges = np.arange(levels + 1) * 2 / levels - 1
    second_moment = (edges[1:] ** 3 - edges[:-1] ** 3) / 3 * levels / 2
    expected = (0.5 * p @ second_moment / v + 0.5 * np.log(2 * np.pi * v)) / np.log(2) + np.log2(levels / 2)
    assert abs(bits.mean() - expected) < 4 * bits.std() / np.sqrt(bits.size)
    assert expected > -p @ np.log2(p) + 0.05


def flow(shape):
    """(init, dequantization of params) of a small conditional flow over two levels."""
    *outer, channels = shape
    init, apply = init_apply(
        lambda rngs: MLP(shape=(*outer, 2 * channels), out_channels=2 * channels, hidden=16, num_layers=1, rngs=rngs)
    )
    return init, lambda params: dequantization.variational(apply, params, levels=2, num_layers=2)


def test_an_untrained_flow_is_uniform():
    init, dequantize = flow((2, 2, 1))
    x = on_levels(RNG.integers(0, 2, (64, 2, 2, 1)), 2)
    noisy, log_q = jax.jit(lambda key, x: dequantize(init(key))(keys(64), x))(jax.random.key(0), x)
    np.testing.assert_allclose(log_q, np.zeros(64), rtol=0, atol=1e-5)
    u = np.asarray(noisy) + 1 - np.asarray(dequantization.to_levels(x, 2))
    assert (u >= 0).all() and (u <= 1).all()
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)


def test_a_trained_flow_has_a_density_and_tightens_the_bound():
    """Two levels under the density N(0, 0.2): noise that leans to the middle costs fewer bits, never fewer than P."""
    init, dequantize = flow((2,))
    variance, n = 0.2, 256
    k = jnp.asarray(RNG.integers(0, 2, (n, 2)))
    x = on_levels(k, 2)
    optimizer = optax.adam(1e-2)

    def nats(params, key):
        noisy, log_q = dequantize(params)(processes.row_keys(key, jnp.arange(n)), x)
        log_p = jnp.sum(-0.5 * noisy**2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance), axis=-1)
        return log_p - log_q, log_q

    @jax.jit
    def train(key):
        params = init(key)

        def step(carry, i):
            params, state = carry
            grads = jax.grad(lambda p: -jnp.mean(nats(p, jax.random.fold_in(key, i))[0]))(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(300))
        many = jax.vmap(lambda i: jnp.stack([*nats(trained, jax.random.fold_in(key, i)), nats(params, i_key(i))[0]]))
        return many(jnp.arange(1000, 1064))

    def i_key(i):
        return jax.random.fold_in(jax.random.key(7), i)

    bound, log_q, uniform = np.moveaxis(np.asarray(train(jax.random.key(0)), np.float64), 1, 0).reshape(3, -1)
    # q integrates to one over the unit square: E_q[1 / q] = 1.
    inverse = np.exp(-log_q)
    assert abs(inverse.mean() - 1) < 5 * inverse.std() / np.sqrt(inverse.size)
    assert log_q.std() > 0.1
    # P of a quadrant is 1/4 of nearly all the mass: Phi(1 / sqrt(0.2))^2-like, in closed form.
    exact = 2 * np.log((norm.cdf(1 / np.sqrt(variance)) - norm.cdf(-1 / np.sqrt(variance))) / 2)
    error = bound.std() / np.sqrt(bound.size)
    assert bound.mean() < exact + 4 * error
    assert exact - bound.mean() < 0.25 * (exact - uniform.mean())


def test_compressor_is_a_code():
    """Not below the entropy of independent levels, close to it for many, and next to nothing for what is known."""
    train, test = (on_levels(RNG.integers(0, 4, (n, 64)), 4) for n in (2000, 1000))
    assert 2.0 < compressor(train, test, 4) < 2.4
    assert compressor(train, train[:1000], 4) < 0.05
    assert compressor(np.full((10, 64), -1.0), np.full((10, 64), -1.0), 256) < 0.5


def test_bits_of_continuous_data():
    assert dequantization.bits_per_dim(jnp.array([-2.0 * np.log(2)]), 2)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("x", "levels", "message"),
    [
        (np.zeros((0, 2)), 3, r"no examples, x has shape \(0, 2\)"),
        (np.array([0.0, np.nan, np.inf]), 3, "2 NaN or infinite values"),
        (np.array([-1.0, 1.5]), 3, r"levels is 3.* x holds 1\.5"),
        (np.array([-1.0, -1.2]), 3, "x holds -1.2"),
        (np.array([-1.0, 0.5]), 3, "x holds 0.5"),
        (np.array([0.0]), 1, "levels is 1; it must be at least 2"),
    ],
)
def test_check_levels_refuses(x, levels, message):
    with pytest.raises(ValueError, match=message):
        dequantization.check_levels(x, levels)


def test_refuses_levels():
    with pytest.raises(ValueError, match="levels is 1"):
        dequantization.uniform(1)
    with pytest.raises(ValueError, match=r"data\.levels must be in 2\.\.256, got 300"):
        data.load(name="digits", levels=300)


def test_baseline_of_a_gaussian_is_its_entropy():
    """Continuous draws of a mixture: the fitted one comes close to the true cross-entropy from above."""
    train, test = (np.random.default_rng(s).normal(size=(4000, 3)) @ np.diag([1.0, 0.5, 0.1]) for s in (1, 2))
    result = density_baseline(train, test, levels=0, components=(1, 2), regularizations=(1e-6, 1e-1))
    entropy = (1.5 * np.log(2 * np.pi * np.e) + np.log(0.05)) / (3 * np.log(2))
    assert result["baseline_components"] == 1 and result["baseline_regularization"] == 1e-6
    assert abs(result["baseline_bits_per_dim"] - entropy) < 0.02
    assert result["baseline_num_train"] == 4000 and result["baseline_num_test"] == 4000


def test_baseline_of_levels_and_refusals():
    k = RNG.integers(0, 4, (300, 4))
    x = on_levels(np.concatenate([k, k], axis=1), 4)  # the second half repeats the first: 1 bit per dimension
    result = density_baseline(x[:200], x[200:], levels=4, components=(1,), regularizations=(1e-3, 1e-2))
    assert 1.0 < result["baseline_bits_per_dim"] < 2.0  # 2 bits is what independent uniform levels cost
    assert "lzma_bits_per_dim" in result
    with pytest.raises(ValueError, match=r"levels is 4.* x holds"):
        density_baseline(x[:200] * 0.9, x[200:], levels=4)
    with pytest.raises(ValueError, match="at least 20 examples, got 10"):
        density_baseline(x[:10], x[200:], levels=4)
    with pytest.raises(ValueError, match="same shape"):
        density_baseline(x[:200], x[200:, :3], levels=4)
