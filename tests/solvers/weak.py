"""The exact law of what a solver with noise returns, where the denoiser is affine and x has one dimension.

The result is then an affine function of x_T and of every draw of noise: a Gaussian whose mean is the result without
noise, and whose variance is the sum of the squared derivatives by the draws. One reverse pass gives all of them, so
weak errors are known to rounding, without sampling.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracles import Gaussian


def gaussian():
    return Gaussian(mean=jnp.array([0.5]), covariance=jnp.array([[0.3]]))


def law(solver, process, D, mean, variance, start, end, steps, draws=3):
    """[mean, variance] at `end` for every number of steps, from N(mean, variance) at `start` > `end`.

    Steps grow from the start, so that the first ones of a multistep method, of low order, do not count. `draws` is
    the largest number of noises that one step draws, which must not be in a loop.
    """
    most = max(steps)

    def result(x_T, noises, steps):
        def body(state, step):
            x, carry = state
            t, s, goes_on, noise = step
            left = list(noise)
            with mock.patch("jax.random.normal", lambda key, shape, dtype: jnp.reshape(left.pop(0), shape)):
                after = solver.step(process, D, jax.random.split(jax.random.key(0), 1), x, t, s, carry)
            return jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), after, state), None

        (x, _), _ = jax.lax.scan(body, (x_T[None], solver.init(x_T[None])), (*steps, noises))
        return x[0, 0]

    linear = jax.jit(jax.value_and_grad(result, argnums=(0, 1)))
    laws = []
    for num_steps in steps:
        grown = (np.arange(num_steps + 1) + 1.4) ** 1.5  # by less than a fourth per step
        times = start + (end - start) * (grown - grown[0]) / (grown[-1] - grown[0])
        times[-1] = end
        # Steps that are left over repeat the first one, and are not taken; an empty one would have no derivative.
        left = most - num_steps
        padded = [jnp.asarray(np.pad(u, (0, left), constant_values=u[0])) for u in (times[:-1], times[1:])]
        goes_on = jnp.arange(most) < num_steps
        value, (by_x, by_noise) = linear(jnp.asarray(mean).reshape(1), jnp.zeros((most, draws)), (*padded, goes_on))
        laws.append((value, by_x[0] ** 2 * variance + jnp.sum(by_noise**2)))
    return np.array(laws, np.float64)


def errors(solver, process, start, end, steps):
    """The larger of the errors of mean and deviation over the deviation, by number of steps."""
    data = gaussian()
    begin, covariance = data.marginal(process, jnp.asarray(start))
    found = law(solver, process, data.denoiser(process), begin, covariance[0, 0], start, end, steps)
    mean, covariance = data.marginal(process, jnp.asarray(end))
    deviation = float(covariance[0, 0]) ** 0.5
    return np.maximum(np.abs(found[:, 0] - float(mean[0])), np.abs(np.sqrt(found[:, 1]) - deviation)) / deviation
