"""What exponential and linear multistep solvers share: weights of past predictions, and the memory that holds them.

In half the log-SNR, lambda = log(alpha / sigma), the probability-flow ODE has an exact linear part. From t to s, with
h = lambda_s - lambda_t, theta in [0, 1] the fraction of h and M the prediction that is kept,

    x_s = (sigma_s / sigma_t) x_t - S z int_0^1 e^((1 - theta) z) M(theta) dtheta,    M = D,    S = alpha_s,  z = -h,
    x_s = (alpha_s / alpha_t) x_t - S z int_0^1 e^((1 - theta) z) M(theta) dtheta,    M = eps,  S = sigma_s,  z = h

(arXiv:2206.00927, proposition 3.1; arXiv:2211.01095, proposition 4.1). A constant M gives DDIM; a polynomial through
values at other times adds coefficients(...) times their differences from M(0).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.processes.base import log_snr
from diffusion_jax.types import Process

Scalar = Float[Array, ""]
GROWTH = 1.25  # of a step over those before it, up to which a polynomial through their values is extrapolated over it


def half_log_snr(process: Process, t: Scalar) -> Scalar:
    """lambda = log(alpha / sigma): -inf where alpha = 0, inf where sigma = 0."""
    return log_snr(process, t) / 2


def moments(z: Scalar, count: int) -> list[Scalar]:
    """int_0^1 e^((1 - theta) z) theta^k dtheta = k! phi_(k + 1)(z) for k = 0..count - 1, accurate for every finite z.

    Integration by parts gives m_k = (k m_(k - 1) - 1) / z, which loses digits where z is small. There the last moment
    is summed as a series, and the others follow downwards.
    """
    small = jnp.abs(z) < 1
    z_large, z_small = jnp.where(small, 1, z), jnp.where(small, z, 0)
    upward = [jnp.expm1(z_large) / z_large]
    for k in range(1, count):
        upward.append((k * upward[-1] - 1) / z_large)
    last = jnp.zeros_like(z)
    for j in reversed(range(20)):
        last = last * z_small + math.factorial(count - 1) / math.factorial(count + j)
    downward = [last]
    for k in reversed(range(1, count)):
        downward.append((z_small * downward[-1] + 1) / k)
    return [jnp.where(small, a, b) for a, b in zip(reversed(downward), upward, strict=True)]


def polynomial_weights(nodes: list[Scalar], moments: list[Scalar]) -> list[Scalar]:
    """w_j with int weight(theta) (P(theta) - P(0)) dtheta = sum_j w_j (P(r_j) - P(0)) for polynomials P.

    `nodes` are n distinct r_j other than 0, `moments` the n + 1 integrals of weight(theta) theta^k; exact up to
    degree n. Lagrange's polynomials through 0 and the nodes, integrated term by term.
    """
    weights = []
    for j, node in enumerate(nodes):
        polynomial = [1 / node]  # of theta prod (theta - r_i) / (r_j prod (r_j - r_i)), without its factor theta
        for other in nodes[:j] + nodes[j + 1 :]:
            scaled = [c / (node - other) for c in polynomial]
            polynomial = [a - b * other for a, b in zip([0, *scaled], [*scaled, 0], strict=True)]
        weights.append(sum(c * m for c, m in zip(polynomial, moments[1:], strict=True)))
    return weights


def coefficients(nodes: list[Scalar], z: Scalar, variant: str) -> list[Scalar]:
    """c_j such that x_s = DDIM - S sum_j c_j (M(r_j) - M(0)).

    The polynomial is integrated exactly, except that a single difference has in the variants `bh1` and `bh2` the
    coefficient B / (2 r) with B = z and e^z - 1, which is the same to first order (arXiv:2302.04867, section 3.2;
    `bh2` is the midpoint rule of arXiv:2211.01095).
    """
    if len(nodes) == 1 and variant != "exact":
        return [(z if variant == "bh1" else jnp.expm1(z)) / (2 * nodes[0])]
    return [z * w for w in polynomial_weights(nodes, moments(z, len(nodes) + 1))]


def select(count: Int[Array, ""], nodes: list[Scalar], rule: Callable[[list[Scalar]], list[Scalar]]) -> list[Scalar]:
    """rule(nodes[:count]), then zeros: one number per node, for a `count` known only at run time."""
    zero = jnp.zeros_like(nodes[0]) if nodes else 0.0
    rows = [[*(rule(nodes[:n]) if n else []), *[zero] * (len(nodes) - n)] for n in range(len(nodes) + 1)]
    return [jnp.stack(column)[count] for column in zip(*rows, strict=True)]


class History(NamedTuple):
    """Predictions of the latest steps, newest first, and the coordinates (such as lambda) they were made at.

    A coordinate that is not finite, as all are at first, marks a prediction that is of no use to a polynomial.
    """

    index: Int[Array, ""]  # of the step
    coordinates: tuple[Scalar, ...]
    predictions: tuple[Array, ...]

    @classmethod
    def empty(cls, x: Array, length: int) -> "History":
        nothing = jnp.full((), jnp.nan, x.dtype)
        return cls(jnp.zeros((), jnp.int32), (nothing,) * length, (jnp.zeros_like(x),) * length)

    def push(self, coordinate: Scalar, prediction: Array) -> "History":
        return History(
            self.index + 1,
            (coordinate, *self.coordinates)[: len(self.coordinates)],
            (prediction, *self.predictions)[: len(self.predictions)],
        )

    def usable(self) -> Int[Array, ""]:
        """How many of the newest entries have finite coordinates."""
        found = jnp.zeros((), jnp.int32)
        unbroken = jnp.ones((), bool)
        for coordinate in self.coordinates:
            unbroken = unbroken & jnp.isfinite(coordinate)
            found = found + unbroken
        return found

    def reliable(self, nodes: list[Scalar]) -> Int[Array, ""]:
        """How many of the newest entries are usable, and near enough for a step on which they lie at `nodes`."""
        return jnp.minimum(self.usable(), reliable(nodes))

    def nodes(self, origin: Scalar, step: Scalar) -> list[Scalar]:
        """(coordinate - origin) / step of each entry; distinct stand-ins for those that are not finite."""
        found = [jnp.isfinite(c) for c in self.coordinates]
        # Replaced before and after the division, which keeps derivatives finite.
        ratios = [(jnp.where(f, c, 0) - origin) / step for f, c in zip(found, self.coordinates, strict=True)]
        return [jnp.where(f, r, -1e3 - j) for j, (f, r) in enumerate(zip(found, ratios, strict=True))]


def reliable(nodes: list[Scalar]) -> Int[Array, ""]:
    """How many past values a polynomial over the coming step may go through: `nodes` as of `History.nodes`.

    The polynomial is extrapolated by one step. Its error grows with the ratio of that step to those between the values,
    which is large at the end of grids that are not uniform in log-SNR. A value is used only if the step is at most
    `GROWTH` times as long as every step back to it, and if all of these go the same way: times that rise again, as in
    restarts, pass values twice. docs/solvers.md measures the errors with that bound.
    """
    count, previous = jnp.zeros((), jnp.int32), 0.0
    unbroken = jnp.ones((), bool)
    for node in nodes:
        unbroken = unbroken & (GROWTH * (previous - node) >= 1)
        count, previous = count + unbroken, node
    return count


def check_order(name: str, order: int, highest: int, num_steps: int | None = None) -> None:
    """Raises ValueError for an order outside 1..highest, or for fewer steps than a multistep method of it needs."""
    if order not in range(1, highest + 1):
        raise ValueError(f"order is {order!r}; {name} has orders 1 to {highest}")
    if num_steps is not None and num_steps < order:
        raise ValueError(f"num_steps is {num_steps}; {name} of order {order} needs at least {order}")
