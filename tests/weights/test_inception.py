import jax
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks.inception import Inception
from diffusion_jax.weights.inception import load_inception
from tests.weights import inception_state, write_legacy, write_zip


@pytest.fixture(scope="module")
def state():
    return inception_state()


def test_batch_norms_are_folded(tmp_path, state):
    tracked = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(0, np.int64)}
    params = load_inception(write_legacy(tmp_path / "inception.pth", state | tracked))
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0)))))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)

    name = "Mixed_6b.branch7x7_2"  # a 1 x 7 kernel: at one place it is an inner product
    folded = params["Mixed_6b"]["branch7x7_2"]["conv"]
    x = np.random.default_rng(1).standard_normal((7, 128)).astype(np.float64)
    gamma, beta, mean, var = (
        state[f"{name}.bn.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    convolved = np.einsum("oiw,wi->o", state[f"{name}.conv.weight"][:, :, 0].astype(np.float64), x)
    expected = (convolved - mean) / np.sqrt(var + 1e-3) * gamma + beta
    found = np.einsum("wio,wi->o", folded["kernel"][0].astype(np.float64), x) + folded["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_everything_that_is_wrong_is_reported_at_once(tmp_path, state):
    small = {name: array[:1] for name, array in state.items()}
    del small["Mixed_5b.branch1x1.bn.running_var"], small["fc.weight"]
    small |= {"AuxLogits.fc.bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError) as refusal:
        load_inception(write_zip(tmp_path / "small.pth", small))
    words = str(refusal.value)
    for part in (
        "small.pth does not hold",
        "2 missing: Mixed_5b.branch1x1.bn.running_var, fc.weight",
        "1 unexpected: AuxLogits.fc.bias",
        "of another shape: fc.bias (1,) for (1008,)",
        "...",
    ):
        assert part in words
    with pytest.raises(ValueError, match="holds a str, not a state dict"):
        load_inception(write_zip(tmp_path / "text.pth", {}, b"\x80\x02X\x02\x00\x00\x00hi."))
