"""Closed forms of categorical diffusion: all sequences of a small alphabet, and Markov chains by forward-backward."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.processes.categorical import LOG_ZERO, safe_log


class Enumerated:
    """A distribution over all sequences of `length` tokens of `values` values, from random weights or given ones."""

    def __init__(self, values=3, length=2, seed=0, weights=None):
        self.values, self.length = values, length
        self.sequences = np.array(list(itertools.product(range(values), repeat=length)))
        weights = (
            np.random.default_rng(seed).dirichlet(np.full(len(self.sequences), 0.5)) if weights is None else weights
        )
        self.p = np.asarray(weights, np.float64)

    @property
    def entropy(self):
        return -float(np.sum(self.p * np.log(np.maximum(self.p, 1e-300))))

    @property
    def marginals(self):
        """[length, values]."""
        one_hot = np.eye(self.values)[self.sequences]
        return np.einsum("n,nlk->lk", self.p, one_hot)

    @property
    def independent(self):
        """The product of the marginals, over the sequences."""
        return np.prod(self.marginals[np.arange(self.length), self.sequences], axis=1)

    @property
    def information(self):
        """I(x_1; x_2) for two tokens."""
        return float(np.sum(self.p * np.log(self.p / self.independent)))

    def D(self, process, others=False):
        """The exact log p(x_0 | x_t); with `others` log p(x_0^i | the other tokens of x_t)."""
        log_p, sequences = jnp.log(jnp.asarray(self.p, jnp.float32)), jnp.asarray(self.sequences)
        values = self.values

        def D(x, t, cond=None):
            t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (len(x),))
            evidence = process.log_evidence(x, t)  # [batch, length, values]
            each = jnp.stack([evidence[:, i, sequences[:, i]] for i in range(self.length)], -1)  # [batch, n, length]
            joint = log_p + each.sum(-1)
            found = []
            for i in range(self.length):
                here = joint - each[..., i] if others else joint
                rows = [
                    jax.nn.logsumexp(jnp.where(sequences[:, i] == k, here, LOG_ZERO), axis=-1) for k in range(values)
                ]
                found.append(jnp.stack(rows, -1))
            found = jnp.stack(found, 1)
            return jnp.maximum(found - jax.nn.logsumexp(found, axis=-1, keepdims=True), LOG_ZERO)

        return D

    def frequencies(self, samples):
        """The share of each sequence among samples [n, length]."""
        index = np.ravel_multi_index(np.asarray(samples).T, (self.values,) * self.length)
        return np.bincount(index, minlength=len(self.p)) / len(samples)


class Chain:
    """A Markov chain of `length` tokens: the exact denoiser by forward-backward with the evidence Q_t[., x_t]."""

    def __init__(self, values=4, length=8, seed=0):
        rng = np.random.default_rng(seed)
        self.values, self.length = values, length
        self.initial = rng.dirichlet(np.ones(values))
        self.transition = rng.dirichlet(np.full(values, 0.4), size=values)

    def sample(self, n, seed=0):
        rng = np.random.default_rng(seed)
        x = [rng.choice(self.values, n, p=self.initial)]
        for _ in range(self.length - 1):
            x.append((rng.random((n, 1)) > np.cumsum(self.transition[x[-1]], -1)).sum(-1).clip(0, self.values - 1))
        return np.stack(x, -1).astype(np.int32)

    def log_prob(self, x):
        """Nats of sequences [n, length]."""
        return np.log(self.initial[x[:, 0]]) + np.log(self.transition[x[:, :-1], x[:, 1:]]).sum(-1)

    def smoothed(self, evidence):
        """log p(x^i | evidence) [n, length, values] from log evidence of every token."""
        log_a = jnp.log(jnp.asarray(self.transition, jnp.float32))
        first = jnp.broadcast_to(jnp.log(jnp.asarray(self.initial, jnp.float32)), evidence[:, 0].shape)

        def forward(message, here):
            message = message + here
            return jax.nn.logsumexp(message[..., None] + log_a, axis=-2), message

        def backward(message, here):
            return jax.nn.logsumexp(log_a + (message + here)[:, None], axis=-1), message

        rows = jnp.moveaxis(evidence, 1, 0)
        _, left = jax.lax.scan(forward, first, rows)
        _, right = jax.lax.scan(backward, jnp.zeros_like(first), rows, reverse=True)
        found = jnp.moveaxis(left + right, 0, 1)
        return jnp.maximum(found - jax.nn.logsumexp(found, axis=-1, keepdims=True), LOG_ZERO)

    def D(self, process):
        def D(x, t, cond=None):
            return self.smoothed(process.log_evidence(x, jnp.broadcast_to(jnp.asarray(t, jnp.float32), (len(x),))))

        return D


def matrices(process, t):
    """Q_t [values, states] of a process at a time, from `log_forward`."""
    return np.exp(np.asarray(process.log_forward(jnp.arange(process.num_values)[None], jnp.float32(t)))[0])


def log_of(p):
    return safe_log(jnp.asarray(p, jnp.float32))
