import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks.functional import count_parameters
from diffusion_jax.networks.inception import Activations, Inception, _average_pool


def _split():
    return nnx.split(nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0))))


def _outputs(graph, state, *shape):
    return jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, jnp.zeros(shape))


def test_sizes_of_the_full_network():
    graph, state = _split()
    # The InceptionV3 of the paper's other copies has 23,834,568 parameters without its auxiliary head: with 1000
    # classes, a bias of the last layer, and scale and shift of every batch norm, where here there is a shift only.
    norms = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(state) if "bias" in jax.tree_util.keystr(path))
    assert count_parameters(state) + norms - 8 * 2048 + 1000 == 23_834_568
    assert _outputs(graph, state, 2, 299, 299, 3) == Activations(
        jax.ShapeDtypeStruct((2, 2048), jnp.float32),
        jax.ShapeDtypeStruct((2, 1008), jnp.float32),
        jax.ShapeDtypeStruct((2, 2023), jnp.float32),
    )


def test_an_average_does_not_count_the_padding():
    x = jnp.arange(20.0).reshape(1, 4, 5, 1)
    pooled = np.asarray(_average_pool(x))[0, :, :, 0]
    grid = np.arange(20.0).reshape(4, 5)
    assert pooled[0, 0] == grid[:2, :2].mean() and pooled[3, 4] == grid[2:, 3:].mean()
    assert pooled[1, 2] == grid[:3, 1:4].mean() and pooled[0, 2] == grid[:2, 1:4].mean()
    np.testing.assert_allclose(_average_pool(jnp.full((1, 3, 3, 2), 7.0)), 7.0, rtol=1e-6)


def test_small_images_are_refused():
    graph, state = _split()
    assert _outputs(graph, state, 1, 75, 75, 3).features.shape == (1, 2048)
    with pytest.raises(ValueError, match=r"at least 75 x 75 pixels, got shape \(1, 74, 75, 3\)"):
        _outputs(graph, state, 1, 74, 75, 3)
