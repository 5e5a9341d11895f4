"""Solvers with noise against diffusers' schedulers: with the same draws, final samples agree to 2e-5, relative.

What differs, why, and how each is brought to the same numbers (besides what `test_schedulers_ode` says of all):

- DDPM (`ancestral`, fixed_small = beta_tilde, fixed_large = beta), DDIM with eta = 1 (`ddim`), Euler ancestral
  (`ancestral`, which it is in x / alpha): nothing.
- LCM (`consistency`): c_skip of the boundary, below 1e-6 at these timesteps, is in the scheduler and belongs to the
  parameterization here.
- DPM multistep SDE and EDM DPM multistep SDE (`sde_dpm_solver_pp`): nothing in orders 1 and 2; there is no order 3
  here, whose second difference has half its weight there.
- DPM multistep `sde-dpmsolver` of order 1 is `seeds(1)`.
- EDM Euler with churn (`euler` with `EDM`): the network is evaluated before noise is added, so the scheduler combines
  x at the raised level with an output for the level below. Algorithm 2 of arXiv:2206.00364 evaluates at the raised
  level, as here; compared by handing the scheduler that output.
- DPM SDE (`seeds(2, "x0")`): each step has two draws of a Brownian path in sigma, for its half and for its whole,
  which are correlated otherwise than the noises of the exact solution at the same times; compared by handing it the
  latter. The path itself (torchsde) is not needed then.
- score-SDE VE (`predictor_corrector(reverse_diffusion(), ...)`): it corrects before it predicts and returns the last
  mean without noise; the step size of its corrector is a ratio of mean norms of the batch, that of `langevin_corrector`
  does not depend on x; compared with a corrector of their step size. The network is told sigma_min (sigma_max /
  sigma_min)^t at times that end at 1e-5, while steps go between levels that end at t = 0. Compared with one row at a
  time, in its order, at the levels of the steps.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.parameterizations import score
from diffusion_jax.processes import EDM, VE, row_keys, row_normal
from diffusion_jax.solvers import grids
from tests.parity import relative_error, schedulers
from tests.parity.test_schedulers_ode import DPM, TOLERANCE, compare, make, sigmas_of

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True), schedulers.full_order():
        yield


def noises(*data, rows=schedulers.BATCH):
    """step -> the noise that `sampling.sample` with key 0 gives a solver in it, from its keys folded with `data`."""

    @jax.jit
    def noise(step):
        keys = row_keys(row_keys(jax.random.key(0), jnp.arange(rows)), step)
        for number in data:
            keys = row_keys(keys, number)
        return row_normal(keys, jnp.zeros((rows, 4)))

    return noise


@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize(("variance_type", "variance"), [("fixed_small", "beta_tilde"), ("fixed_large", "beta")])
def test_ddpm(variance_type, variance, betas):
    process, table = schedulers.table(betas)
    scheduler = make("DDPMScheduler", **table, clip_sample=False, variance_type=variance_type)
    scheduler.set_timesteps(50)
    times = grids.discrete("leading")(process, 50)
    levels = schedulers.ratios(scheduler)
    compare(scheduler, solvers.ancestral(variance), process, levels, times=times, noises=noises())


@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_latent_consistency(num_steps):
    process, table = schedulers.table("scaled_linear")
    scheduler = make("LCMScheduler", **table)
    scheduler.set_timesteps(num_steps)
    times = grids.latent_consistency()(process, num_steps)
    levels = schedulers.ratios(scheduler)
    compare(scheduler, solvers.consistency(), process, levels, times=times, noises=noises())


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise(eta):
    process, table = schedulers.table()
    scheduler = make("DDIMScheduler", **table, clip_sample=False)
    scheduler.set_timesteps(20)
    times = grids.discrete("leading")(process, 20)
    levels = schedulers.ratios(scheduler)
    compare(scheduler, solvers.ddim(eta), process, levels, times=times, noises=noises(), eta=eta)


def test_euler_ancestral():
    process, table = schedulers.table("scaled_linear")
    scheduler = make("EulerAncestralDiscreteScheduler", **table)
    scheduler.set_timesteps(20)
    compare(scheduler, solvers.ancestral(), process, sigmas_of(scheduler), scaled=True, noises=noises())


@pytest.mark.parametrize(
    ("arguments", "solver", "num_steps"),
    [
        (dict(solver_order=1), solvers.sde_dpm_solver_pp(1), 20),
        (dict(), solvers.sde_dpm_solver_pp(2), 20),
        (dict(solver_type="heun"), solvers.sde_dpm_solver_pp(2, "heun"), 20),
        (dict(final_sigmas_type="sigma_min", lower_order_final=False), solvers.sde_dpm_solver_pp(2), 10),
        (dict(use_karras_sigmas=True), solvers.exponential_sde(1.0, 1), 20),
    ],
    ids=["1", "2M", "2M-heun", "2M-sigma_min", "1-karras"],
)
def test_dpm_solver_multistep_sde(arguments, solver, num_steps):
    if arguments.get("use_karras_sigmas"):
        arguments = arguments | dict(solver_order=1)
    process, table = schedulers.table("scaled_linear")
    scheduler = make(DPM, **table, algorithm_type="sde-dpmsolver++", **arguments)
    scheduler.set_timesteps(num_steps)
    compare(scheduler, solver, process, sigmas_of(scheduler), noises=noises())


def test_dpm_solver_sde_of_order_one_is_seeds_1():
    process, table = schedulers.table()
    options = dict(algorithm_type="sde-dpmsolver", solver_order=1, final_sigmas_type="sigma_min")
    scheduler = make(DPM, **table, **options)
    scheduler.set_timesteps(20)
    compare(scheduler, solvers.seeds(1), process, sigmas_of(scheduler), noises=noises(0))


@pytest.mark.parametrize("order", [1, 2])
def test_edm_dpm_solver_sde(order):
    scheduler = make("EDMDPMSolverMultistepScheduler", solver_order=order, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(18)
    sigmas = sigmas_of(scheduler)
    process, x = EDM(sigma_min=0.0, sigma_max=sigmas[0]), sigmas[0] * schedulers.start()
    theirs = schedulers.run_scheduler(scheduler, x, network=schedulers.predict_edm, noises=noises())
    ours = schedulers.run_solver(solvers.sde_dpm_solver_pp(order), process, sigmas / sigmas[0], x)
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("options", [dict(), dict(s_min=0.05, s_max=50.0, s_noise=1.003)])
def test_edm_euler_with_churn(options):
    torch = pytest.importorskip("torch")
    churn, num_steps, noise = 4.0, 18, noises()
    scheduler = make("EDMEulerScheduler")
    scheduler.set_timesteps(num_steps)
    sigmas = sigmas_of(scheduler)
    theirs = {{"s_min": "s_tmin", "s_max": "s_tmax"}.get(name, name): value for name, value in options.items()}
    x = torch.tensor(sigmas[0] * schedulers.start())
    with schedulers.injected(scheduler, lambda k: noise(steps[k])):
        steps = [k for k in range(num_steps) if options.get("s_min", 0) <= sigmas[k] <= options.get("s_max", np.inf)]
        for k, timestep in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(x, timestep)
            raised, seen = sigmas[k], x.numpy()
            if k in steps:
                raised = sigmas[k] * (1 + churn / num_steps)
                seen = seen + (raised**2 - sigmas[k] ** 2) ** 0.5 * options.get("s_noise", 1.0) * np.asarray(noise(k))
            output = torch.tensor(np.array(schedulers.predict_edm(seen / (raised**2 + 0.25) ** 0.5, raised)))
            x = scheduler.step(output, timestep, x, s_churn=churn, **theirs).prev_sample
    process = EDM(sigma_min=0.0, sigma_max=2 * sigmas[0])  # room above the first level
    solver = solvers.euler(churn, num_steps=num_steps, **options)
    ours = schedulers.run_solver(solver, process, sigmas / sigmas[0] / 2, sigmas[0] * schedulers.start())
    assert relative_error(ours, x.numpy()) < TOLERANCE


def test_dpm_solver_sde(monkeypatch):
    if not pytest.importorskip("diffusers").utils.is_torchsde_available():
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    torch, num_steps = pytest.importorskip("torch"), 20
    process, table = schedulers.table("scaled_linear")
    scheduler = DPMSolverSDEScheduler(**table)
    scheduler.set_timesteps(num_steps)
    held = sigmas_of(scheduler)
    sigmas = np.append(held[0], held[1::2])  # it holds inner ones twice
    times = schedulers.times_of(process, sigmas)
    sigmas = np.asarray(process.sigma(times) / process.alpha(times))
    scheduler.sigmas = torch.tensor(np.concatenate([sigmas[:1], sigmas[1:-1].repeat(2), sigmas[-1:]]))
    middles = np.sqrt(sigmas[:-2] * sigmas[1:-1])
    levels = np.append(np.stack([sigmas[:-2], middles], axis=1).ravel(), sigmas[-2])
    first, second = noises(0), noises(1)

    def draw(call):
        """The noise of half a step, then the exact one of the whole: variances e^-h (1 - e^-h) and 1 - e^-h."""
        step, whole = divmod(call, 2)
        if not whole:
            return np.asarray(first(step))
        ratio = sigmas[step + 1] / sigmas[step]  # e^-h
        kept, added = ratio * (1 - ratio), 1 - ratio
        return np.asarray(kept**0.5 * first(step) + added**0.5 * second(step)) / (1 - ratio**2) ** 0.5

    calls = iter(range(2 * num_steps))
    scheduler.noise_sampler = lambda *_: torch.tensor(draw(next(calls)))
    x = schedulers.start()
    theirs = schedulers.run_scheduler(scheduler, x * (1 + sigmas[0] ** 2) ** 0.5, levels=levels)
    ours = schedulers.run_solver(solvers.seeds(2, "x0"), process, times, x)
    assert relative_error(ours, theirs) < TOLERANCE


def test_score_sde_ve():
    torch = pytest.importorskip("torch")
    num_steps, snr, sigma_max = 20, 0.15, 10.0
    scheduler = make("ScoreSdeVeScheduler", snr=snr, sigma_min=0.01, sigma_max=sigma_max)
    scheduler.set_timesteps(num_steps)
    scheduler.set_sigmas(num_steps)
    process = VE(sigma_min=0.01, sigma_max=sigma_max)
    D, times = schedulers.DATA.denoiser(process), jnp.linspace(1.0, 0.0, num_steps)
    gradient = jax.jit(lambda x, t: score(process, D, x, t))
    predicted, corrected = noises(0, rows=1), noises(1, 0, rows=1)
    draws = [predicted(num_steps), *(f(k) for k in range(num_steps) for f in (predicted, corrected))]
    x_T = sigma_max * schedulers.start()[:1]
    x = torch.tensor(x_T)
    with schedulers.injected(scheduler, draws.__getitem__):
        for t, timestep in zip(times, scheduler.timesteps, strict=True):
            x = scheduler.step_correct(torch.tensor(np.array(gradient(x.numpy(), t))), x).prev_sample
            output = torch.tensor(np.array(gradient(x.numpy(), t)))
            x, mean = scheduler.step_pred(output, timestep, x, return_dict=False)

    def corrector(process, D, keys, x, t):
        gradient, noise = score(process, D, x, t), row_normal(keys_of_step(keys), x)
        size = 2 * (snr * jnp.linalg.norm(noise) / jnp.linalg.norm(gradient)) ** 2
        return x + size * gradient + jnp.sqrt(2 * size) * noise

    keys_of_step = lambda keys: row_keys(keys, 0)
    solver = solvers.predictor_corrector(solvers.reverse_diffusion(), corrector)
    keys = row_keys(row_keys(jax.random.key(0), jnp.arange(1)), num_steps)
    ours = schedulers.run_solver(solver, process, times, corrector(process, D, keys, jnp.asarray(x_T), times[0]))
    assert relative_error(D(jnp.asarray(ours), times[-1]), mean.numpy()) < TOLERANCE
