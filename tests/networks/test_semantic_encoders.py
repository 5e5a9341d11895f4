"""Networks of diffusion autoencoders: the code in a residual block, encoders, and the MLP of latent DDIM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks.adm import ADM, ResBlock
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.mlp_skip import MLPSkip
from diffusion_jax.networks.semantic_encoders import MLPEncoder, StridedEncoder, unet_encoder


def randomised(module: nnx.Module, seed: int = 0) -> nnx.Module:
    """The module with random parameters, since many start at zero."""
    rng, state = np.random.default_rng(seed), nnx.state(module)
    nnx.update(module, jax.tree.map(lambda p: jnp.float32(0.3 * rng.standard_normal(p.shape)), state))
    return module


@pytest.mark.parametrize("shifts", [False, True])
def test_a_code_multiplies_what_the_timestep_has_modulated(shifts):
    """(h (1 + t_s) + t_b) (1 + z_s) + z_b is a block without a code and with another scale and shift."""
    options = dict(resampling="none", dropout=0.0, use_scale_shift_norm=True, num_groups=2, rngs=nnx.Rngs(0))
    block = randomised(ResBlock(4, 4, 3, code_dim=5, code_shift=shifts, **options))
    rng = np.random.default_rng(1)
    x, emb, code = (jnp.float32(rng.standard_normal(shape)) for shape in ((1, 4, 4, 4), (1, 3), (1, 5)))
    scale, shift = np.split(block.emb_layers[1](jax.nn.silu(emb)), 2, -1)
    of_code = np.asarray(block.cond_emb_layers[1](jax.nn.silu(code)))
    code_scale, code_shift = np.split(of_code, 2, -1) if shifts else (of_code, 0)
    plain = ResBlock(4, 4, 3, **options)
    for name in ("in_layers", "out_layers"):
        for own, other in zip(getattr(plain, name), getattr(block, name), strict=True):
            if isinstance(own, nnx.Module):
                nnx.update(own, nnx.state(other))
    both = np.concatenate([(1 + scale) * (1 + code_scale) - 1, shift * (1 + code_scale) + code_shift], -1)
    plain.emb_layers[1].kernel[...] = jnp.zeros((3, 8))
    plain.emb_layers[1].bias[...] = jnp.float32(both[0])
    np.testing.assert_allclose(block(x, emb, code), plain(x, emb), atol=1e-5)
    assert float(jnp.abs(block(x, emb, code) - block(x, emb)).max()) > 1e-2


def test_mlp_skip_is_the_authors_formula():
    net = randomised(MLPSkip(shape=(3,), hidden=5, num_layers=4, time_channels=4, rngs=nnx.Rngs(0)))
    x, t = np.float32([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]]), np.float32([3.0, 700.0])
    silu = lambda h: h / (1 + np.exp(-h))
    affine = lambda layer, h: h @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    angle = t[:, None] * np.exp(-np.log(10_000) * np.arange(2) / 2)
    emb = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    emb = affine(net.time_embed[2], silu(affine(net.time_embed[0], emb)))
    h = x
    for i, layer in enumerate(net.layers):
        h = affine(layer.linear, np.concatenate([h, x], 1) if i else h) * (1 + affine(layer.linear_emb, silu(emb)))
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
        h = silu(h * np.asarray(layer.norm.scale[...]) + np.asarray(layer.norm.bias[...]))
    np.testing.assert_allclose(net(x, t), affine(net.linear_out, np.concatenate([h, x], 1)), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"shape=\(2, 2\)"):
        MLPSkip(shape=(2, 2), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: MLPEncoder(shape=(8, 8, 1), code_dim=6, hidden=4, num_layers=1, rngs=rngs),
        lambda rngs: StridedEncoder(
            image_size=8,
            in_channels=1,
            code_dim=6,
            channels=(4, 4),
            attention_after=1,
            num_heads=2,
            num_groups=2,
            rngs=rngs,
        ),
        lambda rngs: unet_encoder(
            image_size=8,
            in_channels=1,
            code_dim=6,
            model_channels=4,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_groups=2,
            rngs=rngs,
        ),
    ],
    ids=["mlp", "strided", "unet"],
)
def test_encoders_give_a_code_and_read_no_time(make):
    init, apply = init_apply(make)
    params = init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    z = apply(params, x, jnp.zeros(3))
    assert z.shape == (3, 6) and float(jnp.abs(z).max()) > 0  # no zero code, which a decoder could not learn from
    np.testing.assert_array_equal(z, apply(params, x, jnp.full(3, 500.0)))
    np.testing.assert_allclose(apply(params, x[1:2], jnp.zeros(1)), z[1:2], atol=1e-5)


def test_the_papers_encoders_and_decoders_have_the_authors_shapes():
    """PDAE's dense layers read 4096 numbers at 128 x 128 and 2048 at 64 x 64, as in the authors' comments."""
    for size, channels, after, numbers in (
        (128, (64, 128, 256, 256, 256), 2, 4096),
        (64, (64, 128, 128, 128), 1, 2048),
    ):
        net = nnx.eval_shape(
            lambda size=size, channels=channels, after=after: StridedEncoder(
                image_size=size, channels=channels, attention_after=after, rngs=nnx.Rngs(0)
            )
        )
        assert net.linear_out.kernel.shape == (numbers, 512)
    sizes = dict(image_size=32, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(16,))
    plain, scaled, shifted = (
        nnx.eval_shape(lambda options=options: ADM(**sizes, num_head_channels=32, **options, rngs=nnx.Rngs(0)))
        for options in ({}, dict(code_dim=7), dict(code_dim=7, code_in_encoder=False, code_shift=True))
    )
    assert plain.conditions == Conditions() and set(scaled.conditions) == {"code"}
    own = lambda net, *path: jax.tree.leaves(nnx.state(net.input_blocks))
    assert len(own(scaled)) > len(own(plain)) == len(own(shifted))
    assert shifted.middle_block[0].cond_emb_layers[1].kernel.shape == (128, 2 * 64)
    assert scaled.middle_block[0].cond_emb_layers[1].kernel.shape == (7, 64)


def test_what_does_not_fit_a_strided_encoder_is_refused():
    with pytest.raises(ValueError, match="image_size=6"):
        StridedEncoder(image_size=6, channels=(4, 4), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"attention_after=2 must be in 0\.\.1"):
        StridedEncoder(image_size=8, channels=(4, 4), num_groups=2, attention_after=2, rngs=nnx.Rngs(0))
