"""Text-to-image U-Net and ControlNet: what holds without PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.config import from_file
from diffusion_jax.networks.controlnet import ControlledUNet, ControlNetModel
from diffusion_jax.networks.functional import embedder, init_apply
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.systems import low_rank
from diffusion_jax.types import Embedded
from diffusion_jax.weights import unet_2d_condition as weights
from diffusion_jax.weights.files import write_weights
from diffusion_jax.weights.layout import export_params, tensors
from diffusion_jax.weights.public import read_factors
from tests.networks import random_params

TINY = dict(
    image_size=2,
    block_out_channels=(8, 16),
    layers_per_block=1,
    transformer_layers=(1, 0),
    num_attention_heads=2,
    norm_num_groups=4,
    token_dim=6,
    max_tokens=3,
)
ONE_LEVEL = TINY | dict(block_out_channels=(8,), transformer_layers=(1,))
FILM = ONE_LEVEL | dict(cross_attention=False, vector_dim=5, vector_concat=True)


def controlled(rngs):
    controlnet = ControlNetModel(**ONE_LEVEL, hint_channels=(4, 8), rngs=rngs)
    return ControlledUNet(UNet2DConditionModel(**ONE_LEVEL, rngs=rngs), controlnet)


@pytest.mark.slow
def test_an_untrained_controlnet_leaves_the_unet_exactly_as_it_is():
    """Its last layers are zero, the others and the whole U-Net are random."""
    init, apply = init_apply(controlled)
    params = random_params(init)
    keep = ("controlnet_down_blocks", "controlnet_mid_block")
    net = params["controlnet"]
    params["controlnet"] = net | {name: jax.tree.map(jnp.zeros_like, net[name]) for name in keep}
    _, base = init_apply(lambda rngs: UNet2DConditionModel(**ONE_LEVEL, rngs=rngs))
    normal = np.random.default_rng(0).standard_normal
    x, c_noise = jnp.asarray(normal((2, 2, 2, 4), np.float32)), jnp.array([3.0, 800.0])
    cond = {"tokens": jnp.asarray(normal((2, 3, 6), np.float32))}
    hint = {"control": jnp.asarray(normal((2, 4, 4, 3), np.float32))}
    run = jax.jit(apply)
    expected = jax.jit(base)(params["unet"], x, c_noise, cond)
    np.testing.assert_array_equal(run(params, x, c_noise, cond | hint), expected)
    params["controlnet"]["controlnet_mid_block"]["bias"] += 1.0
    assert not np.allclose(run(params, x, c_noise, cond | hint), expected)
    embedded = jax.eval_shape(embedder(controlled), params, cond | hint)
    assert embedded.controlnet.image.shape == (2, 2, 2, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_is_computed_in_the_dtype(dtype):
    """Without a condition too, whose zeros are of another dtype."""
    init, apply = init_apply(lambda rngs: UNet2DConditionModel(**TINY, num_classes=3, rngs=rngs), dtype)
    params = jax.eval_shape(init, jax.random.key(0))
    x, c_noise = jax.ShapeDtypeStruct((1, 2, 2, 4), np.float32), jax.ShapeDtypeStruct((1,), np.float32)
    program = jax.make_jaxpr(apply)(params, x, c_noise)
    used = [e for e in program.eqns if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert used and {str(e.invars[1].aval.dtype) for e in used} == {dtype}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(transformer_layers=(1,)), "transformer_layers=.* has 1 entries; .* 2 levels"),
        (dict(num_attention_heads=3), "num_heads=3 must be a positive divisor"),
        (dict(image_size=3), "image_size=3 must be a multiple of 2"),
        (dict(transformer_layers=(-1, 0)), "must be at least 0"),
        (dict(vector_concat=True), "vector_concat=True needs vector_dim > 0"),
        (dict(cross_attention=False, only_cross_attention=True), "only_cross_attention=True needs a context"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: UNet2DConditionModel(**TINY | changes, rngs=nnx.Rngs(0)))


def test_residuals_of_another_network_are_refused():
    init, apply = init_apply(lambda rngs: UNet2DConditionModel(**TINY, rngs=rngs))
    params = jax.eval_shape(init, jax.random.key(0))
    one = jnp.zeros((1, 2, 2, 8))
    cond = Embedded(context=jnp.zeros((1, 3, 6)), residuals=(one, one))
    with pytest.raises(ValueError, match="has 2 arrays; this network needs 5"):
        jax.eval_shape(apply, params, jnp.zeros((1, 2, 2, 4)), jnp.zeros(1), cond)


def test_equal_numbers_for_all_levels_are_one_number_in_config_json():
    one = weights.config_of(TINY)
    several = TINY | dict(num_attention_heads=(2, 2), only_cross_attention=(False, False), mid_transformer_layers=1)
    assert weights.config_of(several) == one
    assert weights.config_of(weights.arguments(one)) == one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(mid_block_type="UNetMidBlock2D"), "mid_block_type='UNetMidBlock2D' must be 'UNetMidBlock2DCrossAttn'"),
        (dict(encoder_hid_dim=32), r"encoder_hid_dim='32' .*UNet2DConditionModel"),
        (dict(down_block_types=["DownBlock2D"]), "for each of the 4 levels"),
        (dict(up_block_types=["UpBlock2D"] * 4), "must mirror down_block_types"),
        (dict(transformer_layers_per_block=[1, 2]), "transformer_layers_per_block=.* one of these per level"),
        (dict(addition_embed_type="text"), "must be 'text_time' or null"),
        (dict(in_channels=3), "out_channels=4 must be in 1..3"),
    ],
)
def test_options_of_other_unets_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        weights.arguments({"_class_name": "UNet2DConditionModel", **changes})


def test_options_of_latent_consistency_models():
    """As in the config.json of SimianLuo/LCM_Dreamshaper_v7, with the name of the projection in its weights."""
    there = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "time_cond_proj_dim": 256}
    there |= {"time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None}
    arguments = weights.arguments(there)
    assert arguments["time_cond_proj_dim"] == 256
    assert weights.config_of({**arguments, "image_size": 64})["time_cond_proj_dim"] == 256
    sizes = TINY | dict(time_cond_proj_dim=12)
    init, _ = init_apply(lambda rngs: UNet2DConditionModel(**sizes, rngs=rngs))
    assert tensors(weights.LAYOUT, jax.eval_shape(init, jax.random.key(0)))["time_embedding.cond_proj.weight"]


# unet/config.json of cvssp/audioldm-s-full-v2, without what has the value of other models.
AUDIOLDM = dict(
    _class_name="UNet2DConditionModel",
    block_out_channels=[128, 256, 384, 640],
    class_embed_type="simple_projection",
    class_embeddings_concat=True,
    cross_attention_dim=[128, 256, 384, 640],
    down_block_types=["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    up_block_types=[*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
    in_channels=8,
    out_channels=8,
    projection_class_embeddings_input_dim=512,
    sample_size=128,
)


def test_options_and_names_of_audioldm():
    arguments = weights.arguments(AUDIOLDM)
    expected = dict(cross_attention=False, vector_dim=512, vector_concat=True, transformer_layers=(0, 1, 1, 1))
    assert {name: arguments[name] for name in expected} == expected
    assert AUDIOLDM.items() <= weights.config_of(arguments).items()
    init, _ = init_apply(lambda rngs: UNet2DConditionModel(**FILM, rngs=rngs))
    params = jax.eval_shape(init, jax.random.key(0))
    assert tensors(weights.LAYOUT, params)["class_embedding.weight"].shape == (32, 5)
    assert tensors(weights.originals(FILM)[-1], params)["film_emb.weight"].shape == (32, 5)
    with pytest.raises(ValueError, match="class_embed_type='simple_projection' must be null, or"):
        weights.arguments(AUDIOLDM | dict(class_embeddings_concat=False))


def test_a_vector_that_is_concatenated_is_read_and_no_tokens_are_self_attention():
    """Residual blocks read twice the embedding; without tokens both attentions of a transformer are of its pixels."""
    init, apply = init_apply(lambda rngs: UNet2DConditionModel(**FILM, rngs=rngs))
    params = random_params(init)
    assert params["encoder"]["mid_block"]["resnets"]["0"]["time_emb_proj"]["kernel"].shape[0] == 2 * 32
    attention = params["encoder"]["mid_block"]["cross_attentions"]["0"]["transformer_blocks"]["0"]["attn2"]
    assert attention["to_k"]["kernel"].shape == (8, 8)
    x, t = jax.random.normal(jax.random.key(1), (2, 4, 2, 4)), jnp.ones(2)
    vector = jax.random.normal(jax.random.key(2), (2, 5))
    apply = jax.jit(apply)
    out, swapped = (apply(params, x, t, {"vector": rows}) for rows in (vector, vector[::-1]))
    assert out.shape == x.shape and np.abs(out - swapped).max() > 1e-3


def test_lcm_lora_updates_every_layer_that_it_names(tmp_path):
    """In the layout of latent-consistency/lcm-lora-sdv1-5, which is kohya's: dense layers and convolutions."""
    init, _ = init_apply(lambda rngs: UNet2DConditionModel(**TINY, rngs=rngs))
    network = jax.eval_shape(init, jax.random.key(0))
    layers = low_rank.targets(network, from_file("configs/lcm.py:sd15_lora").lora.modules)
    ends = (".to_q", ".to_k", ".to_v", ".to_out.0", ".proj_in", ".proj_out", ".ff.net.0.proj", ".ff.net.2", ".conv1")
    ends += (".conv2", ".conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", ".time_emb_proj")
    arrays, random, named = {}, np.random.default_rng(0), 0
    shapes = {name: (tensor.shape, tensor) for name, tensor in tensors(weights.LAYOUT, network).items()}
    full = export_params(weights.LAYOUT, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), network))
    for name in shapes:
        layer = name.removesuffix(".weight")
        if not name.endswith(".weight") or not layer.endswith(ends):
            continue
        kernel, key, named = full[name], f"lora_unet_{layer.replace('.', '_')}", named + 1
        arrays[f"{key}.lora_down.weight"] = random.normal(size=(2, *kernel.shape[1:])).astype(np.float32)
        window = (1,) * (kernel.ndim - 2)
        arrays[f"{key}.lora_up.weight"] = random.normal(size=(kernel.shape[0], 2, *window)).astype(np.float32)
        arrays[f"{key}.alpha"] = np.float32(8)
    (file,) = write_weights(tmp_path, arrays)
    factors = read_factors(str(file), {"name": "unet_2d_condition", **TINY}, network)
    found = {path[:-1] for path, _ in _leaves(factors)}
    assert found == set(layers) and len(found) == named
    one = arrays["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"]
    up = factors["encoder"]["down_blocks"]["0"]["resnets"]["0"]["conv1"]["up"]
    np.testing.assert_allclose(up, 8 / 2 * one[:, :, 0, 0].T, rtol=1e-6)


def _leaves(tree):
    return [(tuple(key.key for key in path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
