"""Text and image encoders against transformers and diffusers with the same random weights, through the layouts."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from diffusion_jax.networks import clip, ldm_bert, t5
from diffusion_jax.networks.functional import count_parameters, init_methods
from diffusion_jax.weights import clip as clip_weights
from diffusion_jax.weights import families, folders
from diffusion_jax.weights import ldm_bert as bert_weights
from diffusion_jax.weights import t5 as t5_weights
from diffusion_jax.weights.layout import export_params, import_params
from tests.parity import relative_error

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5


def shaken(model, torch):
    """The same noise in every run for each parameter, around one for the scales of norms and around zero otherwise."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(("norm" in name and name.endswith("weight")) + 0.3 * torch.randn_like(parameter))
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
    """transformers reads the files that we write, and so do we."""
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(array) for name, array in export_params(layout, params).items()}
    safetensors.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(arguments)))
    again, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], tensor, err_msg=name)
    component = folders.open_component(folder)
    assert component.arguments == {name: arguments[name] for name in component.arguments}
    jax.tree.map(np.testing.assert_array_equal, component.load(), params)


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
    prefixed = {f"conditioner.embedders.1.model.{name}": array for name, array in source.items()} | {"model.x": source}
    again = import_params(clip_weights.originals(arguments)[3], prefixed, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    # Stable Diffusion 2 reads neither the last layer nor the projection, which its file holds.
    fewer = {**arguments, "num_hidden_layers": arguments["num_hidden_layers"] - 1, "projection_dim": None}
    family = families.named("clip_text")
    file = {f"cond_stage_model.model.{name}": array for name, array in source.items()}
    found = families.load(family, fewer, file, families.abstract(family, fewer))
    for name, tree in found.items():
        held = params[name] if name != "layers" else {i: params[name][i] for i in tree}
        jax.tree.map(np.testing.assert_array_equal, tree, held)
    assert len(found["layers"]) == fewer["num_hidden_layers"]
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


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_t5(kind, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=100,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=3,
        feed_forward_proj=kind,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
    )
    model = shaken(transformers.T5EncoderModel(config), torch)
    arguments = t5_weights.arguments(config.to_dict())
    layout = t5_weights.layout(kind)
    call, params = ours(t5.T5Encoder, arguments, layout, state(model))
    ids = np.random.default_rng(0).integers(2, 100, (3, 20))
    mask = np.arange(20)[None] < np.array([[20], [7], [1]])
    with torch.no_grad():
        expected = model(torch.tensor(ids)).last_hidden_state
        masked = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    assert relative_error(call(params, ids), expected.numpy()) < TOLERANCE
    assert relative_error(np.asarray(call(params, ids, mask))[mask], masked.numpy()[mask]) < TOLERANCE
    assert relative_error(masked, expected.numpy()) > 0.01, "the mask counts"
    reopened(model, arguments, t5_weights.config_of, layout, params, tmp_path)


def test_buckets_of_distances():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.T5EncoderModel(transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    attention = model.encoder.block[0].layer[0].SelfAttention
    for num, most in ((32, 128), (8, 12), (16, 1000)):
        offset = torch.arange(600)[None] - torch.arange(600)[:, None]
        expected = attention._relative_position_bucket(offset, num_buckets=num, max_distance=most)
        np.testing.assert_array_equal(t5.buckets(600, num, most), expected)


def test_ldm_bert(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
    sizes = dict(vocab_size=100, max_position_embeddings=9, d_model=16, encoder_layers=2, encoder_ffn_dim=24)
    config = theirs.LDMBertConfig(**sizes, encoder_attention_heads=3, head_dim=4)
    model = shaken(theirs.LDMBertModel(config), torch)
    arguments = bert_weights.arguments(config.to_dict())
    call, params = ours(ldm_bert.LDMBert, arguments, bert_weights.LAYOUT, state(model))
    ids = np.random.default_rng(0).integers(0, 100, (3, 9))
    with torch.no_grad():
        expected = model(torch.tensor(ids), return_dict=True).last_hidden_state
    assert relative_error(call(params, ids).hidden, expected.numpy()) < TOLERANCE
    reopened(model, arguments, bert_weights.config_of, bert_weights.LAYOUT, params, tmp_path)

    prefix, source = "cond_stage_model.transformer.", {}
    for name, array in state(model).items():
        place, _, rest = name.removeprefix("model.").removeprefix("layers.").partition(".")
        simple = {"embed_tokens": "token_emb.", "embed_positions": "pos_emb.emb.", "layer_norm": "norm."}
        inner = {
            "self_attn.q_proj": "0.1.to_q",
            "self_attn.k_proj": "0.1.to_k",
            "self_attn.v_proj": "0.1.to_v",
            "self_attn.out_proj": "0.1.to_out",
            "self_attn_layer_norm": "0.0",
            "final_layer_norm": "1.0",
            "fc1": "1.1.net.0.0",
            "fc2": "1.1.net.2",
        }
        if place.isdecimal():
            module, _, leaf = rest.rpartition(".")
            half, _, module = inner[module].partition(".")
            source[f"{prefix}attn_layers.layers.{2 * int(place) + int(half)}.{module}.{leaf}"] = array
        else:
            source[prefix + simple.get(place, f"{place}.") + rest] = array
    again = import_params(bert_weights.original(2), source | {"first_stage_model.x": np.zeros(1)}, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_full_size_t5_and_ldm_bert():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = pytest.importorskip("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
    sizes = dict(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    config = transformers.T5Config(**sizes)
    with torch.device("meta"):
        xxl, bert = transformers.T5EncoderModel(config), theirs.LDMBertModel(theirs.LDMBertConfig())
    check_size(t5.T5Encoder, t5_weights.arguments(config.to_dict()), xxl)
    check_size(ldm_bert.LDMBert, bert_weights.arguments(bert.config.to_dict()), bert)
