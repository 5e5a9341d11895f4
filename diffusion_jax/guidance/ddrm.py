"""DDRM: sampling under a measurement in the singular basis of its operator."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Key

from diffusion_jax.guidance.methods import Method
from diffusion_jax.guidance.operators import Mask, Operator, reciprocal
from diffusion_jax.parameterizations import rewired
from diffusion_jax.processes.base import row_keys, row_normal
from diffusion_jax.solvers.replacement import check_alone
from diffusion_jax.types import Denoiser, Process, Solver, check

_MEASURED = 2**31 - 3  # folded into the keys of a step, which the solver itself uses


def ddrm(eta: float = 0.85, eta_b: float = 1.0) -> Method:
    """Denoising diffusion restoration: a step of its own in each measured direction, that of the solver elsewhere.

    With r = sigma / alpha at the end of the step, D_i and y_i the coordinates of D and A^+ y in the direction of a
    singular value, which divides the noise of y_i to q_i = q / singular value, the next state is alpha times

        D_i + sqrt(1 - eta^2) r (y_i - D_i) / q_i + eta r z        where r < q_i,
        (1 - eta_b) D_i + eta_b y_i + sqrt(r^2 - eta_b^2 q_i^2) z   where r >= q_i

    (arXiv:2201.11793, eq. 8). In directions that are not measured the paper's step is that of `solvers.renoised` with
    churn = eta. D is not corrected, and there are no vjps. Without noise, A x_0 = y in the end. With noise the fixed
    fractions of each step do not shrink with it, so that the law drifts from the posterior with the number of steps:
    take about 20. Raises ValueError for eta or eta_b outside [0, 1].
    """
    check(0 <= eta <= 1, "eta", eta, "in [0, 1]")
    check(0 <= eta_b <= 1, "eta_b", eta_b, "in [0, 1]")

    def around(solver: Solver, operator: Operator, y: Array, mask: Mask) -> Solver:
        def along(v: Array, factor: Callable[[Array, Array], Array]) -> Array:
            """v [batch, *out] times factor(q_i, eigenvalue of A A^T) / eigenvalue, 0 where that is 0."""
            level = lambda e: operator.noise * jnp.sqrt(reciprocal(e, e))  # noqa: E731
            return operator.gram(v, mask, lambda e: factor(level(e), e) * reciprocal(e, e))

        def step(process: Process, D: Denoiser, keys: Key[Array, "batch"], x: Array, t: Array, s: Array, carry):
            seen = []

            def recorded(outputs: Callable, state: Array, time: Array, _) -> tuple[Array, ...]:
                found = outputs(state, time)
                if state is x:
                    seen.append(found[0])
                return found

            x_s, carry = solver.step(process, rewired(D, recorded), keys, x, t, s, carry)
            x_0 = seen[0] if seen else D(x, t)  # what the solver itself evaluated, if it did
            r = process.sigma(s) / process.alpha(s)
            z = row_normal(row_keys(keys, _MEASURED), x)

            def of_y(q: Array, e: Array) -> Array:
                below = r < q
                return jnp.where(below, jnp.sqrt(1 - eta**2) * r / jnp.where(below, q, 1), eta_b)

            def width(q: Array, e: Array) -> Array:
                return jnp.where(r < q, eta * r, jnp.sqrt(jnp.maximum(r**2 - (eta_b * q) ** 2, 0)))

            measured = along(operator(x_0, mask), lambda q, e: 1 - of_y(q, e)) + along(y, of_y)
            measured = process.alpha(s) * (measured + along(operator(z, mask), width))
            changed = measured - along(operator(x_s, mask), lambda q, e: jnp.ones_like(q))
            return (x_s + operator.transpose(changed, mask)).astype(x.dtype), carry

        return solver._replace(step=step)

    return Method(around=around, linear=True, gram=True, check_solver=check_alone)
