"""Text-to-image models and ControlNets on a pipeline: where they start, what is trained, and the folders of both."""

import dataclasses
import functools
import json
import pathlib
import types

import jax
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import from_file
from diffusion_jax.config import saved as saved_config
from diffusion_jax.config.recipes import pipelines
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.processes.discrete import beta_table
from diffusion_jax.run import convert, train
from diffusion_jax.run.convert import Beginning
from diffusion_jax.run.job import prepare
from diffusion_jax.run.parameters import fresh_state, load_params, stands_on
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.weights.families import named
from diffusion_jax.weights.files import write_weights
from diffusion_jax.weights.folders import open_component, write_component
from diffusion_jax.weights.layout import export_params
from diffusion_jax.weights.options import with_defaults
from tests.networks import random_params
from tests.runs import source_of
from tests.weights.test_schedulers import written

UNET = dict(block_out_channels=(8,), transformer_layers=(1,), num_attention_heads=2, norm_num_groups=4)
LEVELS = UNET | dict(block_out_channels=(8, 16), transformer_layers=(0, 1))


@pytest.fixture(scope="module", autouse=True)
def quick_random_numbers():
    """Of a kind that compiles in a moment: most of the time here would be that of drawing first parameters."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@functools.cache
def _prepared(config: str):
    return prepare(ConfigDict(json.loads(config, object_hook=_tuples)))


def _tuples(section: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}


def prepared(read):
    """The job of a config, made once: its system is traced at full length each time."""
    return _prepared(read.to_json())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a text-to-image pipeline of images of 8 pixels, and its U-Net's parameters."""
    folder, read, params = tmp_path_factory.mktemp("pipeline"), config(), {}
    encoder = {key: value for key, value in read.system.text_encoder.items() if key != "name"}
    unet = dict(image_size=8, in_channels=1, layers_per_block=1, token_dim=16, max_tokens=8, **UNET)
    for i, (name, kind, arguments) in enumerate(
        (("unet", "unet_2d_condition", unet), ("text_encoder", "clip_text", encoder))
    ):
        family = named(kind)
        init = init_methods(lambda rngs, f=family, a=arguments: f.network(**a, rngs=rngs), ())[0]
        params[name] = jax.tree.map(np.asarray, random_params(init, seed=i))
        write_component(folder / name, family, arguments, params[name])
    index = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"]}
    index["safety_checker"] = ["stable_diffusion", "SafetyChecker"]  # which has no folder, and is not read
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    rng = np.random.default_rng(0)
    np.savez(
        folder / "drawings.npz",
        images=rng.integers(0, 256, (16, 8, 8, 1), np.uint8),
        control=rng.integers(0, 256, (16, 8, 8, 3), np.uint8),
        caption=np.array(["one", "two"] * 8),
    )
    return folder, params["unet"]


def config(folder=None):
    read = from_file("configs/stable_diffusion.py:digits")
    read.system.text_encoder.update(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    read.network = ConfigDict(dict(name="controlnet", layers_per_block=1, token_dim=16, max_tokens=8, **UNET))
    read.network.update(hint_channels=(4,))
    read.training.update(num_steps=2, batch_size=4)
    read.optimizer.warmup_steps = 0
    read.sampling.update(steps=2, num_samples=2, batch_size=2)
    read.evaluation.update(metrics=(), after_training=False)
    if folder is not None:
        read.system.pipeline = str(folder)
        read.data = ConfigDict(dict(name="arrays", split="train", eval_split="train", image_size=8, channels=1))
        read.data.path = str(folder / "drawings.npz")
    return read


def saved(read, directory):
    """The parameters in a work directory of `read`, after something like training."""
    job = prepared(read)
    if read.weights:
        params, _ = load_params(job, pathlib.Path(read.weights))
    else:
        params = filled(random_params(lambda _: job.params), stands_on(job))
    params = {**params, "network": jax.tree.map(lambda x: x + 0.01, params["network"])}
    state = jax.tree.map(lambda x: x if x.dtype == job.state.key.dtype else np.zeros(x.shape, x.dtype), job.state)
    averages = {rate: {"network": params["network"]} for rate in state.ema}
    state = dataclasses.replace(state, key=jax.random.key(0), params=params, ema=averages)
    with jax.set_mesh(job.mesh), Checkpoints(directory / "checkpoints") as checkpoints:
        checkpoints.save(0, jax.device_put(state, job.layout), Beginning(), wait=True)
    saved_config.write_config(directory, read)
    return params


def filled(tree, others):
    """The nested dict `tree` with the entries of `others` in place of its own."""
    if not isinstance(others, dict):
        return others
    return tree | {key: filled(tree[key], value) for key, value in others.items()}


@pytest.mark.slow
def test_it_starts_as_a_copy_of_the_way_down(pipeline):
    folder, unet = pipeline
    job = prepared(config(folder))
    with jax.set_mesh(job.mesh):
        state = fresh_state(job)
    for found in (state.params["network"], state.params["frozen"]["unet"], state.ema["0.999"]["network"]):
        jax.tree.map(np.testing.assert_array_equal, found["encoder"], unet["encoder"])
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@pytest.mark.slow
def test_it_is_trained_written_and_read_beside_its_pipeline(pipeline, tmp_path):
    folder, unet = pipeline
    train.train(config(folder), tmp_path / "run")
    trained, _ = load_params(prepared(config(folder)), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, trained["frozen"]["unet"], unet)
    assert np.abs(trained["network"]["controlnet_mid_block"]["kernel"]).max() > 0
    convert.to_folder(tmp_path / "run", tmp_path / "controlnet")
    read = config(folder)
    read.weights = str(tmp_path / "controlnet")
    found, _ = load_params(prepared(read), tmp_path / "controlnet")
    jax.tree.map(np.testing.assert_array_equal, found["network"], trained["network"])
    jax.tree.map(np.testing.assert_array_equal, found["frozen"]["unet"], unet)
    state = fresh_state(prepared(read))
    jax.tree.map(np.testing.assert_array_equal, state.params["network"], trained["network"])


@pytest.mark.slow
def test_a_folder_of_images_and_drawings_trains_it(pipeline, tmp_path):
    lines = []
    drawings = np.load(pipeline[0] / "drawings.npz")
    for i in range(16):
        PIL.Image.fromarray(drawings["images"][i, ..., 0]).save(tmp_path / f"{i}.png")
        PIL.Image.fromarray(drawings["control"][i]).save(tmp_path / f"edges_{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "one", "edges": f"edges_{i}.png"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    arrays, folder = config(pipeline[0]), config(pipeline[0])
    folder.data.update(name="folder", path=str(tmp_path))
    folder.data.update(caption_key="text", control_key="edges")
    expected, found = (source_of(read).batch(np.arange(16)) for read in (arrays, folder))
    order = np.argsort([f"{i}.png" for i in range(16)])
    for name in ("x", "control"):
        np.testing.assert_array_equal(found[name], expected[name][order])


@pytest.mark.slow
def test_a_fine_tuned_pipeline_is_written_as_one(pipeline, tmp_path):
    folder, unet = pipeline
    read = config(folder)
    read.network.name = "unet_2d_condition"
    del read.network["hint_channels"]
    read.weights, read.system.pipeline = str(folder), ""
    trained = saved(read, tmp_path / "run")
    convert.to_folder(tmp_path / "run", tmp_path / "pipeline")
    assert {p.name for p in (tmp_path / "pipeline").iterdir()} == {"unet", "text_encoder", "model_index.json"}
    read.weights = str(tmp_path / "pipeline")
    found, _ = load_params(prepared(read), tmp_path / "pipeline")
    jax.tree.map(np.testing.assert_array_equal, found, trained)
    assert np.abs(trained["network"]["conv_out"]["kernel"] - unet["conv_out"]["kernel"]).max() > 0
    read.weights = str(tmp_path / "moved")
    saved_config.write_config(tmp_path / "run", read)
    with pytest.raises(ValueError, match=r"config\.weights='.*moved'"):
        convert.to_folder(tmp_path / "run", tmp_path / "none")


@pytest.mark.slow
def test_updates_of_text_encoders_are_added_and_not_trained(pipeline, tmp_path):
    read = config()
    read.network.name = "unet_2d_condition"
    del read.network["hint_channels"]
    read.weights, rng, arrays = str(pipeline[0]), np.random.default_rng(0), {}
    plain, _ = load_params(prepared(read), pipeline[0])
    kernels = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 8,
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": 16,
    }
    for name, width in kernels.items():
        arrays |= {
            f"{name}.lora_{part}.weight": rng.normal(size=shape).astype(np.float32)
            for part, shape in (("A", (2, width)), ("B", (width, 2)))
        }
    (file,) = write_weights(tmp_path / "both", arrays)
    read.lora.update(weights=str(file), scale=0.5)
    found, _ = load_params(prepared(read), pipeline[0])
    changed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, same in jax.tree.leaves_with_path(jax.tree.map(np.array_equal, found, plain))
        if not same
    }
    assert changed == {
        "network.encoder.mid_block.cross_attentions.0.transformer_blocks.0.attn1.to_q.kernel",
        "frozen.text.0.layers.0.self_attn.q_proj.kernel",
    }
    a, b = (arrays[f"{[*kernels][1]}.lora_{part}.weight"] for part in "AB")
    kernel = [
        params["frozen"]["text"]["0"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"] for params in (found, plain)
    ]
    np.testing.assert_allclose(kernel[0] - kernel[1], 0.5 * (b @ a).T, atol=1e-5)
    # A run that began with them has them, and its folder too.
    trained = saved(read, tmp_path / "run")
    again, _ = load_params(prepared(read), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again, trained)
    convert.to_folder(tmp_path / "run", tmp_path / "pipeline")
    jax.tree.map(
        np.testing.assert_array_equal,
        open_component(tmp_path / "pipeline" / "text_encoder").load(),
        trained["frozen"]["text"]["0"],
    )
    for changes, message in (
        (dict(rank=2), "also updates text_encoder, and config.lora.rank=2 trains the network alone"),
        (
            dict(
                weights=str(
                    write_weights(
                        tmp_path / "second",
                        {name.replace("text_encoder", "text_encoder_2"): array for name, array in arrays.items()},
                    )[0]
                )
            ),
            "updates text_encoder_2, which this model does not have",
        ),
    ):
        other = ConfigDict(read.to_dict())
        other.lora.update(changes)
        with pytest.raises(ConfigError, match=rf"config\.lora\.weights.*{message}"):
            fresh_state(prepared(other))
    # Below a ControlNet they are of the U-Net.
    controlled = config(pipeline[0])
    controlled.lora.update(weights=str(file), scale=0.5)
    saved(config(pipeline[0]), tmp_path / "controlnet")
    found, _ = load_params(prepared(controlled), tmp_path / "controlnet")
    before, after = (
        tree["encoder"]["mid_block"]["cross_attentions"]["0"]["transformer_blocks"]["0"]["attn1"]["to_q"]["kernel"]
        for tree in (pipeline[1], found["frozen"]["unet"])
    )
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_array_equal(
        found["frozen"]["text"]["0"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"], kernel[0]
    )
    (file,) = write_weights(tmp_path / "text", {name: array for name, array in arrays.items() if "text" in name})
    read.lora.weights = str(file)
    found, _ = load_params(prepared(read), pipeline[0])
    jax.tree.map(np.testing.assert_array_equal, found["network"], plain["network"])


@pytest.mark.slow
def test_public_files_are_written_with_what_belongs_to_them(pipeline, tmp_path):
    """A pipeline with its text encoder, one file of its U-Net alone."""
    folder, unet = pipeline
    read = config()
    read.network.name = "unet_2d_condition"
    del read.network["hint_channels"]
    convert.to_folder(folder, tmp_path / "pipeline", read)
    file = next((folder / "unet").glob("*.safetensors"))
    with pytest.raises(ConfigError, match=r"config\.weights: .*text_encoder.*config\.system\.pipeline"):
        load_params(prepared(read), file)
    convert.to_folder(file, tmp_path / "unet", read)
    for name in ("unet", "text_encoder"):
        here, there = (open_component(root / name).load() for root in (tmp_path / "pipeline", folder))
        jax.tree.map(np.testing.assert_array_equal, here, there)
    jax.tree.map(np.testing.assert_array_equal, open_component(tmp_path / "unet").load(), unet)
    assert not (tmp_path / "unet" / "text_encoder").exists()


@pytest.mark.slow
def test_a_model_of_its_own_is_written_part_by_part(tmp_path):
    read = config()
    read.network = ConfigDict(dict(name="unet_2d_condition", layers_per_block=1, token_dim=16, max_tokens=8, **LEVELS))
    stage = dict(name="autoencoder_kl", block_out_channels=(4, 8), norm_num_groups=4, latent_channels=2)
    read.system.update(first_stage=ConfigDict(stage), latent_scale=0.5)
    trained = saved(read, tmp_path / "run")
    convert.to_folder(tmp_path / "run", tmp_path / "parts")
    expected = dict(
        unet=trained["network"],
        vae=trained["frozen"]["first_stage"]["network"],
        text_encoder=trained["frozen"]["text"]["0"],
    )
    for name, params in expected.items():
        component = open_component(tmp_path / "parts" / name)
        jax.tree.map(np.testing.assert_array_equal, component.load(), params)
    assert open_component(tmp_path / "parts" / "vae").config["scaling_factor"] == 0.5

    # All of it in one file, as the authors of these models write them, and with what they leave in there.
    arrays = {"model_ema.decay": np.float32(1), "betas": beta_table("cosine", 1000).astype(np.float32)}
    for kind, section, params, i in (
        ("unet_2d_condition", read.network, expected["unet"], 2),
        ("autoencoder_kl", read.system.first_stage, expected["vae"], 2),
        ("clip_text", read.system.text_encoder, expected["text_encoder"], 2),
    ):
        given = {key: value for key, value in section.items() if key != "name"}
        layout = named(kind).layouts(with_defaults(named(kind).network, given))[i]
        arrays |= export_params(layout, params)
    prefixes = {name.split(".")[0] for name in arrays}
    assert prefixes == {"model", "first_stage_model", "cond_stage_model", "model_ema", "betas"}
    (file,) = write_weights(tmp_path / "file", arrays)
    read.weights = str(file)
    found, _ = load_params(prepared(read), file)
    for name in ("network", "frozen"):
        held = {key: tree for key, tree in trained[name].items() if key != "first_stage"}
        jax.tree.map(np.testing.assert_array_equal, {key: found[name][key] for key in held}, held)
    jax.tree.map(np.testing.assert_array_equal, found["frozen"]["first_stage"]["network"], expected["vae"])
    convert.to_folder(file, tmp_path / "again", read)
    for name, params in expected.items():
        jax.tree.map(np.testing.assert_array_equal, open_component(tmp_path / "again" / name).load(), params)
    # A ControlNet on it.
    read.network.name, read.network.hint_channels, read.weights, read.system.pipeline = (
        "controlnet",
        (4, 4),
        "",
        str(file),
    )
    jax.tree.map(np.testing.assert_array_equal, stands_on(prepared(read))["frozen"]["unet"], expected["unet"])
    for missing, message in (
        ("cond_stage_model", "no text_encoder: no name in it begins with cond_stage_model"),
        ("first_stage", "no vae: no name in it begins with first_stage_model"),
    ):
        (half,) = write_weights(tmp_path / missing, {k: x for k, x in arrays.items() if not k.startswith(missing)})
        read.system.pipeline = str(half)
        with pytest.raises(ConfigError, match=rf"config\.system\.pipeline.*{message}"):
            stands_on(prepared(read))


def unet_config():
    read = config()
    read.network.name = "unet_2d_condition"
    del read.network["hint_channels"]
    return read


def linked(folder, target):
    """A copy of a pipeline's folder by links."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).symlink_to(path)
    return target


@pytest.mark.few(1)
@pytest.mark.parametrize("by", ["weights", "component", "pipeline", "controlnet"])
def test_the_prediction_type_of_a_pipeline_is_compared(pipeline, tmp_path, by):
    folder = written(linked(pipeline[0], tmp_path / "eps"), _class_name="DDIMScheduler", prediction_type="epsilon")
    read = config(pipeline[0]) if by == "controlnet" else unet_config()
    job = prepared(read)
    read.system.pipeline = "" if by in ("weights", "component") else str(folder)
    job = dataclasses.replace(job, config=read)
    message = r"prediction_type='epsilon'.*config\.parameterization\.name='v'.*beta_schedule"
    if by == "controlnet":
        with pytest.raises(ConfigError, match=rf"config\.system\.pipeline: .*{message}"):
            fresh_state(job)
        return
    source = {"weights": folder, "component": folder / "unet"}.get(by, next((pipeline[0] / "unet").glob("*.safet*")))
    with pytest.raises(ConfigError, match=rf"config\.weights: .*{message}"):
        load_params(job, source)


def test_what_a_file_has_comes_before_the_pipeline(pipeline, tmp_path):
    """A file with a network and a text encoder of its own, and none of the rest."""
    folder, _ = pipeline
    read, text = unet_config(), open_component(folder / "text_encoder").load()
    given = {key: value for key, value in read.system.text_encoder.items() if key != "name"}
    layout = named("clip_text").layouts(with_defaults(named("clip_text").network, given))[2]
    own = jax.tree.map(lambda x: np.asarray(x) + 1, text)
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    network = {"model.diffusion_model.out.2.bias": np.zeros(1, np.float32), ids: np.arange(8)}
    (file,) = write_weights(tmp_path / "file", network | export_params(layout, own))
    (bare,) = write_weights(tmp_path / "network", network)
    read.system.pipeline = str(folder)
    for weights, expected in ((file, own), (bare, text), ("", text)):
        read.weights = str(weights)
        found = pipelines.stands_on(types.SimpleNamespace(config=read))["frozen/text/0"]()
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    read.weights, read.system.pipeline = "", str(bare)
    with pytest.raises(ConfigError, match=r"config\.system\.pipeline.*text_encoder"):
        pipelines.stands_on(types.SimpleNamespace(config=read))


def test_the_factor_of_the_latents_is_that_of_the_first_stage(tmp_path):
    stage = dict(name="autoencoder_kl", block_out_channels=(4,), norm_num_groups=4, latent_channels=2)
    read = unet_config()
    read.system.update(first_stage=ConfigDict(stage), latent_scale=0.5)
    arguments = {"image_size": 8, "in_channels": 1, **{k: v for k, v in stage.items() if k != "name"}}
    family = named("autoencoder_kl")
    init = init_methods(lambda rngs: family.network(**arguments, rngs=rngs), ())[0]
    write_component(tmp_path / "vae", family, arguments, random_params(init), extra={"scaling_factor": 0.25})
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    read.weights = str(tmp_path)
    load = pipelines.stands_on(types.SimpleNamespace(config=read))["frozen/first_stage/network"]
    with pytest.raises(ConfigError, match=r"scaling_factor=0\.25.*config\.system\.latent_scale=0\.5"):
        load()
    read.system.latent_scale = 0.25
    load()


@pytest.mark.slow
def test_a_pipeline_with_another_unet_is_refused(pipeline):
    read = config(pipeline[0])
    read.network.block_out_channels = (16,)
    with pytest.raises(ConfigError, match=r"config\.system\.pipeline.*block_out_channels"):
        stands_on(prepared(read))
