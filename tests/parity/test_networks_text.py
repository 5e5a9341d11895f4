"""Text and image encoders against transformers and diffusers with the same random weights, through the layouts."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from diffusion_jax.networks import clip
from diffusion_jax.networks.functional import count_parameters, init_methods
from diffusion_jax.weights import clip as clip_weights
from diffusion_jax.weights.layout import export_params, import_params
from tests.parity import relative_error

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5


def shaken(model, torch):
    """Noise on every parameter, so that none is zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def state(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def ours(network, arguments, layout, source):
    """The compiled network and the imported parameters."""
    init, (call,) = init_methods(functools.partial(_make, network, arguments), ("__call__",))
    abstract = jax.eval_shape(init, jax.random.key(0))
    return jax.jit(call), import_params(layout, source, abstract)


def _make(network, arguments, rngs):
    return network(**arguments, rngs=rngs)


def reopened(model, arguments, config_of, layout, params, folder):
    """What transformers makes of the files that we write."""
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(array) for name, array in export_params(layout, params).items()}
    safetensors.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(arguments)))
    again, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], tensor, err_msg=name)
    return again.eval()


def texts(eos, length=9):
    """Three rows: padded with the end of the text, ending with the row, padded with zeros."""
    ids = np.random.default_rng(0).integers(3, 97, (3, length))
    ids[0, 5:] = ids[1, -1] = ids[2, 3] = eos
    ids[2, 4:] = 0
    return ids


@pytest.mark.parametrize(
    ("projection", "act", "eos", "skip"), [(None, "quick_gelu", 2, 0), (6, "gelu", 98, 1), (None, "gelu", 98, 0)]
)
def test_clip_text(projection, act, eos, skip, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=9,
        hidden_act=act,
        projection_dim=projection or 512,
        bos_token_id=97,
        eos_token_id=eos,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    model = shaken(kind(config), torch)
    arguments = clip_weights.text_arguments(config.to_dict() | {"architectures": [kind.__name__]})
    arguments |= dict(skip=skip, normalize=skip == 0)
    call, params = ours(clip.CLIPTextModel, arguments, clip_weights.TEXT, state(model))

    ids = texts(98)
    with torch.no_grad():
        expected = model(torch.tensor(ids), output_hidden_states=True)
    hidden = expected.hidden_states[-1 - skip] if skip else expected.last_hidden_state
    found = call(params, ids)
    assert relative_error(found.hidden, hidden.numpy()) < TOLERANCE
    pooled = expected.text_embeds if projection else expected.pooler_output
    assert relative_error(found.pooled, pooled.numpy()) < TOLERANCE
    reopened(model, arguments, clip_weights.text_config, clip_weights.TEXT, params, tmp_path)


def test_clip_text_gradients():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = dict(vocab_size=100, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.CLIPTextConfig(**sizes, max_position_embeddings=9, eos_token_id=98, projection_dim=6)
    model = shaken(transformers.CLIPTextModelWithProjection(config), torch)
    arguments = clip_weights.text_arguments(config.to_dict() | {"architectures": ["CLIPTextModelWithProjection"]})
    call, params = ours(clip.CLIPTextModel, arguments, clip_weights.TEXT, state(model))
    ids, random = texts(98), np.random.default_rng(1)
    probes = [random.standard_normal(shape).astype(np.float32) for shape in ((3, 9, 16), (3, 6))]

    out = model(torch.tensor(ids))
    loss = (out.last_hidden_state * torch.tensor(probes[0])).sum() + (out.text_embeds * torch.tensor(probes[1])).sum()
    loss.backward()
    source = {name: p.grad.numpy() for name, p in model.named_parameters()}
    expected = import_params(clip_weights.TEXT, source, params)

    def project(params):
        found = call(params, ids)
        return (found.hidden * probes[0]).sum() + (found.pooled * probes[1]).sum()

    gradient = jax.jit(jax.grad(project))(params)
    assert relative_error(ravel_pytree(gradient)[0], ravel_pytree(expected)[0]) < TOLERANCE


def test_openclips_own_names():
    """The fused projections of PyTorch's attention are the three matrices of ours, one upon the other."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = dict(vocab_size=100, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.CLIPTextConfig(**sizes, max_position_embeddings=9, eos_token_id=98, projection_dim=6)
    model = shaken(transformers.CLIPTextModelWithProjection(config), torch)
    theirs = state(model)
    text = "text_model."
    source = {
        "token_embedding.weight": theirs[text + "embeddings.token_embedding.weight"],
        "positional_embedding": theirs[text + "embeddings.position_embedding.weight"],
        "ln_final.weight": theirs[text + "final_layer_norm.weight"],
        "ln_final.bias": theirs[text + "final_layer_norm.bias"],
        "text_projection": theirs["text_projection.weight"].T,
        "logit_scale": np.ones((), np.float32),
    }
    for i in range(2):
        here, there = f"transformer.resblocks.{i}.", f"{text}encoder.layers.{i}."
        for leaf in ("weight", "bias"):
            parts = [theirs[f"{there}self_attn.{name}_proj.{leaf}"] for name in "qkv"]
            source[f"{here}attn.in_proj_{leaf}"] = np.concatenate(parts)
            for name, other in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                source[f"{here}{name}.{leaf}"] = theirs[f"{there}{other}.{leaf}"]
    arguments = clip_weights.text_arguments(config.to_dict() | {"architectures": ["CLIPTextModelWithProjection"]})
    call, params = ours(clip.CLIPTextModel, arguments, clip_weights.OPENCLIP_TEXT, source)
    with torch.no_grad():
        expected = model(torch.tensor(texts(98))).text_embeds
    assert relative_error(call(params, texts(98)).pooled, expected.numpy()) < TOLERANCE
    exported = export_params(clip_weights.OPENCLIP_TEXT, params)
    assert exported.keys() == source.keys() - {"logit_scale"}
    for name, array in exported.items():
        np.testing.assert_array_equal(array, source[name], err_msg=name)


@pytest.mark.parametrize("projection", [6, None])
def test_clip_vision(projection, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.CLIPVisionConfig(**sizes, image_size=12, patch_size=4, projection_dim=projection or 512)
    kind = transformers.CLIPVisionModelWithProjection if projection else transformers.CLIPVisionModel
    model = shaken(kind(config), torch)
    arguments = clip_weights.vision_arguments(config.to_dict() | {"architectures": [kind.__name__]})
    call, params = ours(clip.CLIPVisionModel, arguments, clip_weights.VISION, state(model))
    x = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    found = call(params, x)
    assert relative_error(found.hidden, expected.last_hidden_state.numpy()) < TOLERANCE
    pooled = expected.image_embeds if projection else expected.pooler_output
    assert relative_error(found.pooled, pooled.numpy()) < TOLERANCE
    reopened(model, arguments, clip_weights.vision_config, clip_weights.VISION, params, tmp_path)


BIG = {
    "OpenAI ViT-L/14": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
    "OpenCLIP ViT-bigG/14": dict(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        hidden_act="gelu",
        projection_dim=1280,
    ),
}


@pytest.mark.parametrize("name", BIG)
def test_full_size_text_encoders(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind = transformers.CLIPTextModelWithProjection if "bigG" in name else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(**BIG[name])
    with torch.device("meta"):
        model = kind(config)
    arguments = clip_weights.text_arguments(config.to_dict() | {"architectures": [kind.__name__]})
    check_size(clip.CLIPTextModel, arguments, model)
    if "ViT-L" in name:
        assert sum(p.numel() for p in model.parameters()) == 123_060_480


def test_full_size_image_encoder():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    config = transformers.CLIPVisionConfig(**sizes, projection_dim=768)
    with torch.device("meta"):
        model = transformers.CLIPVisionModelWithProjection(config)
    arguments = clip_weights.vision_arguments(config.to_dict() | {"architectures": ["CLIPVisionModelWithProjection"]})
    check_size(clip.CLIPVisionModel, arguments, model)


def check_size(network, arguments, model):
    abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: network(**arguments, rngs=nnx.Rngs(0)))))
    assert count_parameters(abstract) == sum(p.numel() for p in model.parameters())
