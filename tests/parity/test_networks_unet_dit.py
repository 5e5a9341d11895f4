"""U-Net and DiT against diffusers with the same random weights: outputs, and gradients for parameters and input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.unet import UNet
from tests.parity import from_torch, relative_error

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5


def rename_unet(name):
    name = name.replace("to_out.0", "to_out")
    return "time_embedding.time_proj" if name == "time_proj" else name


def rename_dit(name):
    shared = "transformer_blocks.0.norm1.emb."
    for old, new in [
        ("pos_embed.proj", "x_embedder.proj"),
        (f"{shared}timestep_embedder.linear_", "t_embedder.mlp.fc"),
        (f"{shared}class_embedder", "y_embedder"),
        ("transformer_blocks", "blocks"),
        ("norm1.linear", "adaLN_modulation"),
        ("attn1.to_out.0", "attn.proj"),
        ("attn1", "attn"),
        ("ff.net.0.proj", "mlp.fc1"),
        ("ff.net.2", "mlp.fc2"),
        ("proj_out_1", "final_layer.adaLN_modulation"),
        ("proj_out_2", "final_layer.linear"),
    ]:
        name = name.replace(old, new)
    return name


def fuse_qkv(params):
    """Join the projections to queries, keys and values, which diffusers keeps apart."""
    for block in params["blocks"].values():
        parts = [block["attn"].pop(f"to_{name}") for name in "qkv"]
        block["attn"]["qkv"] = {leaf: np.concatenate([p[leaf] for p in parts], -1) for leaf in ("kernel", "bias")}
    return params


def compare(make, model, to_params, x, c_noise, label=None):
    """Run both networks on NHWC `x`, and compare the outputs and the gradients of a random projection of them."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    init, apply = init_apply(make)
    params = to_params(dict(model.named_parameters()))
    expected_shapes = jax.tree.map(lambda s: s.shape, jax.eval_shape(init, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == expected_shapes

    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    labels = {} if label is None else {"class_labels": torch.tensor(label)}
    y_torch = model(x_torch, torch.tensor(c_noise), **labels).sample
    c = jnp.asarray(c_noise)
    if getattr(model.config, "time_embedding_type", None) == "fourier":
        # There c_noise is sigma, whose logarithm diffusers takes itself, and by which it divides the output.
        c, y_torch = jnp.log(c), y_torch * torch.tensor(c_noise)[:, None, None, None]
    probe = np.random.default_rng(1).standard_normal(y_torch.shape).astype(np.float32)
    (y_torch * torch.tensor(probe)).sum().backward()

    cond = None if label is None else {"label": jnp.asarray(label)}

    def project(params, x):
        y = apply(params, x, c, cond)
        return (y * probe.transpose(0, 2, 3, 1)).sum(), y

    gradients, y = jax.jit(jax.grad(project, argnums=(0, 1), has_aux=True))(params, jnp.asarray(x))
    assert relative_error(y, y_torch.detach().numpy().transpose(0, 2, 3, 1)) < TOLERANCE
    assert relative_error(gradients[1], x_torch.grad.numpy().transpose(0, 2, 3, 1)) < TOLERANCE
    gradients_torch = to_params(
        {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in model.named_parameters()
        }
    )
    assert relative_error(ravel_pytree(gradients[0])[0], ravel_pytree(gradients_torch)[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        (dict(embedding="fourier"), dict(time_embedding_type="fourier")),
        (dict(num_classes=4), dict(num_class_embeds=5)),
        (dict(head_dim=8), dict(attention_head_dim=8)),
    ],
    ids=["ddpm", "fourier", "labels", "heads"],
)
def test_unet(ours, theirs):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        **dict(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(16, 32),
            down_block_types=("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D"),
            layers_per_block=2,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
            norm_num_groups=4,
            norm_eps=1e-6,
        )
        | theirs
    )
    kwargs = dict(image_size=8, channels=16, channel_mult=(1, 2), attention_resolutions=(8,), num_groups=4) | ours
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    c_noise = np.array([0.4, 3.7] if "embedding" in ours else [3.0, 871.0], np.float32)
    label = np.array([2, 4]) if "num_classes" in ours else None
    compare(
        lambda rngs: UNet(**kwargs, rngs=rngs), model, lambda arrays: from_torch(arrays, rename_unet), x, c_noise, label
    )


def test_dit():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=4,
        norm_eps=1e-6,
    )
    embedding = model.transformer_blocks[0].norm1.emb
    # The authors' frequencies; diffusers spreads them by 1 / (half - 1) instead of 1 / half.
    embedding.time_proj.downscale_freq_shift = 0
    for block in model.transformer_blocks:
        block.norm1.emb = embedding
    kwargs = dict(image_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=4, learn_sigma=True)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    compare(
        lambda rngs: DiT(**kwargs, rngs=rngs),
        model,
        lambda arrays: fuse_qkv(from_torch(arrays, rename_dit)),
        x,
        np.array([3.0, 871.0], np.float32),
        np.array([2, 4]),
    )
