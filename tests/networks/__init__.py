"""Tests of the networks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Params


def random_params(init: Callable[[jax.Array], Params], scale: float = 0.1, seed: int = 0) -> Params:
    """N(0, scale^2) in every parameter of the structure `init` gives, around 1 for the scales of norms.

    No layer is zero, as some are after `init`, and nothing needs to be compiled.
    """
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + scale * generator.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))
