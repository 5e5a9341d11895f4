"""Low-rank updates: their algebra, training them by a config switch, and their files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.config import saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import convert
from diffusion_jax.run.job import prepare, train_step
from diffusion_jax.run.parameters import fresh_state, load_params
from diffusion_jax.systems import low_rank
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.weights.clip import TEXT
from diffusion_jax.weights.dit import LAYOUT
from diffusion_jax.weights.files import open_weights, write_weights
from diffusion_jax.weights.lora import Update, components, read_lora, write_lora, write_updates
from tests import runs
from tests.weights import write_zip
from tests.weights.test_public import random_params

KEY = jax.random.key(0)
NETWORK = {
    "attn": {"to_q": {"kernel": jax.random.normal(KEY, (6, 4)), "bias": jnp.ones(4)}},
    "conv": {"kernel": jax.random.normal(KEY, (3, 3, 2, 5))},
    "norm": {"scale": jnp.ones(3)},
}


def factors(rank, modules=".", seed=1):
    drawn = low_rank.init(jax.random.key(seed), NETWORK, rank=rank, modules=modules)
    return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), drawn)


def test_they_begin_with_the_network():
    drawn = low_rank.init(KEY, NETWORK, rank=2, modules=".")
    assert drawn.keys() == {"attn", "conv"} and jnp.abs(drawn["conv"]["down"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, low_rank.merge(NETWORK, drawn, 1.0), NETWORK)


def test_merged_layers_are_the_layers_with_their_updates_beside_them():
    drawn, scale = factors(2), 0.7
    merged = low_rank.merge(NETWORK, drawn, scale)
    x = jax.random.normal(KEY, (3, 6))
    update = (x @ drawn["attn"]["to_q"]["down"]) @ drawn["attn"]["to_q"]["up"]
    expected = x @ NETWORK["attn"]["to_q"]["kernel"] + scale * update
    np.testing.assert_allclose(x @ merged["attn"]["to_q"]["kernel"], expected, rtol=1e-4, atol=1e-5)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x = jax.random.normal(KEY, (1, 5, 5, 2))
    update = conv(conv(x, drawn["conv"]["down"]), drawn["conv"]["up"][None, None])
    expected = conv(x, NETWORK["conv"]["kernel"]) + scale * update
    np.testing.assert_allclose(conv(x, merged["conv"]["kernel"]), expected, rtol=1e-4, atol=1e-4)


def test_full_rank_reproduces_any_update():
    update = jax.random.normal(jax.random.key(5), (6, 4))
    u, s, vt = jnp.linalg.svd(update, full_matrices=False)
    full = {"attn": {"to_q": {"down": u, "up": s[:, None] * vt}}}
    found = low_rank.merge(NETWORK, full, 2.0)["attn"]["to_q"]["kernel"]
    np.testing.assert_allclose(found, NETWORK["attn"]["to_q"]["kernel"] + 2 * update, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lora__rank=2, lora__modules="nowhere"), r"config\.lora: modules='nowhere' is found in no layer"),
        (dict(lora__rank=2, lora__modules="("), r"modules='\(' is no regular expression"),
        (dict(lora__rank=2, lora__modules=".", lora__alpha=-1.0), r"alpha=-1\.0 must be .*at least 0"),
        (dict(lora__rank=-1), r"config\.lora\.rank=-1 must be an integer of at least 0"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare(runs.toy(**changes))


def ups(tree):
    """The second factors, which begin at zero."""
    return [x for path, x in jax.tree.leaves_with_path(tree) if path[-1].key == "up"]


@pytest.mark.slow
def test_a_run_is_fine_tuned_by_a_switch(tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"

    def save(config, folder, step, state):
        with Checkpoints(folder / "checkpoints") as checkpoints:
            checkpoints.save(step, state, convert.Beginning(), wait=True)
        saved.write_config(folder, config)

    plain = fresh_state(prepare(runs.toy()))
    save(runs.toy(), base, 0, plain)
    rate = dict(optimizer__warmup_steps=0, optimizer__learning_rate=0.1)
    switch = dict(lora__rank=3, lora__alpha=6.0, lora__modules=".", weights=str(base), **rate)
    job = prepare(runs.toy(**switch))
    held = sum(x.size for x in jax.tree.leaves(job.state.opt_state))
    assert held < sum(x.size for x in jax.tree.leaves(plain.opt_state))
    state, batch = fresh_state(job), {"x": jax.random.normal(KEY, job.batch["x"].shape)}
    step = jax.jit(train_step(job), donate_argnums=0)
    for _ in range(2):
        state, _ = step(state, batch)
    save(job.config, tuned, 2, state)
    before = plain.params
    assert set(state.ema["0.999"]) == {"lora"}
    jax.tree.map(np.testing.assert_array_equal, state.params["frozen"]["network"], before["network"])
    assert any(jnp.abs(x).max() > 0 for x in jax.tree.leaves(ups(state.params["lora"])))
    # Whoever samples gets the network with the updates in it, with the switch in the config or without.
    expected = low_rank.merge(before["network"], state.ema["0.999"]["lora"], 2.0)
    for config in (runs.toy(**switch), runs.toy()):
        found, _ = load_params(prepare(config), tuned)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, {"network": expected})
    with pytest.raises(ConfigError, match=r"config\.lora\.rank=3.*config\.weights"):
        fresh_state(prepare(runs.toy(**switch | dict(weights=""))))
    with pytest.raises(ValueError, match="no layout of files for the network 'mlp'"):
        convert.to_lora(tuned, tmp_path / "file")


DIT = dict(image_size=8, in_channels=3, hidden_size=8, depth=2, num_heads=2, num_classes=3)


@pytest.fixture(scope="module")
def dit():
    network = jax.tree.map(jnp.asarray, random_params("dit", DIT))
    drawn = low_rank.init(KEY, network, rank=2, modules=r"qkv$|attn\.proj$|x_embedder\.proj$")
    return network, jax.tree.map(lambda x: x + 0.1, drawn)


def same_updates(network, one, scale, other):
    """Of kernels, since factors of the same product differ."""
    expected, found = low_rank.merge(network, one, scale), low_rank.merge(network, other, 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_files_of_updates(tmp_path, dit):
    network, drawn = dit
    path = write_lora(tmp_path, LAYOUT, network, drawn, 0.5, prefix="transformer")
    held = open_weights(path)
    assert held["transformer.transformer_blocks.1.attn1.to_k.lora_A.weight"].shape == (2, 8)
    assert held["transformer.pos_embed.proj.lora_B.weight"].shape == (8, 2, 1, 1)
    same_updates(network, drawn, 0.5, read_lora(tmp_path, LAYOUT, network, prefix="transformer"))


def test_names_of_other_programs(tmp_path, dit):
    network, drawn = dit
    held = open_weights(write_lora(tmp_path, LAYOUT, network, drawn, 0.5, prefix="transformer"))
    arrays = {name: np.asarray(tensor) for name, tensor in held.items()}
    old = {name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): x for name, x in arrays.items()}
    kohya = {"lora_te_text_model_layers_0_q.alpha": np.float32(2)}
    for name, array in arrays.items():
        layer, part = name.removeprefix("transformer.").rsplit(".lora_", 1)
        layer = f"lora_transformer_{layer.replace('.', '_')}"
        kohya[f"{layer}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = array
        kohya[f"{layer}.alpha"] = np.float32(6)  # three times the rank
    for i, (names, scale) in enumerate(((old, 0.5), (kohya, 1.5))):
        (file,) = write_weights(tmp_path / str(i), names)
        same_updates(network, drawn, scale, read_lora(file, LAYOUT, network, prefix="transformer"))


def test_updates_of_several_networks_are_written_with_either_names(tmp_path, dit):
    network, drawn = dit
    for kohya, names, prefixes in (
        (False, ("transformer", "text_encoder"), {"transformer", "text"}),
        (True, ("transformer", "text_encoder"), {"transformer", "te"}),
        (True, ("text_encoder", "text_encoder_2"), {"te1", "te2"}),
    ):
        updates = [Update(name, LAYOUT, network, drawn) for name in names]
        path = write_updates(tmp_path / "-".join(prefixes), updates, 0.5, kohya=kohya)
        assert components(path) == set(names)
        assert not kohya or {key.split("_")[1] for key in open_weights(path)} == prefixes
        for name in names:
            same_updates(network, drawn, 0.5, read_lora(path, LAYOUT, network, prefix=name))


CLIP = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)


@pytest.mark.parametrize(
    ("names", "kohya", "prefixes"),
    [
        (["text_encoder"], True, ["lora_te_text_model_encoder_layers_0_self_attn_q_proj"]),
        (["text_encoder"], False, ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]),
        (
            ["text_encoder", "text_encoder_2"],
            True,
            [f"lora_te{i}_text_model_encoder_layers_0_self_attn_q_proj" for i in (1, 2)],
        ),
    ],
)
def test_updates_of_text_encoders_have_the_names_of_clip(tmp_path, names, kohya, prefixes):
    network = random_params("clip_text", CLIP)
    drawn = low_rank.init(KEY, network, rank=2, modules="q_proj$")
    path = write_updates(tmp_path, [Update(name, TEXT, network, drawn) for name in names], 0.5, kohya=kohya)
    ends = ("lora_down.weight", "lora_up.weight", "alpha") if kohya else ("lora_A.weight", "lora_B.weight")
    assert set(open_weights(path)) == {f"{prefix}.{end}" for prefix in prefixes for end in ends}


@pytest.mark.parametrize("adapter", ["default", "default_0", "my-style 2"])
def test_adapters_have_any_name(tmp_path, dit, adapter):
    network, drawn = dit
    held = open_weights(write_lora(tmp_path, LAYOUT, network, drawn, 0.5, prefix="transformer"))
    named = {name.replace(".weight", f".{adapter}.weight"): np.asarray(tensor) for name, tensor in held.items()}
    (file,) = write_weights(tmp_path / "named", named)
    same_updates(network, drawn, 0.5, read_lora(file, LAYOUT, network, prefix="transformer"))
    first = next(iter(named))
    (file,) = write_weights(tmp_path / "two", {**named, first.replace(adapter, "other"): named[first]})
    with pytest.raises(ValueError, match=rf"several adapters: {adapter}, other"):
        read_lora(file, LAYOUT, network, prefix="transformer")


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin"])
def test_folders_with_files_of_torch(tmp_path, dit, name):
    network, drawn = dit
    held = open_weights(write_lora(tmp_path / "safe", LAYOUT, network, drawn, 0.5, prefix="transformer"))
    write_zip(tmp_path / name, {key: np.asarray(tensor) for key, tensor in held.items()})
    same_updates(network, drawn, 0.5, read_lora(tmp_path, LAYOUT, network, prefix="transformer"))


def test_names_of_authors_begin_with_the_model(tmp_path, dit):
    network, drawn = dit
    held = open_weights(write_lora(tmp_path, LAYOUT, network, drawn, 0.5, prefix="diffusion_model"))
    assert components(tmp_path) == {""} and next(iter(held)).startswith("diffusion_model.")
    same_updates(network, drawn, 0.5, read_lora(tmp_path, LAYOUT, network, prefix="transformer"))


@pytest.mark.parametrize(
    ("ends", "kind"),
    [
        (("hada_w1_a", "hada_w1_b"), "LoHa"),
        (("lokr_w1", "lokr_w2_a"), "LoKr"),
        (("lora_down.weight", "lora_up.weight", "lora_mid.weight"), "LoCon"),
        (("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"), "DoRA"),
        (("lora_down.weight", "lora_up.weight", "dora_scale"), "DoRA"),
        (("diff", "diff_b"), "whole weights"),
        (("lora_B.bias",), "biases"),
        (("lora_A.weight", "lora_B.weight", "bundle_emb.style.string_to_param.*"), "bundled embeddings"),
    ],
)
def test_other_kinds_of_updates_are_named(tmp_path, dit, ends, kind):
    network, _ = dit
    layer = "transformer.transformer_blocks.0.attn1.to_out.0"
    names = [end if end.startswith("bundle") else f"{layer}.{end}" for end in ends]
    (file,) = write_weights(tmp_path, {name: np.ones((8, 8), np.float32) for name in names})
    with pytest.raises(ValueError, match=kind):
        read_lora(file, LAYOUT, network, prefix="transformer")


@pytest.mark.parametrize("where", ["header", "folder"])
def test_the_alpha_that_peft_keeps_apart(tmp_path, dit, where):
    """alpha / rank, by layer where there are patterns, and alpha / sqrt(rank) with use_rslora."""
    network, drawn = dit
    held = open_weights(write_lora(tmp_path / "plain", LAYOUT, network, drawn, 1.0, prefix="transformer"))
    arrays = {name: np.asarray(tensor) for name, tensor in held.items()}
    for i, (settings, first, others) in enumerate(
        (
            ({"lora_alpha": 6}, 3.0, 3.0),
            ({"lora_alpha": 6, "alpha_pattern": {"pos_embed.proj": 8}}, 4.0, 3.0),
            ({"lora_alpha": 6, "alpha_pattern": {r"^pos_embed\.pr.*": 8, "proj": 2}}, 4.0, 3.0),
            ({"lora_alpha": 6, "alpha_pattern": {r".*\.(proj|none)": 8}, "rank_pattern": {"^x.*": 4}}, 4.0, 3.0),
            ({"lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5, 6 / 2**0.5),
            ({}, 1.0, 1.0),
        )
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        if where == "header":
            packed = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
            save_file(arrays, folder / "pytorch_lora_weights.safetensors", {"lora_adapter_metadata": packed})
        else:
            plain = {name.replace("transformer.", "base_model.model.", 1): array for name, array in arrays.items()}
            save_file(plain, folder / "adapter_model.safetensors")
            (folder / "adapter_config.json").write_text(json.dumps(settings))
        patch = drawn["x_embedder"]["proj"]
        patch = {"down": patch["down"], "up": patch["up"] * first / others}
        expected = {**drawn, "x_embedder": {"proj": patch}}
        same_updates(network, expected, others, read_lora(folder, LAYOUT, network, prefix="transformer"))
    for text, message in (
        ('{"use_dora": true}', "use_dora is True; only plain low-rank updates are read"),
        ('{"alpha_pattern": {"(a+)+$": 2}}', "alpha_pattern=.* must be an object of the names of layers"),
        ('{"alpha_pattern": {"a*b*c*d*e": 2}}', "alpha_pattern=.* must be an object of the names of layers"),
        ('{"alpha_pattern": {"a?a?a?a?": 2}}', "alpha_pattern=.* must be an object of the names of layers"),
        ('{"alpha_pattern": {"(.|.)(.|.)(.|.)": 2}}', "alpha_pattern=.* must be an object of the names of layers"),
        (json.dumps({"alpha_pattern": {f"a{i}.*": 2 for i in range(33)}}), "alpha_pattern=.* must be an object"),
        ('{"alpha_pattern": {"(": 2}}', "alpha_pattern=.* must be an object of the names of layers"),
        ('{"alpha_pattern": [2]}', "alpha_pattern=.* must be an object"),
        ('{"lora_alpha": "8"}', "lora_alpha and those of alpha_pattern must be numbers, got"),
    ):
        (folder / "adapter_config.json").write_text(text)
        if where == "folder":
            with pytest.raises(ValueError, match=message):
                read_lora(folder, LAYOUT, network, prefix="transformer")


def test_files_that_are_refused(tmp_path, dit):
    network, _ = dit
    a, b = np.ones((2, 8), np.float32), np.ones((8, 2), np.float32)
    layer = "transformer.transformer_blocks.0.attn1.to_out.0"
    for i, (names, message) in enumerate(
        (
            ({"unet.x.lora_A.weight": a}, "none of its layers"),
            ({f"{layer}.lora_A.weight": a}, "1 without its other factor: transformer_blocks"),
            ({f"{layer}.lora_A.weight": a.T, f"{layer}.lora_B.weight": b}, r"1 of another shape: .* \(8, 2\) and"),
            ({"transformer.other.lora_A.weight": a}, r"1 unexpected: transformer\.other"),
        )
    ):
        (file,) = write_weights(tmp_path / str(i), names)
        with pytest.raises(ValueError, match=message):
            read_lora(file, LAYOUT, network, prefix="transformer")
