"""Deterministic solvers against diffusers' schedulers: final samples agree to 2e-5, relative, on the same noise levels.

What differs, why, and how each is brought to the same numbers. All of theirs keep tables and sigmas in float32 and tell
the network a rounded timestep; here both sides evaluate the same function at the same sigma / alpha, ours in float64
(which theirs must agree with to 1e-3: the smallest loses digits to 1 - alpha^2 in float32).

- DDIM (`ddim`): with `linspace` spacing it steps to t - T // n, which is not where it evaluates the network next;
  compared with `leading` and `trailing`.
- DDIM inverse (`ddim` with rising times): its pipeline evaluates eps at the level a step goes to, with the x of the
  level it comes from; here, and in the comparison, both belong to where the step starts.
- PNDM (`pndm`; without Runge-Kutta steps `plms`): its half steps are whole timesteps, ours exact halves; the same if
  T / n is even.
- LMS (`lms`), Euler (`ddim`, which is Euler's rule in sigma / alpha): they work on x / alpha.
- Heun: `heun` is in the process's own time. Theirs is in sigma / alpha: `heun` with `EDM(sigma_min=0)`.
- DPM multistep (`dpm_solver_pp`, `dpm_solver`): in order 3, as in the authors' code, the second difference has half the
  weight with which a step is exact for parabolas, which leaves order 2; compared with the full weight.
- DPM single-step: its inner points are points of its own grid, so a step of ours is `order` of theirs; compared where
  log-SNR is uniform. For order 3 `midpoint` it also takes the midpoint rule to the second inner point, where the paper
  has the integral; compared with `heun`.
- Multistep solvers: theirs lower the order of the last steps, of few or of all solves, ours that of steps much longer
  than those before them; compared without either.
- UniPC (`unipc`): it gives NaN in a step to sigma = 0 at full order; compared with a last sigma above it.
- DEIS (`deis`): its coefficients lose digits in float32.
- EDM DPM multistep (`dpm_solver_pp` with `EDM(sigma_min=0)`): order 3 as above.
- Flow-match Euler (`euler` with `RectifiedFlow`): nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.processes import EDM, RectifiedFlow
from diffusion_jax.solvers import grids
from tests.parity import relative_error, schedulers

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True), schedulers.full_order():
        yield


def make(name, **arguments):
    return getattr(pytest.importorskip("diffusers"), name)(**arguments)


def corrected(name, **arguments):
    """The scheduler `name`, whose third-order step gives the second difference its full weight."""
    torch = pytest.importorskip("torch")
    base = getattr(pytest.importorskip("diffusers"), name)

    class Corrected(base):
        def multistep_dpm_solver_third_order_update(self, outputs, *args, sample, noise=None, **kwargs):
            x = super().multistep_dpm_solver_third_order_update(outputs, *args, sample=sample, **kwargs)
            pairs = [self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index + k]) for k in (1, 0, -1, -2)]
            log_snr = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in pairs]
            h = log_snr[0] - log_snr[1]
            r = [(log_snr[1] - log_snr[2]) / h, (log_snr[2] - log_snr[3]) / h]
            first = [(outputs[-1] - outputs[-2]) / r[0], (outputs[-2] - outputs[-3]) / r[1]]
            second = (first[0] - first[1]) / (r[0] + r[1])
            z, scale = (-h, pairs[0][0]) if "++" in self.config.algorithm_type else (h, pairs[0][1])
            return x - scale * ((torch.exp(z) - 1 - z) / z**2 - 0.5) * second

    Corrected.__module__ = base.__module__
    return Corrected(**arguments)


def compare(scheduler, solver, process, sigmas, *, scaled=False, times=None, **options):
    """Both final samples from the same noise, at sigma / alpha = `sigmas` or at our `times`.

    `scaled` schedulers work on x / alpha.
    """
    torch = pytest.importorskip("torch")
    if times is None:
        times = schedulers.times_of(process, sigmas)
        exact = np.asarray(process.sigma(times) / process.alpha(times))
        np.testing.assert_allclose(sigmas, exact, rtol=1e-3)
        sigmas = exact
        scheduler.sigmas = torch.tensor(exact)
    x = schedulers.start()
    alpha = 1 / np.sqrt(1 + sigmas[0] ** 2)
    theirs = schedulers.run_scheduler(scheduler, x / alpha if scaled else x, **options)
    ours = schedulers.run_solver(solver, process, times, x)
    last = 1 / np.sqrt(1 + sigmas[-1] ** 2) if scaled else 1.0
    assert np.abs(theirs).max() < 10
    assert relative_error(ours / last, theirs) < TOLERANCE


def sigmas_of(scheduler):
    return scheduler.sigmas.numpy().astype(np.float64)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_ddim(betas, spacing):
    process, table = schedulers.table(betas)
    scheduler = make("DDIMScheduler", **table, clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    times = grids.discrete(spacing)(process, 20)
    compare(scheduler, solvers.ddim(), process, schedulers.ratios(scheduler), times=times)


def test_ddim_inverse():
    process, table = schedulers.table()
    scheduler = make("DDIMInverseScheduler", **table, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(20)
    left = np.maximum(scheduler.timesteps.numpy() - 50, 0)  # where each step starts
    levels = np.array([schedulers.ratio_of_table(scheduler, k) for k in left])
    times = (np.append(left, scheduler.timesteps[-1]) + 1) / 1000
    compare(scheduler, solvers.ddim(), process, levels, times=times, levels=levels)


@pytest.mark.parametrize(("skip_prk_steps", "solver"), [(True, solvers.plms()), (False, solvers.pndm())])
def test_pndm(skip_prk_steps, solver):
    process, table = schedulers.table()
    scheduler = make("PNDMScheduler", **table, skip_prk_steps=skip_prk_steps, set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    times = grids.discrete("leading")(process, 20)
    compare(scheduler, solver, process, schedulers.ratios(scheduler), times=times)


@pytest.mark.parametrize(
    ("name", "solver", "karras"),
    [
        ("LMSDiscreteScheduler", solvers.lms(), False),
        ("LMSDiscreteScheduler", solvers.lms(), True),
        ("EulerDiscreteScheduler", solvers.ddim(), False),
        ("EulerDiscreteScheduler", solvers.ddim(), True),
    ],
)
def test_solvers_in_sigma_over_alpha(name, solver, karras):
    process, table = schedulers.table("scaled_linear")
    scheduler = make(name, **table, use_karras_sigmas=karras)
    scheduler.set_timesteps(20)
    compare(scheduler, solver, process, sigmas_of(scheduler), scaled=True)


def test_heun():
    _, table = schedulers.table()
    scheduler = make("HeunDiscreteScheduler", **table)
    scheduler.set_timesteps(20)
    sigmas = np.append(sigmas_of(scheduler)[0], sigmas_of(scheduler)[1::2])  # it holds inner ones twice
    x = sigmas[0] * schedulers.start()
    theirs = schedulers.run_scheduler(scheduler, x)
    ours = schedulers.run_solver(solvers.heun(), EDM(sigma_min=0.0, sigma_max=sigmas[0]), sigmas / sigmas[0], x)
    assert relative_error(ours, theirs) < TOLERANCE


DPM = "DPMSolverMultistepScheduler"


@pytest.mark.parametrize(
    ("arguments", "solver", "num_steps"),
    [
        (dict(solver_order=1), solvers.dpm_solver_pp(1), 20),
        (dict(), solvers.dpm_solver_pp(2), 20),
        (dict(use_karras_sigmas=True), solvers.dpm_solver_pp(2), 20),
        (dict(solver_type="heun"), solvers.dpm_solver_pp(2, solver_type="heun"), 10),
        (dict(final_sigmas_type="sigma_min"), solvers.dpm_solver_pp(2), 10),
        (dict(solver_order=3), solvers.dpm_solver_pp(3), 20),
        (dict(solver_order=3), solvers.dpm_solver_pp(3), 12),
        (dict(algorithm_type="dpmsolver", solver_order=1), solvers.dpm_solver(1, "multistep"), 20),
        (dict(algorithm_type="dpmsolver"), solvers.dpm_solver(2, "multistep"), 20),
        (dict(algorithm_type="dpmsolver", solver_type="heun"), solvers.dpm_solver(2, "multistep", "heun"), 20),
        (dict(algorithm_type="dpmsolver", solver_order=3), solvers.dpm_solver(3, "multistep"), 20),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values()) or "default" if isinstance(value, dict) else None,
)
def test_dpm_solver_multistep(arguments, solver, num_steps):
    process, table = schedulers.table("scaled_linear")
    if "algorithm_type" in arguments:
        arguments = arguments | dict(final_sigmas_type="sigma_min")
    scheduler = corrected(DPM, **table, **arguments, lower_order_final=False)
    scheduler.set_timesteps(num_steps)
    compare(scheduler, solver, process, sigmas_of(scheduler))


def test_third_order_of_diffusers_needs_its_second_difference_doubled():
    """A step with D = lambda^2 in closed form: with the full weight it is exact, as published it is not."""
    torch = pytest.importorskip("torch")
    log_snr = np.array([-0.6, -0.3, 0.1, 0.5])
    integral = lambda u: np.exp(u) * (u**2 - 2 * u + 2)  # of e^lambda lambda^2
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-2 * log_snr)), 1 / np.sqrt(1 + np.exp(2 * log_snr))
    exact = sigma[3] / sigma[2] * 0.7 + sigma[3] * (integral(log_snr[3]) - integral(log_snr[2]))
    errors = []
    for build in (make, corrected):
        scheduler = build(DPM, solver_order=3)
        scheduler.sigmas, scheduler._step_index = torch.tensor(sigma / alpha), 2
        outputs = [torch.tensor(u**2) for u in log_snr[:3]]
        x = scheduler.multistep_dpm_solver_third_order_update(outputs, sample=torch.tensor(0.7))
        errors.append(abs(float(x) - exact))
    assert errors[0] > 1e-3 and errors[1] < 1e-7


@pytest.mark.parametrize(
    ("arguments", "solver"),
    [
        (dict(solver_order=2), solvers.dpm_solver_pp(2, "singlestep")),
        (dict(solver_order=2, solver_type="heun"), solvers.dpm_solver_pp(2, "singlestep", "heun")),
        (dict(solver_order=3, solver_type="heun"), solvers.dpm_solver_pp(3, "singlestep", "heun")),
        (dict(solver_order=2, algorithm_type="dpmsolver"), solvers.dpm_solver(2)),
        (
            dict(solver_order=3, algorithm_type="dpmsolver", solver_type="heun"),
            solvers.dpm_solver(3, solver_type="heun"),
        ),
    ],
    ids=["2S", "2S-heun", "3S-heun", "DPM-2", "DPM-3-heun"],
)
def test_dpm_solver_singlestep(arguments, solver):
    """On uniform log-SNR, where the scheduler's inner points, every `order` grid points, are at equal fractions."""
    torch = pytest.importorskip("torch")
    order, num_evaluations = arguments["solver_order"], 18
    process, table = schedulers.table("scaled_linear")
    scheduler = make(
        "DPMSolverSinglestepScheduler", **table, **arguments, final_sigmas_type="sigma_min", lower_order_final=False
    )
    scheduler.set_timesteps(num_evaluations)
    sigmas = np.geomspace(float(scheduler.sigmas[0]), float(scheduler.sigmas[-1]), num_evaluations + 1)
    scheduler.sigmas = torch.tensor(sigmas)
    times = schedulers.times_of(process, sigmas[::order])
    compare(scheduler, solver, process, sigmas, times=times)


@pytest.mark.parametrize(
    ("arguments", "solver", "num_steps"),
    [
        (dict(solver_order=1), solvers.unipc(1), 20),
        (dict(solver_order=2, solver_type="bh1"), solvers.unipc(2, "bh1"), 20),
        (dict(solver_order=2, predict_x0=False), solvers.unipc(2, prediction="eps"), 12),
        (dict(solver_order=3), solvers.unipc(3), 12),
        (dict(solver_order=4), solvers.unipc(4), 60),
        (dict(solver_order=4, solver_type="bh1", predict_x0=False), solvers.unipc(4, "bh1", "eps"), 14),
    ],
    ids=["1", "2-bh1", "2-eps", "3", "4", "4-bh1-eps"],
)
def test_unipc(arguments, solver, num_steps):
    process, table = schedulers.table()
    arguments = arguments | dict(final_sigmas_type="sigma_min", lower_order_final=False)
    scheduler = make("UniPCMultistepScheduler", **table, **arguments)
    scheduler.set_timesteps(num_steps)
    compare(scheduler, solver, process, sigmas_of(scheduler))


@pytest.mark.parametrize(("order", "num_steps"), [(1, 20), (2, 20), (3, 20), (3, 10)])
def test_deis(order, num_steps):
    process, table = schedulers.table()
    scheduler = make("DEISMultistepScheduler", **table, solver_order=order, lower_order_final=False)
    scheduler.set_timesteps(num_steps)
    compare(scheduler, solvers.deis(order), process, sigmas_of(scheduler))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_edm_dpm_solver(order):
    scheduler = corrected("EDMDPMSolverMultistepScheduler", solver_order=order)
    scheduler.set_timesteps(18)
    sigmas = sigmas_of(scheduler)
    process, x = EDM(sigma_min=0.0, sigma_max=sigmas[0]), sigmas[0] * schedulers.start()
    theirs = schedulers.run_scheduler(scheduler, x, network=schedulers.predict_edm)
    ours = schedulers.run_solver(solvers.dpm_solver_pp(order), process, sigmas / sigmas[0], x)
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift):
    scheduler = make("FlowMatchEulerDiscreteScheduler", shift=shift)
    scheduler.set_timesteps(20)
    x, times = schedulers.start(), jnp.asarray(sigmas_of(scheduler))
    theirs = schedulers.run_scheduler(scheduler, x, network=schedulers.predict_velocity)
    ours = schedulers.run_solver(solvers.euler(), RectifiedFlow(), times, x)
    assert relative_error(ours, theirs) < TOLERANCE
