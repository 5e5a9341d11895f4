"""Checkpoints of score_sde_pytorch: NCSN++ of PyTorch with its names, loaded into ours by `weights.ncsnpp`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.ncsnpp import NCSNpp
from diffusion_jax.weights.files import open_weights
from diffusion_jax.weights.layout import export_params, import_params
from diffusion_jax.weights.ncsnpp import originals
from diffusion_jax.weights.options import with_defaults
from tests.parity import relative_error

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
from tests.parity import score_sde  # noqa: E402

SMALL = dict(image_size=8, in_channels=2, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
CASES = {
    "ncsnpp": dict(fir=True, progressive_input="residual", progressive="none", embedding="fourier"),
    "ddpmpp": dict(fir=False, progressive_input="none", progressive="none", embedding="positional"),
    "large": dict(fir=True, progressive_input="input_skip", progressive="output_skip", embedding="fourier"),
}


@pytest.mark.parametrize("name", CASES)
def test_checkpoints(name, tmp_path):
    options = SMALL | CASES[name]
    torch.manual_seed(0)
    net = score_sde.NCSNpp(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # As the authors' training writes them: the averages are a list of what is trained.
    trained = {name: 0 * tensor if "W" not in name else tensor for name, tensor in net.state_dict().items()}
    content = {
        "optimizer": {"state": {}},
        "model": {f"module.{name}": tensor for name, tensor in trained.items()},
        "ema": {"decay": 0.9, "num_updates": 3, "shadow_params": [p.data for p in net.parameters() if p.requires_grad]},
        "step": 7,
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    init, apply = init_apply(lambda rngs: NCSNpp(**options, rngs=rngs))
    layout = originals(with_defaults(NCSNpp, options))[0]
    params = import_params(layout, open_weights(tmp_path / "checkpoint.pth"), jax.eval_shape(init, jax.random.key(0)))
    exported = export_params(layout, params)
    assert {f"module.{name}" for name, _ in net.named_parameters()} == exported.keys()

    x = np.random.default_rng(0).standard_normal((2, 8, 8, 2)).astype(np.float32)
    c_noise = np.array([-1.5, 0.7], np.float32)
    with torch.no_grad():
        expected = net(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(c_noise)).numpy().transpose(0, 2, 3, 1)
    actual = jax.jit(apply)(params, jnp.asarray(x), jnp.asarray(c_noise))
    assert relative_error(actual, expected) < 2e-5
