"""RefineNet against its layers in torch.nn, and NCSN++ against UNet2DModel of diffusers, with random weights."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks import ncsnpp, refinenet, resample
from diffusion_jax.networks.functional import count_parameters, init_apply

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
F = torch.nn.functional


def to_torch(x):
    return torch.from_numpy(np.array(x))


def nchw(x):
    return to_torch(x).permute(0, 3, 1, 2).contiguous()


def nhwc(x) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


def random_params(init, seed: int = 0):
    """The structure of a network's parameters with values of order 1 / sqrt(fan_in), zero initialisers included."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "gamma", "alpha"):
            return jnp.asarray(1 + 0.2 * rng.standard_normal(leaf.shape), jnp.float32)
        fan_in = math.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 25
        return jnp.asarray(rng.standard_normal(leaf.shape) / math.sqrt(fan_in), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def output_and_gradient(apply, params, x, c_noise):
    """The output and the gradient of its mean square with respect to x."""

    def loss(x):
        y = apply(params, x, c_noise)
        return jnp.square(y).mean(), y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    return np.asarray(y), np.asarray(gradient)


def assert_close(actual, expected, tolerance: float = 2e-5) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


class TorchRefineNet:
    """The text of 1907.05600 (Appendix A) and 2006.09011 (Appendix B) in torch, reading our parameters."""

    def __init__(self, params, levels, conditional: bool):
        self.params = jax.tree.map(to_torch, params)["refinenet"]
        self.levels = levels
        self.conditional = conditional

    def conv(self, p, x, dilation: int = 1):
        kernel = p["kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, p.get("bias"), padding=dilation * (kernel.shape[-1] // 2), dilation=dilation)

    def norm(self, p, x, y):
        if self.conditional:
            gamma, alpha, beta = p["embed"]["embedding"][y].chunk(3, dim=1)
        else:
            gamma, alpha, beta = p["gamma"][None], p["alpha"][None], p["beta"][None]
        means = x.mean((2, 3))
        relative = (means - means.mean(1, keepdim=True)) / torch.sqrt(means.var(1, keepdim=True) + 1e-5)
        h = F.instance_norm(x, eps=1e-5) + (alpha * relative)[:, :, None, None]
        return gamma[:, :, None, None] * h + beta[:, :, None, None]

    def residual(self, p, x, y, halve: bool, dilation: int):
        pool = (lambda h: F.avg_pool2d(h, 2)) if halve else (lambda h: h)
        h = self.conv(p["conv1"], F.elu(self.norm(p["normalize1"], x, y)), dilation)
        h = pool(self.conv(p["conv2"], F.elu(self.norm(p["normalize2"], h, y)), dilation))
        return h + (pool(self.conv(p["shortcut"], x, dilation)) if "shortcut" in p else x)

    def units(self, p, x, y):
        for i in range(0, len(p["convs"]), 2):
            h = x
            for j in (str(i), str(i + 1)):
                h = self.norm(p["norms"][j], h, y) if self.conditional else h
                h = self.conv(p["convs"][j], F.elu(h))
            x = x + h
        return x

    def chain(self, p, x, y):
        path = x = F.elu(x)
        for i in ("0", "1"):
            if self.conditional:
                path = F.avg_pool2d(self.norm(p["norms"][i], path, y), 5, stride=1, padding=2)
            else:
                path = F.max_pool2d(path, 5, stride=1, padding=2)
            path = self.conv(p["convs"][i], path)
            x = x + path
        return x

    def refine(self, p, xs, y):
        xs = [self.units(p["adapt_convs"][str(i)], x, y) for i, x in enumerate(xs)]
        h = xs[0]
        if len(xs) == 2:
            if self.conditional:
                xs = [self.norm(p["msf"]["norms"][str(i)], x, y) for i, x in enumerate(xs)]
            xs = [self.conv(p["msf"]["convs"][str(i)], x) for i, x in enumerate(xs)]
            h = sum(F.interpolate(x, size=xs[0].shape[2:], mode="bilinear", align_corners=True) for x in xs)
        return self.units(p["output_convs"], self.chain(p["crp"], h, y), y)

    def __call__(self, x, y):
        h = self.conv(self.params["begin_conv"], x)
        outputs = []
        for i, (_, halve, dilation) in enumerate(self.levels):
            h = self.residual(self.params["res"][str(i)]["0"], h, y, halve, dilation)
            h = self.residual(self.params["res"][str(i)]["1"], h, y, False, dilation)
            outputs.append(h)
        h = self.refine(self.params["refine"]["0"], [outputs.pop()], y)
        for i in range(1, len(self.levels)):
            h = self.refine(self.params["refine"][str(i)], [outputs.pop(), h], y)
        return self.conv(self.params["end_conv"], F.elu(self.norm(self.params["normalizer"], h, y)))


STANDARD = ((1, False, 1), (2, True, 1), (2, False, 2), (2, False, 4))
DEEPEST = ((1, False, 1), (2, True, 1), (2, True, 1), (2, True, 1), (4, False, 2), (4, False, 4))


@pytest.mark.parametrize(
    "cls, kwargs, levels, size",
    [
        (refinenet.NCSN, {"num_levels": 3}, STANDARD, 12),
        (refinenet.NCSNv2, {}, STANDARD, 12),
        (refinenet.NCSNv2, {"depth": "deepest"}, DEEPEST, 16),
    ],
)
def test_refinenet(cls, kwargs, levels, size):
    init, apply = init_apply(lambda rngs: cls(ngf=4, rngs=rngs, **kwargs))
    params = random_params(init)
    x = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    y, gradient = output_and_gradient(apply, params, x, jnp.array([0.0, 2.0]))

    x_torch = nchw(x).requires_grad_()
    reference = TorchRefineNet(params, levels, cls is refinenet.NCSN)(x_torch, torch.tensor([0, 2]))
    assert_close(y, nhwc(reference))
    reference.square().mean().backward()
    assert_close(gradient, nhwc(x_torch.grad), 1e-4)


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 4, 3)])
def test_fir_resampling(kernel):
    from diffusers.models.upsampling import upfirdn2d_native

    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 6, 6, 3)))
    taps = (np.outer(kernel, kernel) / np.sum(kernel) ** 2).astype(np.float32)
    for options in ({"up": 2, "pad": (2, 1)}, {"down": 2, "pad": (1, 1)}, {"up": 3, "down": 2, "pad": (0, 3)}):
        reference = upfirdn2d_native(nchw(x), torch.from_numpy(taps), **options)
        assert_close(np.asarray(resample.upfirdn_2d(jnp.asarray(x), kernel, **options)), nhwc(reference))


def test_fir_resampling_with_convolution():
    from diffusers.models.downsampling import FirDownsample2D
    from diffusers.models.upsampling import FirUpsample2D

    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    for module, ours in ((FirUpsample2D, resample.upsample_conv_2d), (FirDownsample2D, resample.conv_downsample_2d)):
        layer = module(3, 5, use_conv=True)
        torch.nn.init.zeros_(layer.Conv2d_0.bias)
        weight = jnp.asarray(layer.Conv2d_0.weight.detach().permute(2, 3, 1, 0).numpy())
        assert_close(np.asarray(ours(x, weight)), nhwc(layer(nchw(x))))


RENAME = (
    (r"^time_embedding\.time_proj", "time_proj"),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.resnet", r"\1_blocks.\2.resnets.\3"),
    (r"^down\.(\d+)\.blocks\.(\d+)\.attention", r"down_blocks.\1.attentions.\2"),
    (r"^up\.(\d+)\.blocks\.\d+\.attention", r"up_blocks.\1.attentions.0"),
    (r"^down\.(\d+)\.downsampler", r"down_blocks.\1.resnet_down"),
    (r"^down\.(\d+)\.combiner\.conv", r"down_blocks.\1.skip_conv"),
    (r"^mid\.(\d+)\.(resnet|attention)", r"mid_block.\2s.\1"),
    (r"^up\.1\.output\.(norm|conv)", lambda match: "conv_norm_out" if match[1] == "norm" else "conv_out"),
    (r"^up\.(\d+)\.output\.(norm|conv)", r"up_blocks.\1.skip_\2"),
    (r"^up\.(\d+)\.upsampler", r"up_blocks.\1.resnet_up"),
    (r"\.to_out", ".to_out.0"),
    (r"\.(kernel|scale)$", ".weight"),
)


def diffusers_name(path) -> str:
    name = ".".join(entry.key for entry in path)
    for pattern, replacement in RENAME:
        name = re.sub(pattern, replacement, name)
    return name


def unet(size: int, channels: tuple[int, ...], layers: int, attention_at: int):
    """NCSN++ with "input_skip" and "output_skip" as diffusers expresses it."""
    from diffusers import UNet2DModel

    kinds = ["Attn" if size // 2**i == attention_at else "" for i in range(len(channels))]
    return UNet2DModel(
        sample_size=size,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=tuple(f"{kind}SkipDownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}SkipUpBlock2D" for kind in reversed(kinds)),
        time_embedding_type="fourier",
        mid_block_scale_factor=math.sqrt(2),
        norm_eps=1e-6,
        norm_num_groups=None,
        attention_head_dim=None,
    )


OPTIONS = {"progressive": "output_skip", "progressive_input": "input_skip"}


def test_ncsnpp():
    init, apply = init_apply(
        lambda rngs: ncsnpp.NCSNpp(
            image_size=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,), rngs=rngs, **OPTIONS
        )
    )
    params = random_params(init)
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = to_torch(leaf)
        state[diffusers_name(path)] = leaf.permute(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T if leaf.ndim == 2 else leaf
    net = unet(8, (128, 128), 1, 4).eval()
    net.load_state_dict(state)

    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    sigma = jnp.array([0.5, 3.0])
    y, gradient = output_and_gradient(apply, params, x, jnp.log(sigma))
    x_torch = nchw(x).requires_grad_()
    # UNet2DModel takes the logarithm itself, and divides by sigma, which here is the parameterization's part.
    reference = net(x_torch, to_torch(sigma)).sample * to_torch(sigma)[:, None, None, None]
    assert_close(y, nhwc(reference))
    reference.square().mean().backward()
    assert_close(gradient, nhwc(x_torch.grad), 1e-4)


def test_parameter_count_of_celebahq_256():
    with torch.device("meta"):
        net = unet(256, (128, 128, 256, 256, 256, 256, 256), 2, 16)
    init, _ = init_apply(
        lambda rngs: ncsnpp.NCSNpp(
            image_size=256, ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2, rngs=rngs, **OPTIONS
        )
    )
    ours = count_parameters(jax.eval_shape(init, jax.random.key(0)))
    assert ours == sum(p.numel() for p in net.parameters())
