"""The networks of benchmarks.gpu compute the same function in both frameworks, so their times can be compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu
from diffusion_jax.networks.functional import count_parameters, init_apply
from tests.parity import from_torch, relative_error

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
NAMES = list(gpu.workloads(tiny=True))
INNER = ("time_embedding", "conv_in", "down_blocks", "mid_block")  # of Stable Diffusion's U-Net, in its `encoder`


def rename(name: str, work: gpu.Workload) -> str:
    if not work.tokens[0]:
        return name
    name = name.replace("attentions", "cross_attentions")
    return f"encoder.{name}" if name.split(".")[0] in INNER else name


@pytest.mark.parametrize("name", NAMES)
def test_same_outputs(name):
    work = gpu.workloads(tiny=True)[name]
    torch.manual_seed(0)
    model = gpu.torch_network(work).eval()
    params = from_torch(dict(model.named_parameters()), lambda module: rename(module, work))
    init, apply = init_apply(gpu.networks(work, None))
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(init, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == shapes

    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, *work.shape)).astype(np.float32), np.array([3, 700])
    cond, theirs = None, ()
    if work.classes:
        cond, theirs = {"label": np.array([1, work.classes])}, (torch.tensor([1, work.classes]),)
    if work.tokens[0]:
        tokens = rng.normal(size=(2, *work.tokens)).astype(np.float32)
        cond, theirs = {"tokens": tokens}, (torch.tensor(tokens),)
    with torch.no_grad():
        expected = model(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), *theirs).numpy()
    actual = apply(params, jnp.asarray(x), jnp.asarray(t, jnp.float32), jax.tree.map(jnp.asarray, cond))
    assert relative_error(actual, expected.transpose(0, 2, 3, 1)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_same_sizes(name):
    work = gpu.workloads(tiny=False)[name]
    init, _ = init_apply(gpu.networks(work, None))
    with torch.device("meta"):
        model = gpu.torch_network(work)
    ours = count_parameters(jax.eval_shape(init, jax.random.key(0)))
    assert sum(p.numel() for p in model.parameters()) == ours


def test_the_program_compares_both():
    results = list(gpu.measure(gpu.workloads(tiny=True)["ddpm"], "eager", None, "float32", 0.05))
    assert [result["kind"] for result in results] == ["training", "sampling"]
    assert all(len(row) == 2 and min(row) > 0 for result in results for row in result["times"])
