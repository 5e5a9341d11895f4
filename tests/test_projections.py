"""Projected diffusion against closed forms: samplers, losses and likelihoods of data in a subspace of each row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations, solvers
from diffusion_jax.likelihood import log_prob
from diffusion_jax.losses import denoising_loss, weightings
from diffusion_jax.networks.conditions import Conditions, label, structure
from diffusion_jax.parameterizations import FlowMap, LearnedVariance, eps_prediction
from diffusion_jax.processes import VE, VP, bcast, row_normal
from diffusion_jax.projections import (
    Projector,
    log_prob_within,
    on_nodes,
    on_subspace,
    projected,
    whole,
    without_mean,
)
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.systems import Diffusion
from diffusion_jax.types import Solver
from tests.oracles import Gaussian
from tests.solvers.cases import CASES, RELATIVES

N, C = 5, 3  # points and coordinates
NODES = jnp.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
P = Projector(nodes=NODES, centred=C)
KEY = jax.random.key(0)
LINEAR = {**CASES, **RELATIVES}


def clouds(key, rows=4, points=N):
    return jax.random.normal(key, (rows, points, C))


def smooth(x, t, cond=None):
    """A denoiser that is not linear, mixes points and answers for positions that do not exist, too."""
    return jnp.tanh(x) + 0.3 * jnp.mean(x, 1, keepdims=True) + 0.5 * bcast(jnp.asarray(t), x)


def within(solver: Solver) -> Solver:
    """`solver` in the subspace: the state and so the noise are projected at every step."""

    def step(process, D, keys, x, t, s, carry):
        x, carry = solver.step(process, D, keys, P(x), t, s, carry)
        return P(x), carry

    return solver._replace(init=lambda x: solver.init(P(x)), step=step)


def test_the_projector_is_an_orthogonal_projection_of_its_rank():
    x, y = clouds(KEY), clouds(jax.random.key(1))
    np.testing.assert_allclose(P(P(x)), P(x), atol=1e-6)
    np.testing.assert_allclose(jnp.sum(P(x) * y, (1, 2)), jnp.sum(x * P(y), (1, 2)), atol=1e-5)
    for row in range(len(NODES)):
        own = Projector(nodes=NODES[row : row + 1], centred=C)
        matrix = jax.jacfwd(lambda v, own=own: own(v.reshape(1, N, C)).ravel())(jnp.zeros(N * C))
        assert np.linalg.matrix_rank(np.asarray(matrix)) == P.dof(x)[row]
    assert P.dof(x).tolist() == [12, 6, 3, 0]
    assert Projector(nodes=NODES).dof(x).tolist() == [15, 9, 6, 0]
    with pytest.raises(ValueError, match=r"nodes have the shape \(4, 5\); x of \(4, 6, 3\) needs \(4, 6\)"):
        P(clouds(KEY, points=6))
    with pytest.raises(ValueError, match="centred is 4; it must be in 0"):
        Projector(nodes=NODES, centred=4)(x)


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in RELATIVES)])
def test_every_linear_solver_commutes_with_the_projection(name):
    """Projecting the sample of the whole space is the sampler of the subspace, on the same noise, to rounding.

    The whole space adds noise of its own, which no sample is without where the last sigma is not 0.
    """
    case = LINEAR[name]
    grid = case.grid if case.process is not VP() else grids.uniform_log_snr(1e-3, 0.99)
    times = grid(case.process, 6)
    x_T = case.process.sigma(times[0]) * clouds(jax.random.key(2))
    run = functools.partial(sample, process=case.process, D=projected(smooth, P), key=KEY, x_T=x_T, times=times)
    whole_space, subspace = run(case.solver), run(within(case.solver))
    # Of eps, x less alpha D over sigma, the fourth-order differences have more rounding.
    tolerance = 5e-4 if name == "unipc_4_eps" else 3e-5
    np.testing.assert_allclose(P(whole_space), subspace, atol=tolerance * max(float(jnp.abs(subspace).max()), 1))
    assert on_subspace(case.solver, P) is case.solver


def small_and_padded(solver, project: bool):
    """The same two clouds drawn alone and with 60 more positions that do not exist, as deep as the first."""
    process, times = VP(), jnp.array([0.9, 1e-2])
    alone, padding = clouds(jax.random.key(3), 2), clouds(jax.random.key(4), 2, 60)
    drawn = []
    for x in (alone, jnp.concatenate([alone, padding], 1)):
        nodes = jnp.broadcast_to(jnp.arange(x.shape[1]) < N, x.shape[:2])
        own = Projector(nodes=nodes, centred=C)

        def D(x, t, cond=None, own=own):
            return jnp.tanh(3 * own(x))

        chosen = on_subspace(solver, own) if project else solver
        drawn.append(sample(chosen, process, projected(D, own), KEY, x, times)[:, :N])
    return np.abs(Projector(nodes=jnp.ones((2, N), bool), centred=C)(drawn[0] - drawn[1])).max()


def test_adaptive_solvers_take_their_norms_in_the_subspace_when_given_the_projection():
    """Positions that do not exist change nothing then; without the projection they change the steps."""
    loose = solvers.adaptive_ode("heun", rtol=3e-2, atol=3e-2)
    assert small_and_padded(loose, project=True) < 1e-5
    assert small_and_padded(loose, project=False) > 1e-3
    assert on_subspace(solvers.adaptive_sde(), P).within is None


def test_an_adaptive_sde_within_a_subspace_stays_in_it():
    process, times = VE(sigma_min=0.1, sigma_max=2.0), jnp.array([1.0, 0.0])
    x_T = 2 * clouds(KEY)
    solver = on_subspace(solvers.adaptive_sde(rtol=0.1, atol=0.1), P)
    x = sample(solver, process, projected(smooth, P), KEY, x_T, times)
    np.testing.assert_allclose(x, P(x), atol=1e-5)
    assert np.isfinite(x).all()


def test_what_cannot_be_projected_is_refused():
    unknown = Solver(init=lambda x: (), step=lambda *args: args, adaptive=True)
    with pytest.raises(ValueError, match="norms over whole rows"):
        on_subspace(unknown, P)
    learned = LearnedVariance(lambda x, t, cond=None: (x, x))
    with pytest.raises(ValueError, match="a learned variance differs between entries"):
        projected(learned, P)
    x_0, _ = projected(learned, Projector(nodes=NODES)).both(jnp.ones((4, N, C)), 0.5)
    assert not x_0[-1].any() and isinstance(projected(learned, Projector(nodes=NODES)), LearnedVariance)
    with pytest.raises(ValueError, match="a flow map"):
        projected(FlowMap(lambda x, t, s, cond=None: x), P)


def test_deterministic_samples_of_rotated_noise_are_rotated():
    """With an equivariant denoiser. A denoiser that favours an axis breaks it."""
    axis = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (3, 3)))[0]
    pooled = lambda x: jnp.mean(jnp.sum(x**2, -1, keepdims=True), 1, keepdims=True)
    equivariant = lambda x, t, cond=None: x / (1 + pooled(x))
    x_T, times = clouds(KEY), grids.uniform_log_snr(1e-3, 0.99)(VP(), 8)

    def gap(D, solver):
        run = lambda x: P(sample(solver, VP(), projected(D, P), KEY, x, times))
        return float(jnp.abs(run(x_T @ axis) - run(x_T) @ axis).max())

    for solver in (solvers.ddim(), solvers.heun()):
        assert gap(equivariant, solver) < 1e-5
        assert gap(lambda x, t, cond=None: jnp.tanh(x), solver) > 1e-2


def test_the_loss_projects_and_counts_degrees_of_freedom():
    """It is that of the same points without padding, whatever the network says of positions that do not exist."""
    process, D = VP(), eps_prediction()

    def apply(params, x, c_noise, cond, *, key=None):
        return jnp.sin(2 * x) + 1.0 * (x == 0)

    loss = denoising_loss(apply, D, process, weightings.simple())
    x = clouds(KEY, 1)
    eps = clouds(jax.random.key(6), 1)
    pad = lambda a, value: jnp.concatenate([a, jnp.full((1, 7, C), value)], 1)
    nodes = (jnp.arange(12) < N)[None]
    alone, _ = loss({}, KEY, x, eps=eps, projector=Projector(nodes=nodes[:, :N], centred=C))
    padded, _ = loss({}, KEY, pad(x, 3.0), eps=pad(eps, -2.0), projector=Projector(nodes=nodes, centred=C))
    np.testing.assert_allclose(alone, padded, rtol=1e-5)
    assert abs(loss({}, KEY, pad(x, 3.0), eps=pad(eps, -2.0))[0] - alone) > 0.1
    with pytest.raises(ValueError, match="where and projector are given"):
        loss({}, KEY, x, where=jnp.ones((1, N, 1)), projector=Projector(nodes=nodes[:, :N]))


def test_the_loss_of_pure_noise_is_one_per_degree_of_freedom():
    """A network that is 0 errs by |P eps|^2 / dof, whose mean is 1; over all entries it would be dof / d."""
    loss = denoising_loss(lambda p, x, c, cond, *, key=None: 0 * x, eps_prediction(), VP(), weightings.simple())
    x = jnp.zeros((4000, N, C))
    nodes = jnp.broadcast_to(NODES[1:2], (4000, N))
    values, _ = loss({}, KEY, x, projector=Projector(nodes=nodes, centred=C))
    assert abs(values.mean() - 1) < 4 * np.sqrt(2 / 6 / 4000)
    half, _ = denoising_loss(
        lambda p, x, c, cond, *, key=None: 0 * x, eps_prediction(), VP(), weightings.simple(), reduce="half_sum"
    )({}, KEY, x, projector=Projector(nodes=nodes, centred=C))
    np.testing.assert_allclose(half, values * 6 / 2, rtol=1e-5)


@pytest.mark.optimized
def test_likelihood_of_a_gaussian_cloud_without_mean():
    """The identity of `log_prob_within` against the closed form in the subspace of 2 points in 3 dimensions."""
    own, t_min, scale = Projector(nodes=jnp.ones((1, 2), bool), centred=3), 1e-2, 0.7
    process = VE(sigma_min=0.05, sigma_max=20.0)

    def D(x, t, cond=None):  # of N(0, scale^2 P)
        return bcast(scale**2 / (scale**2 + process.sigma(jnp.asarray(t)) ** 2), x) * x

    x = own(clouds(KEY, 3, 2))
    full = log_prob(process, projected(D, own), KEY, x, trace="exact", t_min=t_min, rtol=1e-6, atol=1e-6)
    found = log_prob_within(full.nats, process, x, own, t_min)
    variance = scale**2 + process.sigma(jnp.float32(t_min)) ** 2
    exact = -jnp.sum(x**2, (1, 2)) / (2 * variance) - 1.5 * jnp.log(2 * jnp.pi * variance)
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert abs(full.nats - exact).min() > 1


@pytest.mark.optimized
def test_conditional_law_of_a_gaussian_cloud_given_some_of_its_points():
    """Points that are given are left out by P, and D reads them: mean and variance of the rest are exact."""
    process, given = VP(), jnp.array([1.5, -0.5])
    covariance = jnp.array([[1.0, 0.6, 0.8], [0.6, 1.0, 0.7], [0.8, 0.7, 1.0]])
    gain = covariance[2, :2] @ jnp.linalg.inv(covariance[:2, :2])
    mean, variance = gain @ given, 1 - gain @ covariance[:2, 2]
    law = Gaussian(mean=mean[None], covariance=variance[None, None])
    nodes = jnp.array([[False, False, True]])
    rows = 4000

    def D(x, t, cond=None):
        free = law.denoiser(process)(x[:, 2], jnp.broadcast_to(t, x.shape[:1]))
        return jnp.concatenate([x[:, :2] + 7, free[:, None]], 1)

    own = Projector(nodes=nodes)
    x_T = row_normal(jax.random.split(KEY, rows), jnp.zeros((rows, 3, 1)))
    times = grids.uniform_log_snr(1e-3, 1.0)(process, 30)
    x = own(sample(solvers.heun(), process, projected(D, own), KEY, x_T, times))[..., 0]
    assert not x[:, :2].any()
    assert abs(x[:, 2].mean() - mean) < 4 * np.sqrt(variance / rows)
    assert abs(x[:, 2].var() / variance - 1) < 0.1


def test_structures_pass_dropout_and_guidance():
    conditions = Conditions({"label": label(4), "nodes": structure((N,), "bool")})
    cond = {"label": jnp.arange(4), "nodes": NODES}
    dropped = conditions.dropped(KEY, cond, 0.999)
    assert (dropped["label"] == 4).all() and (dropped["nodes"] == NODES).all()
    null = conditions.nulled(cond)
    assert (null["nodes"] == NODES).all() and (null["label"] == 4).all()


def system(project=whole, solver=solvers.ancestral()) -> Diffusion:
    conditions = Conditions({"nodes": structure((N,), "bool")})
    return Diffusion(
        init_network=lambda key: {"a": jnp.ones(())},
        apply=lambda params, x, c_noise, cond, *, key=None: params["a"] * jnp.tanh(x) + 1.0,
        process=VP(),
        param=parameterizations.v_prediction(),
        loss_fn=None,
        solver=solver,
        grid=grids.uniform(),
        steps=4,
        shape=(N, C),
        network_conditions=conditions,
        project=project,
    )


@pytest.mark.parametrize("solver", [solvers.ancestral(), solvers.adaptive_ode("heun", rtol=0.1, atol=0.1)])
def test_a_system_draws_in_the_range_of_its_projection(solver):
    cond = {"nodes": NODES}
    model = system(on_nodes("nodes", centred=C), solver)
    x = model.draw(model.init(KEY), KEY, jnp.arange(4), cond)["samples"]
    np.testing.assert_allclose(x, P(x), atol=1e-5)
    assert np.abs(x[0]).max() > 0.1
    free = system(solver=solver)
    assert np.abs(free.draw(free.init(KEY), KEY, jnp.arange(4), cond)["samples"][-1]).max() > 0.1


def test_sets_of_equal_size_need_no_condition():
    own = without_mean(N)(None)
    np.testing.assert_allclose(own(clouds(KEY)).mean(1), 0, atol=1e-6)
    assert whole({"nodes": NODES}) is None
