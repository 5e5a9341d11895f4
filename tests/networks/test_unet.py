"""The DDPM U-Net: published sizes, structure, conditions and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.functional import count_parameters, init_apply
from diffusion_jax.networks.unet import UNet
from tests.networks import random_params

TINY = dict(
    image_size=8,
    in_channels=2,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_groups=4,
)


def build(dtype="float32", **kwargs):
    init, apply = init_apply(lambda rngs: UNet(**(TINY | kwargs), rngs=rngs), dtype)
    return jax.jit(init), jax.jit(apply)


@pytest.fixture(scope="module")
def inputs():
    return jax.random.normal(jax.random.key(3), (3, 8, 8, 2)), jnp.array([0.0, 400.0, 999.0])


@pytest.mark.parametrize(
    ("kwargs", "count"),
    [
        # arXiv:2006.11239, appendix B: 35.7 M for CIFAR-10, 114 M for LSUN and CelebA-HQ; to the last parameter, the
        # sizes of the public checkpoints google/ddpm-cifar10-32 and google/ddpm-celebahq-256.
        (dict(image_size=32, channel_mult=(1, 2, 2, 2)), 35_746_307),
        (dict(image_size=256, channel_mult=(1, 1, 2, 2, 4, 4)), 113_673_219),
    ],
)
def test_published_sizes(kwargs, count):
    init, _ = init_apply(lambda rngs: UNet(**kwargs, channels=128, attention_resolutions=(16,), rngs=rngs))
    assert count_parameters(jax.eval_shape(init, jax.random.key(0))) == count


@pytest.mark.few(1)
@pytest.mark.parametrize("kwargs", [{}, dict(resample_with_conv=False), dict(embedding="fourier"), dict(head_dim=4)])
def test_variants_start_at_zero_and_keep_the_shape(inputs, kwargs):
    init, apply = build(out_channels=5, **kwargs)
    params = init(jax.random.key(0))
    x, c_noise = inputs
    y = apply(params, x, c_noise)
    assert y.shape == (3, 8, 8, 5)
    np.testing.assert_array_equal(y, 0.0)
    assert np.abs(apply(random_params(init), x, c_noise)).max() > 0.01


def test_the_options_of_vdm(inputs):
    """At step 0 the network returns its input, and noise does not depend on the embedding of the time."""
    init, apply = build(residual_input=True, zero_emb=True, kernel_init="fan_in", channels=32, num_groups=32)
    params, (x, c_noise) = init(jax.random.key(0)), inputs
    block = params["up_blocks"]["1"]["resnets"]["0"]  # reads 96 channels and returns 32
    for name, fan_in in (("conv1", 9 * 96), ("conv_shortcut", 96)):
        assert float(block[name]["kernel"].std()) == pytest.approx(fan_in**-0.5, rel=0.05)
    np.testing.assert_array_equal(apply(params, x, c_noise), x)
    projections = [block["time_emb_proj"] for block in params["mid_block"]["resnets"].values()]
    assert all(set(layer) == {"kernel"} and not layer["kernel"].any() for layer in projections)
    with pytest.raises(ValueError, match=r"kernel_init .*'lecun'.* fan_in"):
        build(kernel_init="lecun")[0](jax.random.key(0))
    with pytest.raises(ValueError, match="residual_input"):
        build(residual_input=True, out_channels=3)[0](jax.random.key(0))


def test_rows_do_not_see_each_other(inputs):
    init, apply = build()
    params, (x, c_noise) = random_params(init), inputs
    together = apply(params, x, c_noise)
    alone = jnp.concatenate([apply(params, x[i : i + 1], c_noise[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_depends_on_x_the_time_and_dropout(inputs):
    init, apply = build(dropout=0.3)
    params, (x, c_noise) = random_params(init), inputs
    y = apply(params, x, c_noise)
    for other in (
        apply(params, x + 0.5, c_noise),
        apply(params, x, c_noise + 100),
        apply(params, x, c_noise, key=jax.random.key(0)),
    ):
        assert (np.abs(other - y).max((1, 2, 3)) > 1e-3).all()


def test_attention_is_at_its_resolutions_and_in_the_middle():
    init, _ = build(num_res_blocks=2, channel_mult=(1, 1, 1), attention_resolutions=(4,))
    params = jax.eval_shape(init, jax.random.key(0))
    count = lambda part: len(part.get("attentions", {}))
    assert [count(block) for _, block in sorted(params["down_blocks"].items())] == [0, 2, 0]
    assert [count(block) for _, block in sorted(params["up_blocks"].items())] == [0, 3, 0]
    assert count(params["mid_block"]) == 1


def test_the_mean_of_the_tokens_is_added_to_the_embedding(inputs):
    """Without attention to the tokens their order does not matter, and without the projection nothing of them does."""
    one_level = dict(channel_mult=(1,), attention_resolutions=(8,))
    init, apply = build(token_dim=4, max_tokens=5, pool_tokens=True, **one_level)
    params, (x, c_noise) = random_params(init), inputs
    tokens = jax.random.normal(jax.random.key(0), (3, 5, 4))

    def out(tokens, *silent):
        kept = lambda path, p: p * (not {key.key for key in path} & set(silent))
        cond = {"tokens": tokens, "mask": jnp.ones((3, 5), bool)}
        return apply(jax.tree_util.tree_map_with_path(kept, params), x, c_noise, cond)

    pooled = out(tokens, "cross_attentions")
    np.testing.assert_allclose(out(tokens[:, ::-1], "cross_attentions"), pooled, atol=1e-5)
    assert np.abs(out(tokens + 1, "cross_attentions") - pooled).max() > 1e-3
    parts = ("cross_attentions", "token_pool")
    np.testing.assert_array_equal(out(tokens + 1, *parts), out(tokens, *parts))
    with pytest.raises(ValueError, match="pool_tokens needs tokens"):
        build(pool_tokens=True)[0](jax.random.key(0))


def test_labels(inputs):
    init, apply = build(num_classes=3)
    params, (x, c_noise) = random_params(init, scale=0.3), inputs
    null = apply(params, x, c_noise)
    np.testing.assert_array_equal(null, apply(params, x, c_noise, {"label": jnp.full(3, 3)}))
    labelled = apply(params, x, c_noise, {"label": jnp.array([0, 3, 1])})
    np.testing.assert_allclose(labelled[1], null[1], atol=1e-5)
    assert np.abs(labelled[0] - null[0]).max() > 1e-3 and np.abs(labelled[2] - null[2]).max() > 1e-3
    with pytest.raises(ValueError, match="'label'"):
        apply(params, x, c_noise, {})


@pytest.mark.slow
def test_rematerialisation_gives_the_same_gradient(inputs):
    init, apply = build()
    _, apply_remat = build(remat=True)
    params, (x, c_noise) = random_params(init), inputs
    gradient, gradient_remat = (
        jax.jit(jax.grad(lambda p, a=a: jnp.sin(a(p, x, c_noise)).sum()))(params) for a in (apply, apply_remat)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, gradient_remat)


def test_bfloat16_is_near_float32(inputs):
    init, apply = build()
    _, apply_bf16 = build("bfloat16")
    params, (x, c_noise) = random_params(init), inputs
    y, y_bf16 = apply(params, x, c_noise), apply_bf16(params, x, c_noise)
    assert y_bf16.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(y_bf16 - y) / np.linalg.norm(y) < 0.03


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=9), "image_size=9 must be a multiple of 2"),
        (dict(attention_resolutions=(16,)), r"attention_resolutions=\(16,\).*\[8, 4\]"),
        (dict(num_groups=3), "num_groups=3"),
        (dict(num_heads=3), "num_heads=3"),
        (dict(head_dim=5), "head_dim=5"),
        (dict(embedding="learned"), "embedding='learned'"),
    ],
)
def test_impossible_sizes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_unfit_images_are_refused():
    init, apply = build()
    params = jax.eval_shape(init, jax.random.key(0))
    for shape, message in [
        ((1, 7, 8, 2), r"\(1, 7, 8, 2\).* multiple of 2"),
        ((1, 8, 5, 2), r"\(1, 8, 5, 2\).* multiple of 2"),
        ((1, 8, 8, 3), r"\(1, 8, 8, 3\).* 2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(apply, params, jnp.ones(shape), jnp.ones(1))
