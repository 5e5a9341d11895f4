"""ADM's U-Net and the noisy classifier against PyTorch networks with the authors' names, by the tables of `weights`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.adm import ADM
from diffusion_jax.networks.encoder_unet import EncoderUNet
from diffusion_jax.networks.functional import count_parameters, init_apply
from diffusion_jax.weights import adm as tables
from diffusion_jax.weights.layout import export_params, import_params
from tests.parity import relative_error

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
from tests.parity import adm  # noqa: E402

SMALL = dict(
    image_size=8,
    in_channels=1,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_head_channels=8,
    num_groups=4,
)
C_NOISE = np.array([0.0, 20.0, 999.0], np.float32)


def loaded(cls, table, options, **torch_options):
    """Our apply and parameters, and the PyTorch network that they come from, of which every parameter is random."""
    torch.manual_seed(0)
    model = adm.Net(**options, **torch_options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = {key: value for key, value in options.items() if key != "attention_2d"}
    init, apply = init_apply(lambda rngs: cls(**ours, rngs=rngs))
    state = {table.prefix + name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = import_params(table, state, jax.eval_shape(init, jax.random.key(0)))
    exported = export_params(table, params)
    assert exported.keys() == state.keys()
    assert all(np.array_equal(exported[name], state[name]) for name in state)
    return apply, params, model


def image(seed=0, size=8):
    return np.random.default_rng(seed).standard_normal((3, size, size, 1)).astype(np.float32)


def nchw(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


CASES = {
    "adm": (tables.LAYOUT, dict(num_classes=5, channel_mult=(0.5, 2))),
    "new_order": (tables.LAYOUT, dict(use_new_attention_order=True)),
    "upsampler": (tables.LAYOUT, dict(image_channels=1, low_res=2, num_classes=3)),
    "iddpm": (tables.LAYOUT, dict(resblock_updown=False, num_head_channels=None, num_heads=2)),
    "ldm": (tables.LDM, dict(resblock_updown=False, use_scale_shift_norm=False)),
    "pooling": (tables.LAYOUT, dict(resblock_updown=False, conv_resample=False, attention_resolutions=())),
    "consistency": (tables.CONSISTENCY, dict(use_new_attention_order=True, attention_2d=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_adm(name):
    table, options = CASES[name]
    options = SMALL | dict(out_channels=2) | options
    apply, params, model = loaded(ADM, table, options)
    x, label, low_res = image(), np.array([0, 2, 1]), image(1, 2)
    cond = {"label": jnp.asarray(label)} if options.get("num_classes") else {}
    cond |= {"image": jnp.asarray(low_res)} if options.get("image_channels") else {}
    given = dict(label=torch.tensor(label)) if "label" in cond else {}
    given |= dict(image=nchw(low_res)) if "image" in cond else {}

    def loss(params, x):
        y = apply(params, x, jnp.asarray(C_NOISE), cond or None)
        return jnp.square(y).mean(), y

    x_torch = nchw(x).requires_grad_()
    expected = model(x_torch, torch.tensor(C_NOISE), **given)
    if name != "adm":
        actual = jax.jit(loss)(params, x)[1]
    else:
        (gradient, gradient_x), actual = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
        expected.square().mean().backward()
        assert relative_error(gradient_x, x_torch.grad.numpy().transpose(0, 2, 3, 1)) < 1e-4
        exported = export_params(table, gradient)
        for parameter, tensor in model.named_parameters():
            assert relative_error(exported[parameter], tensor.grad.numpy()) < 1e-3, parameter
    assert relative_error(actual, expected.detach().numpy().transpose(0, 2, 3, 1)) < 2e-5


@pytest.mark.parametrize(("scale_shift", "updown", "pool"), [(True, True, "attention"), (False, False, "adaptive")])
def test_encoder_unet(scale_shift, updown, pool):
    options = SMALL | dict(use_scale_shift_norm=scale_shift, resblock_updown=updown, pool=pool, num_classes=5)
    apply, params, model = loaded(EncoderUNet, tables.LAYOUT, options)
    with torch.no_grad():
        expected = model(nchw(image()), torch.tensor(C_NOISE)).numpy()
    assert relative_error(jax.jit(apply)(params, image(), jnp.asarray(C_NOISE)), expected) < 2e-5


MULTS = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
LARGE = dict(model_channels=256, num_res_blocks=2)
UPSAMPLER = dict(channel_mult=MULTS[256], num_res_blocks=2, image_channels=3, num_classes=1000)
IDDPM = dict(model_channels=128, resblock_updown=False, num_head_channels=None, attention_resolutions=(16, 8))
LDM = dict(resblock_updown=False, use_scale_shift_norm=False, num_res_blocks=2, out_channels=3)


@pytest.mark.parametrize(
    ("millions", "options"),
    [
        # arXiv:2105.05233, tables 11 and 13: 296 M, 422 M, 554 M, 559 M, 312 M and 309 M.
        (295.9, dict(image_size=64, num_classes=1000)),
        (421.5, dict(image_size=128, channel_mult=MULTS[128], num_classes=1000, **LARGE)),
        (553.8, dict(image_size=256, channel_mult=MULTS[256], num_classes=1000, **LARGE)),
        (559.0, dict(image_size=512, channel_mult=MULTS[512], num_classes=1000, **LARGE)),
        (311.8, dict(image_size=256, low_res=64, num_head_channels=None, **UPSAMPLER)),
        (308.8, dict(image_size=512, low_res=128, attention_resolutions=(32, 16), **UPSAMPLER)),
        (52.5, dict(image_size=32, channel_mult=(1, 2, 2, 2), **IDDPM)),
        # arXiv:2112.10752, tables 12 and 13: 274 M, 295 M and, beside the first stage, 400.9 M.
        (274.1, dict(image_size=64, model_channels=224, num_head_channels=32, **LDM)),
        (400.9, dict(image_size=64, channel_mult=(1, 2, 3, 5), class_token_dim=512, num_heads=1, **LDM)),
    ],
)
def test_published_parameter_counts(millions, options):
    if "class_token_dim" in options:
        options = options | dict(num_classes=1000, num_head_channels=None)
    init, _ = init_apply(lambda rngs: ADM(**{"out_channels": 6} | options, rngs=rngs))
    params = jax.eval_shape(init, jax.random.key(0))
    counted = count_parameters(params) - count_parameters(params["label_emb"] if "class_token_dim" in options else {})
    assert round(counted / 1e6, 1) == millions


@pytest.mark.parametrize(("size", "millions"), [(64, 65.4), (512, 54.4)])
def test_published_parameter_counts_of_classifiers(size, millions):
    """65 M and 54 M in table 12 of arXiv:2105.05233."""
    options = dict(channel_mult=MULTS[size], num_res_blocks=4 if size == 64 else 2)
    init, _ = init_apply(lambda rngs: EncoderUNet(image_size=size, num_classes=1000, **options, rngs=rngs))
    assert round(count_parameters(jax.eval_shape(init, jax.random.key(0))) / 1e6, 1) == millions
