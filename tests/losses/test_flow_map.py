"""Losses of flow maps on flows that are known in closed form: Gaussians, and a point, whose paths are straight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations, solvers
from diffusion_jax.losses import denoising_loss, flow_map, weightings
from diffusion_jax.losses.flow_map import Rows, mean_flow, mean_flow_target, shortcut, shortcut_target
from diffusion_jax.parameterizations import FlowMap
from diffusion_jax.processes import RectifiedFlow, bcast
from diffusion_jax.solvers.sampling import sample
from tests.oracles import Gaussian

FLOW = RectifiedFlow()
DATA = Gaussian(mean=jnp.array([0.5, -1.0]), covariance=jnp.array([[0.5, 0.3], [0.3, 0.4]]))


@jax.jit
def exact(x, t, s, cond=None):
    """The mean velocity of the flow of DATA; at s = t the velocity."""
    data = jax.tree.map(lambda a: a.astype(x.dtype), DATA)
    t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, s))
    moved = jax.vmap(lambda x, t, s: data.flow(FLOW, x[None], t, s)[0])(x, t, s)
    velocity = parameterizations.velocity(FLOW, data.denoiser(FLOW), x, t)
    gap = bcast(t - s, x)
    return jnp.where(gap == 0, velocity, (x - moved) / jnp.where(gap == 0, 1, gap))


def states(num=64):
    keys = jax.random.split(jax.random.key(0), 3)
    t, s = jnp.sort(jax.random.uniform(keys[0], (2, num), minval=0.05, maxval=0.95), axis=0)[::-1]
    x = jax.random.normal(keys[1], (num, 2))
    return x, t, s


def test_the_mean_flow_identity_holds_at_float_precision():
    with jax.enable_x64(True):
        x, t, s = (a.astype(jnp.float64) for a in states())
        v = exact(x, t, t)
        value, target = mean_flow_target(lambda x, t: exact(x, t, s), x, t, s, v)
        np.testing.assert_allclose(value, target, rtol=0, atol=1e-10)
        # The derivative is that along the path: without its part in x the identity fails.
        partial = jax.jvp(lambda t: exact(x, t, s), (t,), (jnp.ones_like(t),))[1]
        assert jnp.abs(value - (v - bcast(t - s, v) * partial)).max() > 0.1


def test_two_steps_of_an_exact_map_are_one():
    x, t, s = states()
    np.testing.assert_allclose(shortcut_target(exact, x, t, s), exact(x, t, s), atol=5e-5)  # two roundings
    euler = lambda x, t, s, cond=None: exact(x, t, t)
    assert jnp.abs(shortcut_target(euler, x, t, s) - exact(x, t, s)).max() > 0.1


def test_the_states_between_two_steps_are_clipped():
    x, t, s = states()
    far = lambda x, t, s, cond=None: 100 * jnp.ones_like(x)
    np.testing.assert_array_equal(shortcut_target(far, x, t, s, clip=4.0), 4 * jnp.ones_like(x))


@pytest.mark.parametrize("steps", [1, 3])
def test_an_exact_map_is_sampled_without_error_in_any_number_of_steps(steps):
    x = jax.random.normal(jax.random.key(1), (32, 2))
    times = jnp.linspace(1.0, 0.0, steps + 1)
    drawn = sample(solvers.flow_map(), FLOW, FlowMap(exact), jax.random.key(0), x, times)
    np.testing.assert_allclose(drawn, DATA.flow(FLOW, x, jnp.float32(1), jnp.float32(0)), atol=1e-5)
    one = sample(solvers.euler(), FLOW, FlowMap(exact), jax.random.key(0), x, times)
    assert jnp.abs(one - drawn).max() > 0.1


def test_the_denoiser_of_a_map_is_that_of_its_velocity_and_stays_a_map_under_a_condition():
    x, t, s = states()
    np.testing.assert_allclose(FlowMap(exact)(x, t), DATA.denoiser(FLOW)(x, t), atol=1e-5)
    shifted = FlowMap(lambda x, t, s, cond: exact(x, t, s) + cond["shift"])
    bound = parameterizations.bound_to(shifted, {"shift": jnp.float32(2)})
    np.testing.assert_allclose(bound.to(x, t, s), x - bcast(t - s, x) * (exact(x, t, s) + 2), atol=1e-5)


def test_the_solver_refuses_another_denoiser():
    with pytest.raises(ValueError, match="FlowMap"):
        sample(
            solvers.flow_map(), FLOW, DATA.denoiser(FLOW), jax.random.key(0), jnp.ones((1, 2)), jnp.array([1.0, 0.0])
        )


def spread(process, key, num):
    return jnp.linspace(0.1, 0.9, num), jnp.ones(num)


def uniform(process, key, num):
    return jax.random.uniform(key, (num,), minval=0.05), jnp.ones(num)


def test_without_gaps_it_is_flow_matching_in_loss_and_gradient():
    """The times are fixed, and both draw the same noise from the same key."""
    weights = {"w": jax.random.normal(jax.random.key(2), (2, 2)), "b": jnp.array([0.3, -0.2])}
    x_0 = DATA.sample(jax.random.key(3), 16)

    def apply(params, x, c_noise, cond=None, *, key=None):
        return jnp.tanh(x @ params["w"]) + bcast(c_noise, x) * params["b"]

    matching = denoising_loss(
        apply,
        parameterizations.velocity_prediction(parameterizations.unit_time_label),
        FLOW,
        weightings.velocity_matching(),
        spread,
    )
    key = jax.random.key(4)
    eps = jax.random.normal(jax.random.split(key)[1], x_0.shape)

    def ours(params):
        u = lambda x, t, s, cond=None: apply(params, x, t)
        return mean_flow(ratio=0.0, power=0.0).loss(u, u, spread, FLOW, key, Rows(x_0))[0]

    def theirs(params):
        return matching(params, key, x_0, eps=eps)[0]

    np.testing.assert_allclose(ours(weights), theirs(weights), rtol=1e-4)
    gradients = [jax.grad(lambda p, f=f: f(p).mean())(weights) for f in (ours, theirs)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *gradients)


def test_the_weight_is_the_papers_for_power_one():
    """S / (S + epsilon) of the sum over dimensions, whose gradient is that of S over a constant."""
    x_0 = DATA.sample(jax.random.key(3), 8)
    u = lambda x, t, s, cond=None: jnp.zeros_like(x)
    plain, weighted = (
        mean_flow(ratio=0.0, power=power).loss(u, u, spread, FLOW, jax.random.key(4), Rows(x_0))[0]
        for power in (0.0, 1.0)
    )
    total = plain * x_0.shape[1]
    np.testing.assert_allclose(weighted, total / (total + 0.01), rtol=1e-5)


def point(x, t, s, cond=None):
    """The mean velocity of the flow to the point (1, -2), the same along each path."""
    return (x - jnp.array([1.0, -2.0])) / bcast(jnp.broadcast_to(t, x.shape[:1]), x)


@pytest.mark.parametrize("objective", [mean_flow(ratio=0.7, power=0.0), shortcut(num_steps=8, every=2, clip=100.0)])
def test_an_exact_map_of_a_point_has_no_loss_and_no_gradient(objective):
    rows = Rows(jnp.broadcast_to(jnp.array([1.0, -2.0]), (64, 2)))

    def loss(offset):
        u = lambda x, t, s, cond=None: point(x, t, s) + offset * jnp.sin(x)
        return objective.loss(u, point, uniform, FLOW, jax.random.key(0), rows)[0].mean()

    value, gradient = jax.value_and_grad(loss)(0.0)
    assert value < 1e-8
    assert abs(gradient) < 1e-4
    assert loss(0.1) > 1e-4


@functools.cache
def gradient_at_the_exact_map(own=True):
    """Mean and standard error of the gradient of MeanFlow's loss in directions about the exact map of DATA."""
    num = 2**14
    x_0 = DATA.sample(jax.random.key(5), num)

    def loss(theta, key, x_0):
        def u(x, t, s, cond=None):
            features = jnp.stack([jnp.ones_like(x), x, bcast(t - s, x) * x, bcast(t, x) * jnp.sin(x)])
            return exact(x, t, s) + jnp.tensordot(theta, features, 1)

        def frozen(x, t, s, cond=None):  # does not depend on s: no flow map
            return exact(x, t, t) + jnp.tensordot(theta, jnp.stack([jnp.ones_like(x), x, x, x]), 1)

        objective = mean_flow(ratio=1.0, power=0.0)
        return objective.loss(u if own else frozen, u, uniform, FLOW, key, Rows(x_0[None]))[0][0]

    keys = jax.random.split(jax.random.key(6), num)
    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(jnp.zeros(4), keys, x_0)
    return gradients.mean(0), gradients.std(0) / num**0.5


def test_the_exact_map_is_a_fixed_point_although_the_tangent_is_of_single_pairs():
    mean, error = gradient_at_the_exact_map()
    assert jnp.all(jnp.abs(mean) < 5 * error)


def test_the_velocity_in_the_place_of_the_mean_velocity_is_none():
    mean, error = gradient_at_the_exact_map(own=False)
    assert jnp.any(jnp.abs(mean) > 10 * error)


@pytest.mark.parametrize("objective", [mean_flow(ratio=0.5), shortcut(num_steps=8, every=2)])
def test_the_loss_of_a_row_does_not_depend_on_the_others(objective):
    x_0 = DATA.sample(jax.random.key(3), 16)
    u = lambda x, t, s, cond=None: jnp.sin(x) + bcast(t - s, x)
    losses = [objective.loss(u, u, uniform, FLOW, jax.random.key(4), Rows(x))[0] for x in (x_0, x_0.at[5:].set(3.0))]
    np.testing.assert_allclose(losses[0][:5], losses[1][:5], rtol=1e-5)
    assert jnp.abs(losses[0][5:] - losses[1][5:]).max() > 1e-2


def test_the_fraction_of_rows_with_a_gap():
    u = lambda x, t, s, cond=None: jnp.broadcast_to(bcast(t - s, x), x.shape)
    seen = []

    def counted(x, t, s, cond=None):
        seen.append((t, s))
        return u(x, t, s)

    rows = Rows(jnp.zeros((4096, 2)))
    with jax.disable_jit():
        mean_flow(ratio=0.25).loss(counted, counted, uniform, FLOW, jax.random.key(0), rows)
    t, s = (np.asarray(getattr(a, "primal", a)) for a in seen[0])
    assert (t >= s).all()
    assert np.mean(t > s) == pytest.approx(0.25, abs=0.03)


def test_the_target_is_guided_except_where_the_condition_was_dropped():
    """omega v + (1 - omega - kappa) u(null) + kappa u(cond), with constants for u."""
    x_0, key = DATA.sample(jax.random.key(3), 6), jax.random.key(4)
    u = lambda x, t, s, cond: jnp.broadcast_to(bcast(cond["label"], x), x.shape)
    dropped = jnp.array([True, False] * 3)
    cond = {"label": jnp.where(dropped, 0.0, 2.0)}
    rows = Rows(x_0, cond=cond, full={"label": jnp.full(6, 2.0)}, null={"label": jnp.zeros(6)}, dropped=dropped)
    objective = mean_flow(ratio=0.0, power=0.0, omega=1.5, kappa=0.25, t_max=0.7)
    found = objective.loss(u, u, spread, FLOW, key, rows)[0]
    t = spread(FLOW, None, 6)[0]
    _, v = flow_map.straight(jax.random.split(key)[1], x_0, t)
    guided = 1.5 * v + 0.25 * 2.0
    steered = jnp.where((~dropped & (t <= 0.7))[:, None], guided, v)
    np.testing.assert_allclose(found, jnp.mean((cond["label"][:, None] - steered) ** 2, axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "values", "named"),
    [
        (mean_flow, {"ratio": 1.5}, "ratio"),
        (mean_flow, {"power": -1.0}, "power"),
        (mean_flow, {"epsilon": 0.0}, "epsilon"),
        (mean_flow, {"omega": 0.0}, "omega"),
        (mean_flow, {"kappa": 1.0}, "kappa"),
        (mean_flow, {"t_min": 0.9, "t_max": 0.1}, "t_min"),
        (shortcut, {"num_steps": 12}, "num_steps"),
        (shortcut, {"every": 1}, "every"),
        (shortcut, {"clip": 0.0}, "clip"),
    ],
)
def test_numbers_out_of_range_are_refused(make, values, named):
    with pytest.raises(ValueError, match=named):
        make(**values)
