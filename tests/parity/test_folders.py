"""Folders of diffusers and back: the network of the folder computes the same here, and our folder loads there."""

import functools
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.functional import count_parameters, init_apply, init_methods
from diffusion_jax.systems import low_rank
from diffusion_jax.weights import export, families, schedulers
from diffusion_jax.weights.files import write_weights
from diffusion_jax.weights.folders import open_component, write_component
from diffusion_jax.weights.layout import export_params, tensors
from diffusion_jax.weights.lora import Update, components, read_lora, write_lora, write_updates
from tests.parity import relative_error

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
TOLERANCE = 2e-5

DDPM = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    down_block_types=("AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D"),
    layers_per_block=1,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    attention_head_dim=None,
    norm_num_groups=4,
    norm_eps=1e-6,
)
# As config.json of unconditional latent diffusion has it, with widths that are no multiples of the first.
LDM = dict(
    sample_size=8,
    block_out_channels=(16, 24),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=8,
    norm_num_groups=4,
)
NCSNPP = dict(
    sample_size=8,
    block_out_channels=(128, 128),
    down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    layers_per_block=1,
    time_embedding_type="fourier",
    mid_block_scale_factor=2**0.5,
    norm_eps=1e-6,
    norm_num_groups=None,
    attention_head_dim=None,
)
FIRST_STAGE = dict(sample_size=16, block_out_channels=(16, 24), layers_per_block=1, norm_num_groups=4)
KL = FIRST_STAGE | dict(
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.13025
)
VQ = FIRST_STAGE | dict(
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    num_vq_embeddings=32,
    vq_embed_dim=3,
    latent_channels=4,
)
DIT = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=3,
    out_channels=6,
    num_layers=11,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=4,
)
DENOISERS = {
    "ddpm": ("UNet2DModel", DDPM),
    "ldm": ("UNet2DModel", LDM),
    "labels": ("UNet2DModel", LDM | dict(num_class_embeds=5, add_attention=False)),
    "ncsnpp": ("UNet2DModel", NCSNPP),
    "dit": ("DiTTransformer2DModel", DIT),
}


def random_model(name, options):
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        embeddings = [block.norm1.emb for block in getattr(model, "transformer_blocks", ())]
        for embedding in embeddings[1:]:  # copies of one in every public file
            embedding.load_state_dict(embeddings[0].state_dict())
    return model.eval()


def nchw(x):
    return torch.tensor(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def rewritten(model, component, params, folder):
    """The model that diffusers makes of the folder we write."""
    extra = {"scaling_factor": component.config["scaling_factor"]} if "scaling_factor" in component.config else {}
    write_component(folder, component.family, component.arguments, params, max_bytes=2**14, extra=extra)
    assert (folder / "diffusion_pytorch_model.safetensors.index.json").exists()
    again = type(model).from_pretrained(folder, low_cpu_mem_usage=False).eval()
    changed = {
        key: (value, again.config[key])
        for key, value in model.config.items()
        if not key.startswith("_") and again.config[key] != value and again.config[key] != list(value or ())
    }
    assert not changed
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy())
    model.load_state_dict(again.state_dict(), strict=True)
    return again


@pytest.mark.parametrize("case", DENOISERS)
def test_denoisers(tmp_path, case):
    name, options = DENOISERS[case]
    model = random_model(name, options)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if case == "ldm" else "10GB")
    component = open_component(tmp_path / "theirs")
    params = component.load()
    _, apply = init_apply(lambda rngs: component.family.network(**component.arguments, rngs=rngs))

    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    c_noise = np.array([0.4, 3.7] if case == "ncsnpp" else [3.0, 871.0], np.float32)
    labels = np.array([2, 4]) if case in ("labels", "dit") else None

    def run(model):
        given = {} if labels is None else {"class_labels": torch.tensor(labels)}
        y = nhwc(model(nchw(x), torch.tensor(c_noise), **given).sample)
        # There UNet2DModel divides by sigma, which here is the parameterization's part.
        return y * c_noise[:, None, None, None] if case == "ncsnpp" else y

    cond = None if labels is None else {"label": jnp.asarray(labels)}
    c = jnp.log(c_noise) if case == "ncsnpp" else jnp.asarray(c_noise)
    y = jax.jit(apply)(params, jnp.asarray(x), c, cond)
    assert relative_error(y, run(model)) < TOLERANCE
    np.testing.assert_array_equal(run(rewritten(model, component, params, tmp_path / "ours")), run(model))


@pytest.mark.parametrize(("name", "options"), [("AutoencoderKL", KL), ("VQModel", VQ)])
def test_first_stages(tmp_path, name, options):
    model = random_model(name, options)
    model.save_pretrained(tmp_path / "theirs")
    component = open_component(tmp_path / "theirs")
    params = component.load()
    make = lambda rngs: component.family.network(**component.arguments, rngs=rngs)
    _, (encode, decode) = init_methods(make, ("encode", "decode"))
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)

    def run(model):
        h = model.quant_conv(model.encoder(nchw(x)))
        return nhwc(h), nhwc(model.decode(h[:, :4]).sample)

    h, y = run(model)
    found = jax.jit(lambda params, x: encode(params, x))(params, x)
    assert relative_error(found, h) < TOLERANCE
    assert relative_error(jax.jit(decode)(params, h[..., :4]), y) < TOLERANCE
    again = run(rewritten(model, component, params, tmp_path / "ours"))
    np.testing.assert_array_equal(again[1], y)


def test_half_precision_and_names_of_old_files(tmp_path):
    model = random_model("UNet2DModel", LDM)
    model.half().save_pretrained(tmp_path / "half", variant="fp16")
    component = open_component(tmp_path / "half")
    assert str(component.tensors["conv_in.weight"].dtype) == "float16"
    params = component.load()
    assert params["conv_in"]["kernel"].dtype == jnp.float32
    weight = model.conv_in.weight.detach().float().numpy()
    np.testing.assert_array_equal(params["conv_in"]["kernel"], weight.transpose(2, 3, 1, 0))
    with pytest.raises(FileNotFoundError, match="holds no weights variant 'bf16'"):
        open_component(tmp_path / "half", "bf16")

    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = model.float().state_dict()
    for new, former in old.items():
        state = {name.replace(new, former): tensor for name, tensor in state.items()}
    folder = tmp_path / "old"
    folder.mkdir()
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    (folder / "config.json").write_text((tmp_path / "half" / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, open_component(folder).load(), params)


def test_the_class_that_dit_had_formerly(tmp_path):
    """Transformer2DModel, which the public folder names."""
    options = DIT | dict(num_layers=2)
    model = random_model("DiTTransformer2DModel", options)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    more = dict(cross_attention_dim=None, num_vector_embeds=None, only_cross_attention=False)
    path.write_text(json.dumps(config | more | {"_class_name": "Transformer2DModel", "use_linear_projection": False}))
    component = open_component(tmp_path)
    assert component.family.name == "dit" and component.arguments["depth"] == 2


def test_low_rank_updates(tmp_path):
    """W + B A with what diffusers reads from our file, and the network that we make of the same factors."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    model = random_model("UNet2DModel", LDM)
    model.save_pretrained(tmp_path / "theirs")
    component = open_component(tmp_path / "theirs")
    network, layout = component.load(), component.family.layouts(component.arguments)[0]
    factors = low_rank.init(jax.random.key(0), network, rank=2, modules=r"to_[qkv]$|to_out$|conv1$|conv_shortcut$")
    factors = jax.tree.map(lambda x: x + 0.1, factors)
    write_lora(tmp_path / "lora", layout, network, factors, 0.5)
    updates, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(tmp_path / "lora"))
    assert not alphas
    modules = dict(model.named_modules())
    downs = [name for name in updates if name.endswith(".lora_A.weight")]
    assert len(downs) * 2 == len(updates) == len(jax.tree.leaves(factors))
    with torch.no_grad():
        for name in downs:
            down, up = updates[name], updates[name.replace("lora_A", "lora_B")]
            module = modules[name.removeprefix("unet.").removesuffix(".lora_A.weight")]
            update = torch.einsum("or,r...->o...", up.flatten(1), down)
            module.weight.add_(update.reshape(module.weight.shape))
    merged = low_rank.merge(network, factors, 0.5)
    _, apply = init_apply(lambda rngs: component.family.network(**component.arguments, rngs=rngs))
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 3)).astype(np.float32)
    y = jax.jit(apply)(merged, jnp.asarray(x), jnp.array([5.0]))
    assert relative_error(y, nhwc(model(nchw(x), torch.tensor([5.0])).sample)) < TOLERANCE


def text_encoder(tmp_path):
    """(model, component): a small text encoder of transformers with random weights, and the folder that it wrote."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(vocab_size=99, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, max_position_embeddings=9, eos_token_id=98))
    model.eval().save_pretrained(tmp_path / "theirs")
    component = open_component(tmp_path / "theirs")
    return model, component


def test_low_rank_updates_of_a_text_encoder_by_kohya(tmp_path):
    """diffusers' conversion of the names and factors of kohya's files, added to transformers' model."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    model, component = text_encoder(tmp_path)
    network, layout = component.load(), component.family.layouts(component.arguments)[0]
    rng, arrays = np.random.default_rng(0), {}
    for i in range(2):
        for layer, (c_in, c_out) in {
            "self_attn.v_proj": (16, 16),
            "self_attn.out_proj": (16, 16),
            "mlp.fc1": (16, 24),
        }.items():
            name = f"lora_te_text_model.encoder.layers.{i}.{layer}".replace(".", "_")
            arrays[f"{name}.lora_down.weight"] = rng.normal(size=(3, c_in)).astype(np.float32)
            arrays[f"{name}.lora_up.weight"] = rng.normal(size=(c_out, 3)).astype(np.float32)
            arrays[f"{name}.alpha"] = np.float32(1.5)
    (file,) = write_weights(tmp_path / "kohya", arrays)
    assert components(file) == {"text_encoder"}
    old = StableDiffusionLoraLoaderMixin.lora_state_dict(str(file))[0]
    updates = diffusers.utils.convert_state_dict_to_peft(old)
    modules = {name.removeprefix("text_model."): module for name, module in model.named_modules()}
    downs = [name for name in updates if "lora_A" in name]
    assert len(downs) == 6
    with torch.no_grad():
        for name in downs:
            layer = name.removeprefix("text_encoder.").removeprefix("text_model.").split(".lora")[0]
            modules[layer].weight.add_(0.5 * updates[name.replace("lora_A", "lora_B")] @ updates[name])  # alpha / rank
    factors = read_lora(file, layout, network, prefix="text_encoder")
    # The names in between are those of diffusers' own files of old. They hold no alpha.
    for i, names in enumerate((old, updates)):
        (other,) = write_weights(tmp_path / str(i), {name: tensor.numpy() for name, tensor in names.items()})
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            low_rank.merge(network, read_lora(other, layout, network, prefix="text_encoder"), 0.5),
            low_rank.merge(network, factors, 1.0),
        )
    merged = low_rank.merge(network, factors, 1.0)
    make = functools.partial(component.family.network, **component.arguments)
    (call,) = init_methods(lambda rngs: make(rngs=rngs), ("__call__",))[1]
    ids = rng.integers(1, 98, (2, 9))
    y = jax.jit(call)(merged, jnp.asarray(ids, jnp.int32))
    expected = model(torch.from_numpy(ids)).last_hidden_state.detach().numpy()
    assert relative_error(y.hidden, expected) < TOLERANCE
    assert relative_error(jax.jit(call)(network, jnp.asarray(ids, jnp.int32)).hidden, expected) > 0.01


# diffusers' converter knows no attention outside of the middle.
PLAIN = dict(down_block_types=KL["down_block_types"], up_block_types=KL["up_block_types"])


@pytest.mark.parametrize(("name", "options"), [("AutoencoderKL", KL), ("VQModel", VQ | PLAIN)])
def test_first_stages_of_latent_diffusions_own_files(tmp_path, name, options):
    """What we export under the authors' names is what diffusers' converter makes the model's own names of."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    model = random_model(name, options)
    model.save_pretrained(tmp_path)
    component = open_component(tmp_path)
    params = component.load()
    for layout in component.family.layouts(component.arguments)[1:]:
        original = export_params(layout, params)
        theirs = {key.removeprefix("first_stage_model."): torch.tensor(x) for key, x in original.items()}
        converted = convert_ldm_vae_checkpoint(theirs, dict(model.config))
        expected = {key: x for key, x in model.state_dict().items() if not key.startswith("quantize.")}
        assert converted.keys() == expected.keys()
        for key, tensor in expected.items():
            np.testing.assert_array_equal(converted[key].numpy(), tensor.numpy())
        again = families.load(component.family, component.arguments, original, params)
        jax.tree.map(np.testing.assert_array_equal, again, params)


# config.json of public folders, without entries that say the default, and the published numbers of parameters.
PUBLIC = {
    "google/ddpm-cifar10-32": (
        dict(
            _class_name="UNet2DModel",
            sample_size=32,
            block_out_channels=[128, 256, 256, 256],
            down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
        ),
        35_746_307,
    ),
    "CompVis/ldm-celebahq-256": (
        dict(_class_name="UNet2DModel", sample_size=64, attention_head_dim=32, act_fn="silu"),
        274_056_163,
    ),
    "the first stage of Stable Diffusion": (
        dict(
            _class_name="AutoencoderKL",
            sample_size=512,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
        ),
        83_653_863,
    ),
    "facebook/DiT-XL-2-256": (
        dict(_class_name="Transformer2DModel", out_channels=8, cross_attention_dim=None),
        675_129_632 - 256 * 1152,  # the table of positions is fixed, and no parameter here
    ),
}


@pytest.mark.parametrize("folder", PUBLIC)
def test_networks_of_public_folders_have_the_published_size(folder):
    config, expected = PUBLIC[folder]
    family = families.family_of(config, folder)
    shapes = families.abstract(family, family.arguments(config))
    assert count_parameters(shapes) == expected
    # Names in the file, which for DiT hold the embeddings once per block.
    names = tensors(family.layouts(family.arguments(config))[0], shapes)
    assert sum(np.prod(tensor.shape) for tensor in names.values() if not tensor.copy_of) == expected


@pytest.mark.parametrize("solver", [dict(name="ancestral", variance="beta"), dict(name="ddim")])
def test_an_exported_pipeline_is_loaded_and_drawn(tmp_path, solver):
    """`from_pretrained` reads our model_index.json and scheduler_config.json, with no option of the class left out."""
    family = families.named("unet")
    arguments = family.arguments(random_model("UNet2DModel", DDPM).config)
    init, _ = init_apply(lambda rngs: family.network(**arguments, rngs=rngs))
    params = init(jax.random.key(0))
    made = export.pipeline(
        {"unet": arguments},
        process=dict(name="discrete_vp", betas="scaled_linear", num_steps=50, beta_start=0.001, beta_end=0.02),
        parameterization=dict(name="v", label="index"),
        solver=solver,
        threshold=dict(name="static", bound=2.0),
        grid=dict(name="discrete", spacing="leading"),
    )
    write_component(tmp_path / "unet", family, arguments, params)
    export.write(tmp_path, made)
    pipeline = getattr(diffusers, made.index["_class_name"]).from_pretrained(tmp_path)
    for key, value in made.scheduler.items():
        assert pipeline.scheduler.config[key] == value or key == "_class_name"
    assert type(pipeline.scheduler).__name__ == made.scheduler["_class_name"]
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize("name", sorted(schedulers.SCHEDULERS))
def test_defaults_of_schedulers_are_those_of_their_classes(name):
    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    if "args" in signature:
        pytest.skip("another package is missing")
    for option, value in schedulers.SCHEDULERS[name].defaults.items():
        theirs = signature[option].default
        assert (tuple(theirs) if isinstance(theirs, list) else theirs) == value, option


def test_low_rank_updates_of_a_text_encoder_are_written(tmp_path):
    """W + B A with what diffusers reads from our file for the text encoder of a pipeline, next to another network."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    model, component = text_encoder(tmp_path)
    network, layout = component.load(), component.family.layouts(component.arguments)[0]
    factors = low_rank.init(jax.random.key(0), network, rank=2, modules=r"(q|k|v|out)_proj$|fc1$")
    factors = jax.tree.map(lambda x: x + 0.1, factors)
    write_updates(tmp_path / "lora", [Update(name, layout, network, factors) for name in ("text_encoder", "unet")], 0.5)
    updates, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(tmp_path / "lora"))
    modules = {name.removeprefix("text_model."): module for name, module in model.named_modules()}
    downs = [name for name in updates if name.startswith("text_encoder.") and name.endswith(".lora_A.weight")]
    assert not alphas and len(downs) == 10
    with torch.no_grad():
        for name in downs:
            layer = name.removeprefix("text_encoder.").removeprefix("text_model.").removesuffix(".lora_A.weight")
            modules[layer].weight.add_(updates[name.replace("lora_A", "lora_B")] @ updates[name])
    make = functools.partial(component.family.network, **component.arguments)
    (call,) = init_methods(lambda rngs: make(rngs=rngs), ("__call__",))[1]
    ids = np.random.default_rng(0).integers(1, 98, (2, 9))
    y = jax.jit(call)(low_rank.merge(network, factors, 0.5), jnp.asarray(ids, jnp.int32))
    expected = model(torch.from_numpy(ids)).last_hidden_state.detach().numpy()
    assert relative_error(y.hidden, expected) < TOLERANCE
