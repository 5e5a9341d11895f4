"""What the network's output means: D(x, t) = c_skip x + c_out F(c_in x, c_noise).

A parameterization is a function `param(process, t) -> Coefficients`. Whatever F was asked to predict, the result is
the denoiser D(x_t, t) = E[x_0 | x_t], the only currency between networks, guidance, solvers and likelihoods. The
score, the noise and the velocity are one-line views of D (arXiv:2206.00364, table 1, gathers the choices).
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.processes.base import bcast, log_snr, time_derivative, time_of_log_snr
from diffusion_jax.types import (
    Apply,
    BridgeProcess,
    Coefficients,
    Cond,
    Denoiser,
    Process,
    check,
    check_choice,
    needing,
)

Time = Float[Array, "*n"]
Parameterization = Callable[[Process, Time], Coefficients]
NoiseLabel = Callable[[Process, Time], Time]


# The noise label: c_noise, by which the network is conditioned on the time.


def time_label(process: object, t: Time) -> Time:
    """999 t: the label of continuous-time networks with positional embeddings (score_sde's VP models)."""
    return 999 * t


def unit_time_label(process: object, t: Time) -> Time:
    """t itself: the label of networks that are differentiated with respect to the time (arXiv:2505.13447)."""
    return t


def alpha_label(process: Process, t: Time) -> Time:
    """alpha itself, the continuous noise level of WaveGrad's network (arXiv:2009.00713, section 3)."""
    return process.alpha(t)


@needing(num_steps=True)
def index_label(process: Process, t: Time) -> Time:
    """T t - 1, the timestep 0..T-1 of a discrete process with `num_steps` = T."""
    return process.num_steps * t - 1


@needing(num_steps=True)
def timestep_label(process: Process, t: Time) -> Time:
    """1000 (T t - 1) / T: the timestep of T steps scaled to 0..999, as in improved DDPM with 4000 steps."""
    return 1000 * (process.num_steps * t - 1) / process.num_steps


@needing(alpha=True, sigma=True)
def log_sigma_label(process: Process, t: Time) -> Time:
    """log(sigma / alpha): the label of networks with Fourier embeddings (NCSN++)."""
    return jnp.log(process.sigma(t) / process.alpha(t))


@needing(log_sigma_label)
def quarter_log_sigma_label(process: Process, t: Time) -> Time:
    """log(sigma / alpha) / 4: the label of EDM's networks."""
    return log_sigma_label(process, t) / 4


@needing(alpha=True, sigma=True)
def log_sigma_unit_label(process: Process, t: Time) -> Time:
    """log(sigma / 2 alpha): of networks trained on data in [0, 1], whose noise is half of what it is on [-1, 1]."""
    return jnp.log(process.sigma(t) / (2 * process.alpha(t)))


@needing(alpha=True, sigma=True)
def log_snr_label(process: Process, t: Time) -> Time:
    """1000 (13.3 - log SNR) / 18.3: in 0..1000 for log SNR from 13.3 to -5, where VDM's schedule starts and ends."""
    return 1000 * (13.3 - log_snr(process, t)) / 18.3


@needing(time=True)
def ddbm_label(process: Process, t: Time) -> Time:
    """250 log t, of DDBM's networks; for its VE process, whose time is sigma, it is `ddbm_sigma_label`."""
    return 250 * jnp.log(t)


@needing(alpha=True, sigma=True)
def ddbm_sigma_label(process: Process, t: Time) -> Time:
    """250 log(sigma / alpha), of DDBM's networks on its VE process."""
    return 250 * jnp.log(process.sigma(t) / process.alpha(t))


def level_label(num_levels: int) -> NoiseLabel:
    """(L - 1)(1 - t): the index of noise level t among L, counted from the largest as NCSN does."""
    return lambda process, t: (num_levels - 1) * (1 - t)


# What the network predicts.


def eps_prediction(label: NoiseLabel = time_label) -> Parameterization:
    """F predicts eps: D = (x - sigma F) / alpha. arXiv:2006.11239."""

    @needing(label, alpha=True)
    def param(process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return Coefficients(jnp.ones_like(t), 1 / alpha, -sigma / alpha, label(process, t))

    return param


def x0_prediction(label: NoiseLabel = time_label) -> Parameterization:
    """F predicts x_0: D = F."""

    @needing(label)
    def param(process: Process, t: Time) -> Coefficients:
        return Coefficients(jnp.ones_like(t), jnp.zeros_like(t), jnp.ones_like(t), label(process, t))

    return param


def score_prediction(label: NoiseLabel = time_label, scale_by_sigma: bool = False) -> Parameterization:
    """F predicts the score: D = (x + sigma^2 F) / alpha (NCSN, arXiv:1907.05600).

    With `scale_by_sigma` the score is F / sigma, so that F has unit scale at every level (NCSNv2, arXiv:2006.09011,
    technique 3; NCSN++).
    """

    @needing(label, alpha=True)
    def param(process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        c_out = sigma / alpha if scale_by_sigma else sigma**2 / alpha
        return Coefficients(jnp.ones_like(t), 1 / alpha, c_out, label(process, t))

    return param


def v_prediction(label: NoiseLabel = time_label) -> Parameterization:
    """F predicts v = alpha eps - sigma x_0: D = (alpha x - sigma F) / (alpha^2 + sigma^2). arXiv:2202.00512."""

    @needing(label)
    def param(process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        norm = alpha**2 + sigma**2
        return Coefficients(jnp.ones_like(t), alpha / norm, -sigma / norm, label(process, t))

    return param


def velocity_prediction(label: NoiseLabel = time_label) -> Parameterization:
    """F predicts dx/dt = alpha' x_0 + sigma' eps, the target of flow matching. arXiv:2210.02747, eq. 14."""

    @needing(label, derivatives=True)
    def param(process: Process, t: Time) -> Coefficients:
        alpha, d_alpha = time_derivative(process.alpha, t)
        sigma, d_sigma = time_derivative(process.sigma, t)
        det = d_alpha * sigma - d_sigma * alpha
        return Coefficients(jnp.ones_like(t), -d_sigma / det, sigma / det, label(process, t))

    return param


def edm_preconditioning(sigma_data: float = 0.5, label: NoiseLabel = quarter_log_sigma_label) -> Parameterization:
    """Unit-variance inputs and targets for data of standard deviation sigma_data. arXiv:2206.00364, table 1.

    Stated for alpha = 1; other processes are first divided by alpha. On the process `Trig` it is TrigFlow, D = cos x +
    sigma_data sin F, up to the sign of F (arXiv:2410.11081, eq. 6). Raises ValueError unless sigma_data is positive.
    """
    check(sigma_data > 0, "sigma_data", sigma_data, "positive")

    @needing(label)
    def param(process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        norm = sigma**2 + (sigma_data * alpha) ** 2  # alpha^2 times that of sigma / alpha, and positive where alpha = 0
        return Coefficients(
            c_in=1 / jnp.sqrt(norm),
            c_skip=sigma_data**2 * alpha / norm,
            c_out=sigma * sigma_data / jnp.sqrt(norm),
            c_noise=label(process, t),
        )

    return param


def consistency(
    sigma_data: float = 0.5, t_min: float = 0.0, label: NoiseLabel = quarter_log_sigma_label
) -> Parameterization:
    """`edm_preconditioning` with c_skip = 1 / alpha and c_out = 0 at t_min: f(x, t_min) = x / alpha, whatever F is.

    f carries a point of a trajectory of the probability-flow ODE to its beginning at t_min. With s = sigma / alpha and
    e = s(t_min), c_skip = sigma_data^2 / ((s - e)^2 + sigma_data^2) / alpha and c_out = (s - e) sigma_data / sqrt(s^2 +
    sigma_data^2) (arXiv:2303.01469, appendix C). alpha and sigma must be positive. Raises ValueError unless sigma_data
    is positive and t_min in [0, 1).
    """
    check(sigma_data > 0, "sigma_data", sigma_data, "positive")
    check(0 <= t_min < 1, "t_min", t_min, "in [0, 1)")

    @needing(label, alpha=True, sigma=True)
    def param(process: Process, t: Time) -> Coefficients:
        alpha, start = process.alpha(t), jnp.full_like(t, t_min)
        sigma, least = process.sigma(t) / alpha, process.sigma(start) / process.alpha(start)
        norm = jnp.sqrt(sigma**2 + sigma_data**2)
        return Coefficients(
            c_in=1 / (alpha * norm),
            c_skip=sigma_data**2 / ((sigma - least) ** 2 + sigma_data**2) / alpha,
            c_out=(sigma - least) * sigma_data / norm,
            c_noise=label(process, t),
        )

    return param


_PREDICTIONS = {"eps": eps_prediction, "x0": x0_prediction, "v": v_prediction}


def latent_consistency(
    prediction: str = "eps", sigma_data: float = 0.5, timestep_scaling: float = 10.0, label: NoiseLabel = index_label
) -> Parameterization:
    """f = c_skip x + c_out D with the D of a `prediction`, "eps", "x0" or "v", so that f(x, 1 / T) = x.

    With the timestep k = T t - 1 and s = `timestep_scaling` k, c_skip = sigma_data^2 / (s^2 + sigma_data^2) and c_out =
    s / sqrt(s^2 + sigma_data^2): f is D from the second timestep on, up to 0.3 %. A network that predicts this is one
    of a latent consistency model (arXiv:2310.04378, section 4.1; the numbers are those of the authors' code). Raises
    ValueError for another prediction, or unless sigma_data and timestep_scaling are positive.
    """
    check_choice("prediction", prediction, _PREDICTIONS)
    check(sigma_data > 0, "sigma_data", sigma_data, "positive")
    check(timestep_scaling > 0, "timestep_scaling", timestep_scaling, "positive")
    predicted = _PREDICTIONS[prediction](label)

    @needing(predicted, num_steps=True)
    def param(process: Process, t: Time) -> Coefficients:
        D, scaled = predicted(process, t), timestep_scaling * index_label(process, t)
        norm = scaled**2 + sigma_data**2
        skip, out = sigma_data**2 / norm, scaled / jnp.sqrt(norm)
        return Coefficients(D.c_in, skip + out * D.c_skip, out * D.c_out, D.c_noise)

    return param


# What the network predicts on a bridge, D(x_t, t) = E[x_0 | x_t] or E[x_0 | x_t, x_1] of a network conditioned on x_1.


def i2sb_prediction(label: NoiseLabel = time_label) -> Parameterization:
    """F predicts (x_t - x_0) / s with the reference's sigma s: D = x - s F. arXiv:2302.05872, eq. 12.

    It is eps-prediction of the reference process, with x_1 in x_t.
    """

    def param(process: BridgeProcess, t: Time) -> Coefficients:
        reference = process.reference
        return Coefficients(jnp.ones_like(t), jnp.ones_like(t), -reference.sigma(t), label(reference, t))

    return param


def ddbm_preconditioning(
    label: NoiseLabel = ddbm_sigma_label, sigma_data: float = 0.5, sigma_end: float = 0.5, covariance: float = 0.0
) -> Parameterization:
    """Unit-variance inputs and targets for x_0 and x_1 of these standard deviations and this covariance.

    With a = far, b = near, c = sigma: A = a^2 sigma_end^2 + b^2 sigma_data^2 + 2 a b covariance + c^2, c_in = A^-1/2,
    c_skip = (b sigma_data^2 + a covariance) / A, and
    c_out^2 = (a^2 (sigma_end^2 sigma_data^2 - covariance^2) + sigma_data^2 c^2) / A. arXiv:2309.16948.
    Without a far end it is `edm_preconditioning`. Raises ValueError unless the deviations are positive and covariance^2
    is at most the product of their squares.
    """
    check(sigma_data > 0, "sigma_data", sigma_data, "positive")
    check(sigma_end > 0, "sigma_end", sigma_end, "positive")
    check(abs(covariance) < sigma_data * sigma_end, "covariance", covariance, "below sigma_data sigma_end")

    def param(process: BridgeProcess, t: Time) -> Coefficients:
        a, b, c = process.far(t), process.near(t), process.sigma(t)
        total = a**2 * sigma_end**2 + b**2 * sigma_data**2 + 2 * a * b * covariance + c**2
        left = a**2 * (sigma_end**2 * sigma_data**2 - covariance**2) + sigma_data**2 * c**2
        skip = (b * sigma_data**2 + a * covariance) / total
        return Coefficients(total**-0.5, skip, jnp.sqrt(left / total), label(process.reference, t))

    return param


def denoiser(apply: Apply, param: Parameterization, process: Process | BridgeProcess) -> Denoiser:
    """D(x, t, cond=None) = c_skip x + c_out F(c_in x, c_noise, cond), with F = apply(x, c_noise, cond).

    `apply` has its parameters bound already; t is a scalar or [batch].
    """

    def D(x: Float[Array, "batch *shape"], t: Time, cond: Cond = None) -> Float[Array, "batch *shape"]:
        c = param(process, jnp.broadcast_to(t, x.shape[:1]))
        out = apply(bcast(c.c_in, x) * x, c.c_noise, cond)
        return bcast(c.c_skip, x) * x + bcast(c.c_out, x) * out

    return D


@dataclasses.dataclass(frozen=True)
class LearnedVariance:
    """A denoiser whose network also says how wide a reverse step is: `both(x, t, cond)` -> (x_0, v), in one call.

    v in [0, 1] has the shape of x and interpolates the logarithm of a step's variance between that of the posterior
    and that of the forward step (arXiv:2102.09672, eq. 15); see `solvers.base.step_variance`.
    """

    both: Callable[..., tuple[Array, Array]]

    def __call__(self, x: Float[Array, "batch *shape"], t: Time, cond: Cond = None) -> Float[Array, "batch *shape"]:
        return self.both(x, t, cond)[0]


def learned_variance_denoiser(apply: Apply, param: Parameterization, process: Process) -> LearnedVariance:
    """As `denoiser`, for a network with twice the channels of x: F, and 2 v - 1."""

    def both(x: Array, t: Time, cond: Cond = None) -> tuple[Array, Array]:
        c = param(process, jnp.broadcast_to(t, x.shape[:1]))
        out, v = jnp.split(apply(bcast(c.c_in, x) * x, c.c_noise, cond), 2, axis=-1)
        return bcast(c.c_skip, x) * x + bcast(c.c_out, x) * out, (v + 1) / 2

    return LearnedVariance(both)


@dataclasses.dataclass(frozen=True)
class FlowMap:
    """A denoiser of straight paths, alpha = 1 - t and sigma = t, that also knows where their flow carries x_t.

    `mean_velocity(x, t, s, cond)` is u = 1 / (t - s) int_s^t v dr, the mean of v = dx/dr along the path of the
    probability-flow ODE from t to s <= t (arXiv:2505.13447, eq. 3); u(x, t, t) is v itself. So x_s = x_t - (t - s) u in
    one step, and D = x - t u(x, t, t).
    """

    mean_velocity: Callable[..., Array]

    def __call__(self, x: Float[Array, "batch *shape"], t: Time, cond: Cond = None) -> Float[Array, "batch *shape"]:
        return x - bcast(jnp.asarray(t), x) * self.mean_velocity(x, t, t, cond)

    def to(self, x: Float[Array, "batch *shape"], t: Time, s: Time, cond: Cond = None) -> Float[Array, "batch *shape"]:
        """x_s for x = x_t and s <= t; each a scalar or [batch]."""
        return x - bcast(jnp.asarray(t - s), x) * self.mean_velocity(x, t, s, cond)


@dataclasses.dataclass(frozen=True)
class Corrected:
    """A denoiser that was corrected by a measurement, with its prediction before that, in one call.

    `outputs(x, t, cond)` -> (x_0, raw x_0). A solver that renoises, `solvers.renoised`, may take eps from either.
    """

    outputs: Callable[..., tuple[Array, ...]]

    def __call__(self, x: Float[Array, "batch *shape"], t: Time, cond: Cond = None) -> Float[Array, "batch *shape"]:
        return self.outputs(x, t, cond)[0]


@dataclasses.dataclass(frozen=True)
class CorrectedVariance(LearnedVariance):
    """As `Corrected`, of a denoiser with a learned variance: `outputs(x, t, cond)` -> (x_0, v, raw x_0)."""

    outputs: Callable[..., tuple[Array, ...]]


def _with_outputs(outputs: Callable[..., tuple[Array, ...]], learned: bool) -> Denoiser:
    if learned:
        return CorrectedVariance(lambda x, t, cond=None: outputs(x, t, cond)[:2], outputs)
    return Corrected(outputs)


def corrected(D: Denoiser, f: Callable[..., tuple[Array, ...]]) -> Denoiser:
    """The denoiser with f(outputs, x, t, cond) -> (x_0, raw x_0, ...) and what else `outputs` gives in addition to x_0.

    What D keeps already, a learned variance or a prediction before an earlier correction, stays.
    """

    def outputs(x: Array, t: Time, cond: Cond = None) -> tuple[Array, ...]:
        if hasattr(D, "outputs"):
            x_0, _, *rest = f(D.outputs, x, t, cond)
            return x_0, *rest
        given = D.both if isinstance(D, LearnedVariance) else lambda *inputs: (D(*inputs),)
        x_0, raw, *rest = f(given, x, t, cond)
        return x_0, *rest, raw

    return _with_outputs(outputs, isinstance(D, LearnedVariance))


def with_raw(
    D: Denoiser, x: Float[Array, "batch *shape"], t: Time
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
    """(D, D before it was corrected by a measurement), the same twice if it was not."""
    if hasattr(D, "outputs"):
        x_0, *_, raw = D.outputs(x, t, None)
        return x_0, raw
    x_0 = D(x, t)
    return x_0, x_0


def rewired(D: Denoiser, f: Callable[..., tuple[Array, ...]]) -> Denoiser:
    """The denoiser f(outputs, x, t, cond) with outputs(x, t, cond) -> (D(x, t, cond),), or (x_0, v) of a learned
    variance, or what else D knows, see `Corrected`: f maps all of it to as many outputs."""
    if hasattr(D, "outputs"):
        whole = lambda x, t, cond=None: f(D.outputs, x, t, cond)  # noqa: E731
        return _with_outputs(whole, isinstance(D, LearnedVariance))
    if isinstance(D, LearnedVariance):
        return LearnedVariance(lambda x, t, cond=None: f(D.both, x, t, cond))
    return lambda x, t, cond=None: f(lambda *inputs: (D(*inputs),), x, t, cond)[0]


def mapped(D: Denoiser, f: Callable[[Array], Array]) -> Denoiser:
    """f applied to what D predicts; a learned variance stays."""

    def step(outputs: Callable, x: Array, t: Time, cond: Cond) -> tuple[Array, ...]:
        x_0, *rest = outputs(x, t, cond)
        return f(x_0), *rest

    return rewired(D, step)


def bound_to(D: Denoiser, cond: Cond) -> Denoiser:
    """D(x, t) under the condition `cond`; a learned variance or a flow map stays."""
    if isinstance(D, FlowMap):
        return FlowMap(lambda x, t, s, _=None: D.mean_velocity(x, t, s, cond))
    return rewired(D, lambda outputs, x, t, _: outputs(x, t, cond))


def at_equal_snr(D: Denoiser, source: Process, process: Process) -> Denoiser:
    """The denoiser D of a model of the process `source`, for x_t of another process: a conversion without training.

    At equal SNR the states of two processes differ by a factor only: D'(x, t, cond) = D(c x, u, cond), where u has the
    SNR of t and c^2 = (alpha_u^2 + sigma_u^2) / (alpha_t^2 + sigma_t^2), which is finite at both ends of time. A time
    whose SNR `source` does not reach is answered by its nearest end, u = 0 or 1. A learned variance stays.
    arXiv:2107.00630, section 5; arXiv:2206.00364, eq. 4.
    """

    def converted(outputs: Callable, x: Array, t: Time, cond: Cond) -> tuple[Array, ...]:
        t = jnp.asarray(t)
        u = time_of_log_snr(source, log_snr(process, t))
        norms = [jnp.hypot(p.alpha(s), p.sigma(s)) for p, s in ((source, u), (process, t))]
        return outputs(bcast(norms[0] / norms[1], x) * x, u, cond)

    return rewired(D, converted)


# Views of a denoiser with its conditions bound, D(x, t). t in (0, 1], a scalar or [batch].


def score(process: Process, D: Denoiser, x: Float[Array, "batch *shape"], t: Time) -> Float[Array, "batch *shape"]:
    """grad_x log p_t(x) = (alpha D - x) / sigma^2 (Tweedie's formula)."""
    return (bcast(process.alpha(t), x) * D(x, t) - x) / bcast(process.sigma(t), x) ** 2


def epsilon(process: Process, D: Denoiser, x: Float[Array, "batch *shape"], t: Time) -> Float[Array, "batch *shape"]:
    """E[eps | x_t] = (x - alpha D) / sigma."""
    return (x - bcast(process.alpha(t), x) * D(x, t)) / bcast(process.sigma(t), x)


def velocity(process: Process, D: Denoiser, x: Float[Array, "batch *shape"], t: Time) -> Float[Array, "batch *shape"]:
    """dx/dt of the probability-flow ODE: alpha' D + sigma' eps, equal to f x - g^2 score / 2.

    In this form it stays finite where alpha = 0. arXiv:2011.13456, eq. 13.
    """
    alpha, d_alpha = time_derivative(process.alpha, jnp.asarray(t))
    sigma, d_sigma = time_derivative(process.sigma, jnp.asarray(t))
    x_0 = D(x, t)
    return bcast(d_alpha, x) * x_0 + bcast(d_sigma / sigma, x) * (x - bcast(alpha, x) * x_0)
