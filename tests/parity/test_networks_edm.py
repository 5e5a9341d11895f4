"""SongUNet and DhariwalUNet against PyTorch networks with the authors' names, by the table of `weights.edm`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.edm import DhariwalUNet, SongUNet
from diffusion_jax.networks.functional import count_parameters, init_apply
from diffusion_jax.weights.edm import LAYOUT
from diffusion_jax.weights.layout import export_params, import_params
from tests.parity import relative_error

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
from tests.parity import edm  # noqa: E402

SMALL = dict(
    image_size=8,
    in_channels=2,
    out_channels=3,
    model_channels=8,
    channel_mult=(1, 2, 2),
    num_blocks=1,
    attn_resolutions=(4,),
)
NCSNPP = dict(
    embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=(1, 3, 3, 1), augment_dim=9
)
CASES = {
    "ddpmpp": (SongUNet, dict(num_classes=4)),
    "ncsnpp": (SongUNet, NCSNPP),
    "averages": (SongUNet, NCSNPP | dict(resample_filter=(1, 1), augment_dim=0)),
    "skips": (SongUNet, dict(encoder_type="skip", decoder_type="skip", resample_filter=(1, 3, 3, 1))),
    "adm": (DhariwalUNet, dict(num_classes=4, channels_per_head=4, channel_mult=(1, 2))),
}
C_NOISE = np.array([-1.5, 0.1, 1.0], np.float32)


@pytest.mark.parametrize("name", CASES)
def test_networks(name):
    cls, options = CASES[name]
    options = SMALL | options
    torch.manual_seed(0)
    net = edm.Net(song=cls is SongUNet, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    init, apply = init_apply(lambda rngs: cls(**options, rngs=rngs))
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    # The authors' files hold filters too, which are not weights.
    extra = {"model.enc.4x4_down.conv0.resample_filter": np.ones((1, 1, 2, 2), np.float32)}
    params = import_params(LAYOUT, state | extra, jax.eval_shape(init, jax.random.key(0)))
    exported = export_params(LAYOUT, params)
    assert exported.keys() == state.keys()
    assert all(np.array_equal(exported[name], state[name]) for name in state)

    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 8, 8, 2)).astype(np.float32)
    # 4, the number of classes, stands for none, which the authors write as zeros.
    label, told = np.array([0, 3, 4]), rng.standard_normal((3, 9)).astype(np.float32)
    one_hot = torch.tensor(np.eye(5, dtype=np.float32)[label][:, :4])
    cond = {"label": jnp.asarray(label)} if "num_classes" in options else {}
    cond |= {"augment": jnp.asarray(told)} if options.get("augment_dim") else {}
    given = [one_hot if "label" in cond else None, *([torch.tensor(told)] if "augment" in cond else [])]
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    expected = net(x_torch, torch.tensor(C_NOISE), *given)

    def loss(params, x):
        y = apply(params, x, jnp.asarray(C_NOISE), cond or None)
        return jnp.square(y).mean(), y

    if name != "adm":
        actual = jax.jit(loss)(params, x)[1]
    else:
        (gradient, gradient_x), actual = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
        expected.square().mean().backward()
        assert relative_error(gradient_x, x_torch.grad.numpy().transpose(0, 2, 3, 1)) < 1e-4
        exported = export_params(LAYOUT, gradient)
        for parameter, tensor in net.named_parameters():
            assert relative_error(exported[parameter], tensor.grad.numpy()) < 1e-3, parameter
    assert relative_error(actual, expected.detach().numpy().transpose(0, 2, 3, 1)) < 2e-5


@pytest.mark.parametrize(
    ("cls", "count", "options"),
    [
        (SongUNet, 55_733_891, dict(image_size=32, channel_mult=(2, 2, 2), augment_dim=9)),
        (DhariwalUNet, 295_899_267, dict(image_size=64, num_classes=1000)),
    ],
)
def test_parameter_counts(cls, count, options):
    """DDPM++ for CIFAR-10, with the weights that read the augmentation, and ADM for ImageNet."""
    init, _ = init_apply(lambda rngs: cls(**options, rngs=rngs))
    assert count_parameters(jax.eval_shape(init, jax.random.key(0))) == count
