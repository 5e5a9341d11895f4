"""Folders of diffusers: what is read and written of them, and what is refused, by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.weights import autoencoders, dit, folders, unet_2d
from diffusion_jax.weights.families import abstract, family_of, named

VAE = dict(image_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False)
UNET = dict(
    sample_size=8,
    block_out_channels=[32, 64],
    down_block_types=["DownBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "UpBlock2D"],
)


@pytest.fixture(scope="module")
def params():
    shapes = abstract(named("autoencoder_kl"), VAE)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def write(folder, params, **options):
    return folders.write_component(folder, named("autoencoder_kl"), VAE, params, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_precision_of_what_is_written(tmp_path, params, dtype):
    write(tmp_path, params, dtype=dtype)
    component = folders.open_component(tmp_path)
    assert str(component.tensors["encoder.conv_in.weight"].dtype) == dtype
    found = component.load()["encoder"]["conv_in"]["kernel"]
    expected = jnp.asarray(params["encoder"]["conv_in"]["kernel"]).astype(dtype).astype(jnp.float32)
    np.testing.assert_array_equal(found, expected)


def test_plain_weights_come_before_variants(tmp_path, params):
    write(tmp_path, params)
    plain = tmp_path / "diffusion_pytorch_model.safetensors"
    half = tmp_path / "diffusion_pytorch_model.fp16.safetensors"
    half.write_bytes(b"")
    assert folders.weights_file(tmp_path) == plain
    assert folders.weights_file(tmp_path, "fp16") == half
    plain.unlink()
    assert folders.weights_file(tmp_path) == half
    half.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"holds no weights such as diffusion_pytorch_model\.safetensors; there"
    ):
        folders.open_component(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"config\.json does not exist"),
        ("{", r"config\.json cannot be read as JSON"),
        ({"_class_name": "FluxTransformer2DModel"}, r"is a 'FluxTransformer2DModel'; there are networks for Auto"),
        ({"architectures": []}, "is a 'None'; there are networks for"),
        ({"_class_name": "AutoencoderKL", "norm_num_groups": "4"}, "norm_num_groups='4' must be like 32"),
        ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": [[]]}, "unet_2d_condition|cross_attention_dim"),
    ],
)
def test_folders_that_are_refused(tmp_path, config, message):
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        folders.open_component(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu' must be 'silu' or 'swish' for our UNet"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift='scale_shift' must be 'default'"),
        ({"a_new_option": 3}, r"a_new_option='3' .*UNet"),
        ({"sample_size": None}, "sample_size=None must be the side of a square"),
        ({"sample_size": [8, 16]}, r"sample_size=\(8, 16\) must be the side of a square"),
        ({"layers_per_block": 2.5}, "layers_per_block='2.5' must be like 2"),
        ({"flip_sin_to_cos": 1}, "flip_sin_to_cos='1' must be like True"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "in reverse order; they are DownBlock2D, AttnDownBlock2D"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types has 1 entries, block_out_channels 2"),
        ({"mid_block_scale_factor": 2}, r"mid_block_scale_factor=2 must be 1"),
    ],
)
def test_options_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        unet_2d.arguments(UNET | changes)


def test_options_that_say_nothing_are_read_over():
    assert unet_2d.arguments(UNET | {"_diffusers_version": "9", "a_new_option": None}) == unet_2d.arguments(UNET)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unet", dict(image_size=16, channels=32, channel_mult=(1, 1.5), attention_resolutions=(8,), head_dim=8)),
        ("unet", dict(image_size=8, channels=32, num_classes=4, norm_eps=1e-5, embedding="fourier")),
        (
            "ncsnpp",
            dict(image_size=16, nf=128, ch_mult=(1, 2), progressive="output_skip", progressive_input="input_skip"),
        ),
        ("autoencoder_kl", VAE | dict(attention_levels=(0,), use_quant_conv=False)),
        ("vq_model", dict(image_size=8, block_out_channels=(32, 64), vq_embed_dim=4)),
        ("dit", dict(image_size=8, hidden_size=32, depth=2, num_heads=4, num_classes=3, learn_sigma=True)),
    ],
)
def test_config_json_says_all_that_the_network_needs(name, arguments):
    family = named(name)
    config = family.config_of(dict(in_channels=3) | arguments)
    read = family.arguments(json.loads(json.dumps(config)))
    assert family_of(config, "").config_of(read) == config
    kept = {key: read[key] for key in arguments if key not in ("progressive", "freq_shift")}
    assert kept == {key: value for key, value in arguments.items() if key in kept}


@pytest.mark.parametrize(
    ("convert", "arguments", "message"),
    [
        (unet_2d.config_of, dict(image_size=8, in_channels=3, token_dim=8), "token_dim=8 must be 0: UNet2DModel"),
        (unet_2d.config_of, dict(image_size=8, in_channels=3, num_heads=2), "num_heads=2 must be 1, or head_dim"),
        (unet_2d.ncsnpp_config_of, dict(image_size=8, in_channels=3), "progressive='none' must be 'output_skip'"),
        (dit.config_of, dict(image_size=8, in_channels=3), "num_classes=0: DiTTransformer2DModel of diffusers is"),
        (autoencoders.kl_arguments, dict(shift_factor=0.1), "shift_factor=0.1 must be None"),
    ],
)
def test_what_has_no_counterpart_is_named(convert, arguments, message):
    with pytest.raises(ValueError, match=message):
        convert(arguments)


def test_components_of_a_pipeline(tmp_path):
    index = {"_class_name": "X", "unet": ["diffusers", "UNet2DModel"], "safety_checker": [None, None], "flag": True}
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(index))
    assert folders.components(tmp_path) == {"unet": "UNet2DModel"}
    path.write_text(json.dumps({"../unet": ["diffusers", "UNet2DModel"]}))
    with pytest.raises(ValueError, match=r"component '\.\./unet'"):
        folders.components(tmp_path)
