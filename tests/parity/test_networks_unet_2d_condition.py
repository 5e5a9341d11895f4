"""Text-to-image U-Nets and ControlNet against diffusers with the same random weights, through the layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from diffusion_jax.config import from_file
from diffusion_jax.networks.conditioning import guided
from diffusion_jax.networks.controlnet import ControlledUNet, ControlNetModel
from diffusion_jax.networks.functional import count_parameters, init_apply
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.systems import low_rank
from diffusion_jax.types import Embedded
from diffusion_jax.weights import families
from diffusion_jax.weights import unet_2d_condition as weights
from diffusion_jax.weights.files import write_weights
from diffusion_jax.weights.layout import export_params, import_params, tensors
from diffusion_jax.weights.options import with_defaults
from diffusion_jax.weights.public import read_factors
from tests.parity import relative_error

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5
CROSS = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
SHARED = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=12,
    norm_num_groups=4,
)
# Small relatives of the public checkpoints, by the options in which these differ.
VARIANTS = {
    "sd1": {},
    "sd2": dict(attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True),
    "lcm": dict(time_cond_proj_dim=20),
    "inpainting": dict(in_channels=9),
    "x4_upscaler": dict(
        in_channels=7,
        num_class_embeds=10,
        only_cross_attention=(True, False),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "sdxl": dict(
        block_out_channels=(16, 16, 32),
        attention_head_dim=(2, 2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    ),
}
# The public networks, by the variants of configs/stable_diffusion.py, and their numbers of parameters.
FULL = {
    "sd15": (dict(sample_size=64, cross_attention_dim=768), 859_520_964),
    "sd21": (
        dict(sample_size=96, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True),
        865_910_724,
    ),
    "x4_upscaler": (
        dict(
            sample_size=128,
            in_channels=7,
            block_out_channels=[256, 512, 512, 1024],
            down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
            up_block_types=["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
            cross_attention_dim=1024,
            num_class_embeds=1000,
            only_cross_attention=[True, True, True, False],
            use_linear_projection=True,
        ),
        473_398_020,
    ),
    "sdxl": (
        dict(
            sample_size=128,
            block_out_channels=[320, 640, 1280],
            attention_head_dim=[5, 10, 20],
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=[1, 2, 10],
            use_linear_projection=True,
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        2_567_463_684,
    ),
}


def shaken(model, torch):
    """Noise on every parameter, so that none is zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def state(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def nchw(array, torch):
    return torch.tensor(np.ascontiguousarray(np.asarray(array).transpose(0, 3, 1, 2)))


def nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make(network, arguments, rngs):
    return network(**arguments, rngs=rngs)


def conditions(arguments, torch):
    """(cond, what diffusers' forward takes for it)."""
    cond = {"tokens": normal(1, 2, 7, arguments["token_dim"])}
    theirs = dict(encoder_hidden_states=torch.tensor(cond["tokens"]))
    if arguments["num_classes"]:
        cond["label"] = np.array([3, arguments["num_classes"]])
        theirs["class_labels"] = torch.tensor(cond["label"])
    if arguments.get("vector_dim"):
        cond["vector"] = normal(2, 2, arguments["vector_dim"])
        cond["sizes"] = np.array([[64, 32, 0, 5, 64, 64], [1023, 999, 1, 0, 512, 511]])
        numbers = {"text_embeds": torch.tensor(cond["vector"]), "time_ids": torch.tensor(cond["sizes"])}
        theirs["added_cond_kwargs"] = numbers
    return cond, theirs


@pytest.mark.parametrize("name", VARIANTS)
def test_unet(name, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    types = dict(zip(("down_block_types", "up_block_types"), CROSS, strict=True))
    model = shaken(diffusers.UNet2DConditionModel(**{**SHARED, **types, **VARIANTS[name]}), torch)
    arguments = weights.arguments(dict(model.config)) | {"max_tokens": 7}
    init, apply = init_apply(functools.partial(make, UNet2DConditionModel, arguments))
    abstract = jax.eval_shape(init, jax.random.key(0))
    params = import_params(weights.LAYOUT, state(model), abstract)
    again = export_params(weights.LAYOUT, params)
    assert again.keys() == state(model).keys()
    for key, array in state(model).items():
        np.testing.assert_array_equal(again[key], array, err_msg=key)

    cond, theirs = conditions(arguments, torch)
    x, c_noise = normal(0, 2, 8, 8, 4), np.array([3.0, 871.0], np.float32)
    joined = x
    if arguments["image_channels"]:
        cond["image"] = normal(3, 2, 8, 8, arguments["image_channels"])
        joined = np.concatenate([x, cond["image"]], -1)
    if arguments["time_cond_proj_dim"]:
        embedding = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        theirs["timestep_cond"] = embedding(None, torch.tensor([0.5, 7.5]), arguments["time_cond_proj_dim"])
        cond = guided(Embedded(context=cond["tokens"]), jnp.float32([1.5, 8.5]), arguments["time_cond_proj_dim"])
    with torch.set_grad_enabled(name == "sd1"):
        expected = model(nchw(joined, torch), torch.tensor(c_noise), **theirs).sample
    x_ours, c_ours, cond = jax.tree.map(jnp.asarray, (x, c_noise, cond))
    if name != "sd1":
        assert relative_error(jax.jit(apply)(params, x_ours, c_ours, cond), nhwc(expected)) < TOLERANCE
        return
    probe = normal(4, *x.shape)
    (expected * nchw(probe, torch)).sum().backward()

    def project(params):
        y = apply(params, x_ours, c_ours, cond)
        return (y * probe).sum(), y

    gradient, y = jax.jit(jax.grad(project, has_aux=True))(params)
    assert relative_error(y, nhwc(expected)) < TOLERANCE
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    theirs = import_params(weights.LAYOUT, gradients, abstract)
    assert relative_error(ravel_pytree(gradient)[0], ravel_pytree(theirs)[0]) < TOLERANCE


def test_controlnet_and_controlled_unet():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    types = dict(zip(("down_block_types", "up_block_types"), CROSS, strict=True))
    unet = shaken(diffusers.UNet2DConditionModel(**SHARED, **types), torch)
    shared = {key: value for key, value in SHARED.items() if key != "sample_size"}
    model = diffusers.ControlNetModel(
        **shared, down_block_types=types["down_block_types"], conditioning_embedding_out_channels=(4, 8)
    )
    shaken(model, torch)
    given = weights.controlnet_arguments(dict(model.config)) | {"max_tokens": 7, "image_size": 8}
    base = weights.arguments(dict(unet.config)) | {"max_tokens": 7}

    def both(rngs):
        return ControlledUNet(make(UNet2DConditionModel, base, rngs), make(ControlNetModel, given, rngs), scale=0.7)

    init, apply = init_apply(both)
    abstract = jax.eval_shape(init, jax.random.key(0))
    params = {
        "unet": import_params(weights.LAYOUT, state(unet), abstract["unet"]),
        "controlnet": import_params(weights.LAYOUT, state(model), abstract["controlnet"]),
    }
    assert export_params(weights.LAYOUT, params["controlnet"]).keys() == state(model).keys()
    cond, theirs = conditions(base, torch)
    control = np.random.default_rng(5).random((2, 16, 16, 3), np.float32)
    x, c_noise = normal(0, 2, 8, 8, 4), np.array([3.0, 871.0], np.float32)
    with torch.no_grad():
        timestep = torch.tensor(c_noise)
        down, mid = model(
            nchw(x, torch),
            timestep,
            **theirs,
            controlnet_cond=nchw(control, torch),
            conditioning_scale=0.7,
            return_dict=False,
        )
        expected = unet(
            nchw(x, torch), timestep, **theirs, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    cond["control"] = 2 * control - 1
    y = jax.jit(apply)(params, *jax.tree.map(jnp.asarray, (x, c_noise, cond)))
    assert relative_error(y, nhwc(expected)) < TOLERANCE


@pytest.mark.parametrize("name", [*(name for name in VARIANTS if name != "lcm"), "controlnet"])  # theirs has no LCM
def test_checkpoints_of_the_authors(name):
    """What we export under their names is what diffusers' converter makes the model's own names of, and comes back."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders import single_file_utils as converters

    types = dict(zip(("down_block_types", "up_block_types"), CROSS, strict=True))
    if name == "controlnet":
        given = {key: value for key, value in SHARED.items() if key != "sample_size"}
        types = dict(down_block_types=types["down_block_types"], conditioning_embedding_out_channels=(4, 8, 8, 12))
        model = shaken(diffusers.ControlNetModel(**given, **types), torch)
        arguments = weights.controlnet_arguments(dict(model.config)) | {"image_size": 8}
    else:
        model = shaken(diffusers.UNet2DConditionModel(**{**SHARED, **types, **VARIANTS[name]}), torch)
        arguments = weights.arguments(dict(model.config))
    family = families.named("controlnet" if name == "controlnet" else "unet_2d_condition")
    abstract, expected = families.abstract(family, arguments), state(model)
    params = import_params(weights.LAYOUT, expected, abstract)
    _, *layouts = family.layouts(with_defaults(family.network, arguments))
    *prefixed, alone = (export_params(layout, params) for layout in layouts)
    plain = {key: torch.tensor(array) for key, array in prefixed[-1].items()}
    if name == "controlnet":
        converted = converters.convert_controlnet_checkpoint(plain, dict(model.config))
    else:
        converted = converters.convert_ldm_unet_checkpoint(plain, dict(model.config))
        # The averages, which the converter finds by the names of the weights.
        averages = {key: torch.tensor(array) for key, array in prefixed[0].items()}
        zeros = {key: torch.zeros_like(tensor) for key, tensor in plain.items()}
        again = converters.convert_ldm_unet_checkpoint(zeros | averages, dict(model.config), extract_ema=True)
        assert all(torch.equal(again[key], tensor) for key, tensor in converted.items())
    assert converted.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(converted[key].numpy(), array, err_msg=key)
    others = {"cond_stage_model.x": np.ones(3, np.float32), "first_stage_model.y": np.ones(3, np.float32)}
    for file in (*({**held, **others} for held in prefixed), alone):
        found = families.load(family, arguments, file, abstract)
        jax.tree.map(np.testing.assert_array_equal, found, params)


def test_low_rank_updates_by_kohya_in_the_names_of_the_authors(tmp_path):
    """As files for SDXL are; the factors are those under the names that diffusers makes of these."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    model = diffusers.UNet2DConditionModel(**{**SHARED, **VARIANTS["sdxl"]})
    arguments = weights.arguments(dict(model.config))
    family = families.named("unet_2d_condition")
    network = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), families.abstract(family, arguments))
    arrays, rng = {}, np.random.default_rng(0)
    for layer, tensor in export_params(family.layouts(with_defaults(family.network, arguments))[-1], network).items():
        if layer.endswith((".attn1.to_q.weight", ".ff.net.2.weight", ".proj_in.weight", ".in_layers.2.weight")):
            name = f"lora_unet_{layer.removesuffix('.weight').replace('.', '_')}"
            window = (1,) * (tensor.ndim - 2)
            arrays[f"{name}.lora_down.weight"] = rng.normal(size=(2, *tensor.shape[1:])).astype(np.float32)
            arrays[f"{name}.lora_up.weight"] = rng.normal(size=(tensor.shape[0], 2, *window)).astype(np.float32)
            arrays[f"{name}.alpha"] = np.float32(2)
    assert any("output_blocks_0_1_" in name for name in arrays) and any("middle_block_1_" in name for name in arrays)
    (file,) = write_weights(tmp_path / "theirs", arrays)
    tensors_, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        {name: torch.tensor(array) for name, array in arrays.items()}, unet_config=model.config
    )
    (other,) = write_weights(tmp_path / "names", {name: tensor.numpy() for name, tensor in tensors_.items()})
    section = {"name": "unet_2d_condition", **arguments}
    found, expected = (low_rank.merge(network, read_factors(str(p), section, network), 1.0) for p in (file, other))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    changed = sum(bool(leaf.any()) for leaf in jax.tree.leaves(found))
    assert changed == len(arrays) // 3


@pytest.mark.parametrize("name", FULL)
def test_full_size_names_shapes_and_counts(name):
    """Against diffusers' network of the public config, which takes no memory."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config, count = FULL[name]
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(**config)
    arguments = weights.arguments(dict(model.config))
    init, _ = init_apply(functools.partial(make, UNet2DConditionModel, arguments))
    abstract = jax.eval_shape(init, jax.random.key(0))
    shapes = {key: tensor.shape for key, tensor in tensors(weights.LAYOUT, abstract).items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert count_parameters(abstract) == count
    again = weights.config_of(arguments)
    assert weights.arguments(again) == arguments
    section = from_file(f"configs/stable_diffusion.py:{name}").network.to_dict()
    assert weights.config_of({**section, "image_size": config["sample_size"]}) == again
