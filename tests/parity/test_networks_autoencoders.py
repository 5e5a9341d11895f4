"""First stages, their discriminator and LPIPS against PyTorch with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.discriminator import NLayerDiscriminator
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.lpips import LAYERS, LPIPS
from diffusion_jax.networks.vq_model import VQModel
from diffusion_jax.weights.lpips import load_lpips
from tests.parity import from_torch, relative_error

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5


def rename(name):
    return name.replace("to_out.0", "to_out")


def nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def nchw(array, torch):
    return torch.tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def shake(model, torch):
    """Add noise to every parameter, so that none is zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def images(channels=3, size=16, batch=2):
    return np.random.default_rng(0).standard_normal((batch, size, size, channels)).astype(np.float32)


def check(make, model, encode, latent_channels):
    """Shapes of the parameters, encode, decode, and the gradients of a projection of decode(encode(x))."""
    torch = pytest.importorskip("torch")
    model = shake(model, torch)
    init, (ours_encode, ours_decode) = init_methods(make, ("encode", "decode"))
    params = from_torch(dict(model.named_parameters()), rename)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, jax.eval_shape(init, jax.random.key(0)))

    x = images()
    probe = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)
    h_torch = encode(model, nchw(x, torch))
    y_torch = model.decode(h_torch[:, :latent_channels]).sample
    (y_torch * nchw(probe, torch)).sum().backward()

    def project(params):
        h = ours_encode(params, jnp.asarray(x))
        y = ours_decode(params, h[..., :latent_channels])
        return (y * probe).sum(), (h, y)

    gradient, (h, y) = jax.jit(jax.grad(project, has_aux=True))(params)
    assert relative_error(h, nhwc(h_torch)) < TOLERANCE
    assert relative_error(y, nhwc(y_torch)) < TOLERANCE
    zero = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    expected = ravel_pytree(from_torch(zero, rename))[0]
    assert relative_error(ravel_pytree(gradient)[0], expected) < TOLERANCE


@pytest.mark.parametrize("quant", [True, False])
def test_autoencoder_kl(quant):
    diffusers = pytest.importorskip("diffusers")
    shared = dict(
        block_out_channels=(16, 24),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        mid_block_add_attention=quant,
    )
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **shared
    )

    def encode(model, x):
        h = model.encoder(x)
        return model.quant_conv(h) if quant else h

    check(lambda rngs: AutoencoderKL(image_size=16, **shared, rngs=rngs), model, encode, 4)


def test_vq_model_with_attention_and_codebook():
    diffusers = pytest.importorskip("diffusers")
    shared = dict(
        block_out_channels=(16, 24),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=32,
        vq_embed_dim=3,
    )
    model = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        **shared,
    )
    check(
        lambda rngs: VQModel(image_size=16, attention_levels=(1,), **shared, rngs=rngs),
        model,
        lambda model, x: model.encode(x).latents,
        3,
    )


def test_discriminator():
    torch = pytest.importorskip("torch")

    def conv(c_in, c_out, stride, bias):
        return torch.nn.Conv2d(c_in, c_out, 4, stride, 1, bias=bias)

    # taming-transformers' NLayerDiscriminator with GroupNorm in the place of BatchNorm.
    names = ["conv_in", "", "convs.0", "norm0", "", "convs.1", "norm1", "", "conv_out"]
    norms = [torch.nn.GroupNorm(4, c, eps=1e-6) for c in (16, 32)]
    parts = [
        conv(3, 8, 2, True),
        conv(8, 16, 2, False),
        norms[0],
        conv(16, 32, 1, False),
        norms[1],
        conv(32, 1, 1, True),
    ]
    act = torch.nn.LeakyReLU(0.2)
    model = torch.nn.Sequential(parts[0], act, parts[1], parts[2], act, parts[3], parts[4], act, parts[5])
    shake(model, torch)
    make = lambda rngs: NLayerDiscriminator(channels=8, n_layers=2, num_groups=4, rngs=rngs)
    init, (judge,) = init_methods(make, ("discriminate",))
    named = {f"{names[int(n.split('.')[0])]}.{n.split('.')[1]}": p for n, p in model.named_parameters()}
    params = from_torch(named, lambda name: name.replace("norm", "norms."))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, jax.eval_shape(init, jax.random.key(0)))
    x = images()
    params = jax.tree.map(jnp.asarray, params)
    assert relative_error(judge(params, jnp.asarray(x)), nhwc(model(nchw(x, torch)))) < TOLERANCE


def test_lpips_of_files_of_torch(tmp_path):
    """Against the definition of the metric in PyTorch, with random weights under the public files' names."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    parts, c_in = [], 3
    for i, block in enumerate(LAYERS):
        parts += [torch.nn.MaxPool2d(2)] if i else []
        for width in block:
            parts += [torch.nn.Conv2d(c_in, width, 3, padding=1), torch.nn.ReLU()]
            c_in = width
    vgg = torch.nn.Sequential(*parts)
    lins = {f"lin{i}.model.1.weight": torch.rand(1, block[-1], 1, 1) for i, block in enumerate(LAYERS)}
    torch.save({f"features.{name}": p for name, p in vgg.state_dict().items()}, tmp_path / "vgg16.pth")
    torch.save(lins, tmp_path / "lin.pth")
    params = load_lpips(tmp_path / "vgg16.pth", tmp_path / "lin.pth")

    def distance(x, y):
        shift, scale = (torch.tensor(v)[None, :, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
        total, block = 0.0, 0
        a, b = (x - shift) / scale, (y - shift) / scale
        for i, part in enumerate(vgg):
            a, b = part(a), part(b)
            if i + 1 == len(vgg) or isinstance(vgg[i + 1], torch.nn.MaxPool2d):
                unit = [f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b)]
                total = total + (lins[f"lin{block}.model.1.weight"] * (unit[0] - unit[1]) ** 2).sum(1).mean((1, 2))
                block += 1
        return total

    x, y = np.tanh(images(size=32)), np.tanh(images(size=32)[:, ::-1])
    init, (ours,) = init_methods(lambda rngs: LPIPS(rngs=rngs), ("distance",))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, jax.eval_shape(init, jax.random.key(0)))
    pair = np.stack([x, y], 1)
    with torch.no_grad():
        expected = distance(nchw(x, torch), nchw(np.ascontiguousarray(y), torch)).numpy()
    assert relative_error(jax.jit(ours)(params, pair), expected) < TOLERANCE
