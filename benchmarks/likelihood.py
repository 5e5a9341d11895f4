"""Likelihoods per second of `log_prob` against SciPy on the host and torchdiffeq, at the same tolerance.

    python -m benchmarks.likelihood

All three integrate the probability-flow ODE of the VP process from t = 1e-5 to 1 with a Dormand-Prince pair of order 5:

- diffusion_jax: one program on the device, in which every example has its own steps;
- SciPy: `solve_ivp(method="RK45")` on the host over the flattened batch, as score_sde does; the drift with its
  divergence is compiled by JAX and called once per evaluation;
- torchdiffeq: `odeint(method="dopri5")`, one step size for the batch, divergence by autograd. Omitted if torch or
  torchdiffeq is missing.

A Gaussian mixture with its exact denoiser and exact trace gives the true error. A network with the same random weights
in JAX and PyTorch, and Hutchinson's trace estimate with the same probes, shows the speed when evaluations are costly.
The three are run in turn, A B C A B C ...; the table shows the best time of each, and its ratio to that of
diffusion_jax.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate

from diffusion_jax import parameterizations, processes
from diffusion_jax.likelihood import ode

try:
    import torch
    import torchdiffeq
except ImportError:
    torch = None

PROCESS, T_MIN, T_MAX = processes.VP(), 1e-5, 1.0


class Problem(NamedTuple):
    """The same denoiser in JAX, D(x, t, np=jnp), and in PyTorch, for the examples x."""

    D: Callable
    D_torch: Callable
    x: np.ndarray
    exact: bool  # exact trace, and `prior` and `true` are known
    prior: Callable  # nats of x at T_MAX, of arrays of NumPy
    true: np.ndarray | None


def scales(t: Any, xp: Any) -> tuple[Any, Any]:
    """(alpha, sigma^2) of the process, in JAX, NumPy or PyTorch."""
    log_alpha = -0.5 * (PROCESS.beta_min * t + 0.5 * (PROCESS.beta_max - PROCESS.beta_min) * t**2)
    return xp.exp(log_alpha), -xp.expm1(2 * log_alpha)


def mixture_problem(dim: int, batch: int) -> Problem:
    rng = np.random.default_rng(0)
    weights, means, variances = np.array([0.5, 0.3, 0.2]), rng.normal(size=(3, dim)), np.array([0.05, 0.2, 0.5])
    component = rng.choice(3, batch, p=weights)
    x = means[component] + np.sqrt(variances[component])[:, None] * rng.normal(size=(batch, dim))

    def log_joint(x: Any, t: Any, xp: Any, constants: tuple) -> tuple[Any, ...]:
        w, m, v = constants
        alpha, sigma_squared = (s.reshape(-1, 1) for s in scales(t, xp))
        var = alpha**2 * v + sigma_squared
        squares = ((x[:, None] - alpha[..., None] * m) ** 2).sum(-1)
        return xp.log(w) - squares / (2 * var) - dim / 2 * xp.log(2 * np.pi * var), alpha, var

    def denoise(x: Any, t: Any, xp: Any, softmax: Callable, constants: tuple) -> Any:
        logits, alpha, var = log_joint(x, t, xp, constants)
        gain = (alpha * constants[2] / var)[..., None]
        means_given_x = constants[1] + gain * (x[:, None] - alpha[..., None] * constants[1])
        return (softmax(logits)[..., None] * means_given_x).sum(1)

    def log_prob(x: np.ndarray, t: float) -> np.ndarray:
        logits, *_ = log_joint(x, np.array([t]), np, constants)
        return np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)

    constants = (weights, means, variances)
    in_jax = tuple(map(jnp.asarray, constants))
    in_torch = tuple(map(torch.tensor, constants)) if torch else None
    return Problem(
        D=lambda x, t: denoise(x, t, jnp, jax.nn.softmax, in_jax),
        D_torch=lambda x, t: denoise(x, t, torch, lambda a: torch.softmax(a, -1), in_torch),
        x=x,
        exact=True,
        prior=lambda x: log_prob(x, T_MAX),
        true=log_prob(x, T_MIN),
    )


def network_problem(dim: int, hidden: int, batch: int) -> Problem:
    rng = np.random.default_rng(0)
    sizes = [dim + 1, hidden, hidden, hidden, dim]
    weights = [rng.normal(size=(n, m), scale=n**-0.5).astype(np.float32) for n, m in itertools.pairwise(sizes)]

    def forward(x: Any, t: Any, weights: list, xp: Any, join: Callable) -> Any:
        h = join([x, t.reshape(-1, 1) + 0 * x[:, :1]])
        for w in weights[:-1]:
            h = xp.tanh(h @ w)
        return h @ weights[-1]

    in_jax = [jnp.asarray(w) for w in weights]
    in_torch = [torch.tensor(w) for w in weights] if torch else None

    def denoise(x: Any, t: Any, weights: list, xp: Any, join: Callable) -> Any:
        """The denoiser with EDM's preconditioning for data of variance 1/4, under which a random network is smooth."""
        alpha, sigma_squared = (s.reshape(-1, 1) for s in scales(t, xp))
        norm = alpha**2 / 4 + sigma_squared
        out = forward(x / norm**0.5, t, weights, xp, join)
        return alpha / 4 / norm * x + 0.1 * (sigma_squared / norm) ** 0.5 * out

    return Problem(
        D=lambda x, t: denoise(x, t, in_jax, jnp, lambda a: jnp.concatenate(a, -1)),
        D_torch=lambda x, t: denoise(x, t, in_torch, torch, lambda a: torch.cat(a, -1)),
        x=rng.uniform(-1, 1, size=(batch, dim)).astype(np.float32),
        exact=False,
        prior=lambda x: -0.5 * (x**2).sum(1) - dim / 2 * np.log(2 * np.pi),
        true=None,
    )


def ours(problem: Problem, tolerance: float) -> Callable[[], tuple[np.ndarray, str]]:
    @jax.jit
    def run(x: jax.Array) -> ode.LogProb:
        trace = "exact" if problem.exact else "hutchinson"
        options = dict(trace=trace, rtol=tolerance, atol=tolerance, t_min=T_MIN, t_max=T_MAX)
        zero = lambda x: jnp.zeros(x.shape[0], x.dtype)  # noqa: E731
        return ode.log_prob(PROCESS, problem.D, jax.random.key(0), x, prior_log_prob=zero, **options)

    def once() -> tuple[np.ndarray, str]:
        gained, latent, nfe = jax.device_get(run(problem.x))
        return gained + problem.prior(latent), f"{nfe.mean():.0f} (at most {nfe.max()})"

    return once


def probes(problem: Problem) -> np.ndarray:
    """The Hutchinson probes that `log_prob` draws, so that only the solvers differ."""
    keys = processes.row_keys(jax.random.key(0), jnp.arange(len(problem.x)))
    return np.asarray(ode.draw_probes("rademacher", keys, 1, jnp.asarray(problem.x)))[0]


def scipy_on_host(problem: Problem, tolerance: float) -> Callable[[], tuple[np.ndarray, str]]:
    shape, dtype, probe = problem.x.shape, problem.x.dtype, probes(problem)
    basis = jnp.eye(shape[1], dtype=dtype)

    @jax.jit
    def field(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        v, push = jax.linearize(
            lambda x: parameterizations.velocity(PROCESS, problem.D, x, jnp.full(shape[0], t, dtype)), x
        )
        if problem.exact:
            return v, sum(push(jnp.broadcast_to(e, shape))[:, i] for i, e in enumerate(basis))
        return v, (push(probe) * probe).sum(1)

    def flat(t: float, y: np.ndarray) -> np.ndarray:
        x = y[: np.prod(shape)].reshape(shape).astype(dtype)
        return np.concatenate([np.asarray(part, np.float64).ravel() for part in field(x, np.asarray(t, dtype))])

    def once() -> tuple[np.ndarray, str]:
        y = np.concatenate([problem.x.ravel(), np.zeros(shape[0])])
        found = integrate.solve_ivp(flat, (T_MIN, T_MAX), y, rtol=tolerance, atol=tolerance, method="RK45")
        end = found.y[:, -1]
        return end[np.prod(shape) :] + problem.prior(end[: np.prod(shape)].reshape(shape)), str(found.nfev)

    return once


def torch_on_device(problem: Problem, tolerance: float) -> Callable[[], tuple[np.ndarray, str]]:
    x_0 = torch.tensor(problem.x)
    probe, evaluations = torch.tensor(probes(problem)), []

    def field(t: torch.Tensor, state: tuple) -> tuple:
        evaluations.append(1)
        with torch.enable_grad():
            x = state[0].detach().requires_grad_(True)
            beta = PROCESS.beta_min + t * (PROCESS.beta_max - PROCESS.beta_min)
            alpha, sigma_squared = scales(t, torch)
            score = (alpha * problem.D_torch(x, t.to(x.dtype).reshape(1)) - x) / sigma_squared
            v = (-0.5 * beta * (x + score)).to(x.dtype)
            if problem.exact:
                rows = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])]
                return v.detach(), torch.stack(rows).sum(0)
            return v.detach(), (torch.autograd.grad((v * probe).sum(), x)[0] * probe).sum(1)

    def once() -> tuple[np.ndarray, str]:
        evaluations.clear()
        times = torch.tensor([T_MIN, T_MAX], dtype=x_0.dtype)
        start = (x_0, torch.zeros(len(x_0), dtype=x_0.dtype))
        x, gained = torchdiffeq.odeint(field, start, times, rtol=tolerance, atol=tolerance, method="dopri5")
        return gained[-1].numpy() + problem.prior(x[-1].numpy()), str(len(evaluations))

    return once


def seconds(run: Callable) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compare(title: str, problem: Problem, tolerance: float, repeats: int) -> None:
    runs = {"diffusion_jax": ours(problem, tolerance), "SciPy on host": scipy_on_host(problem, tolerance)}
    if torch:
        runs["torchdiffeq"] = torch_on_device(problem, tolerance)
    found = {name: run() for name, run in runs.items()}  # also compiles
    times = np.array([[seconds(run) for run in runs.values()] for _ in range(repeats)])
    reference = problem.true if problem.true is not None else found["SciPy on host"][0]
    best = times.min(axis=0)
    for (name, (nats, nfe)), duration in zip(found.items(), best, strict=True):
        error = np.abs(nats - reference)
        print(
            f"| {title} | {tolerance:g} | {name} | {len(problem.x) / duration:,.0f} | {duration / best[0]:.2f} "
            f"| {nfe} | {error.max():.1e}, {error.mean():.1e} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"jax {jax.__version__} on {jax.devices()[0].platform}", end=", ")
    print(f"torch {torch.__version__}, torchdiffeq {torchdiffeq.__version__}" if torch else "no torch or torchdiffeq")
    print(
        "\n| problem | rtol = atol | method | likelihoods/s | time, relative | evaluations | max, mean error in nats |"
        "\n|---|---|---|---|---|---|---|"
    )
    for dim, batch in ((2, 512), (16, 128)):
        for tolerance in (1e-5, 1e-8):
            title = f"mixture in {dim}-D, batch {batch}, exact trace, float64"
            compare(title, mixture_problem(dim, batch), tolerance, args.repeats)
    title = "MLP 64-512-512-512-64, batch 64, Hutchinson, float32 (error: difference to SciPy)"
    compare(title, network_problem(64, 512, 64), 1e-5, args.repeats)


if __name__ == "__main__":
    main()
