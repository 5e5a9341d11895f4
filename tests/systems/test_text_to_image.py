"""The text-to-image system: what a config may ask for, empty texts in training, requests in files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import build, from_file
from diffusion_jax.config.recipes import text_to_image
from diffusion_jax.config.recipes.placeholders import Placeholders
from diffusion_jax.config.recipes.text_to_image import TASKS
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import requests
from diffusion_jax.training.step import init_state
from tests.runs import parts_of, source_of

CONFIG = "configs/stable_diffusion.py:digits"
ENCODER = dict(name="clip_text", vocab_size=4, hidden_size=8, num_attention_heads=2, max_position_embeddings=5)


def config(**system):
    read = from_file(CONFIG)
    read.sampling.steps = 4
    for key, value in system.items():
        read.system[key] = ConfigDict(value) if isinstance(value, dict) else value
    return read


@pytest.fixture(scope="module")
def built():
    return build.system(config())


@pytest.mark.slow
def test_training_replaces_texts_by_the_empty_one_at_the_rate(built):
    tokens = jnp.asarray(np.tile(built.tokenize(["three"]), (4000, 1)))
    dropped = built._dropped(jax.random.key(0), {"tokens": tokens})["tokens"]
    empty = np.asarray(dropped == built.tokenize([""])).all(1)
    assert empty.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(dropped[~empty], tokens[~empty])


def test_guidance_leads_away_from_the_negative_prompt_and_what_is_dropped(built):
    """With an encoder whose states are the ids themselves."""
    texts = built.texts._replace(encode=lambda params, ids: {"tokens": ids[..., None].astype(jnp.float32)})
    system = dataclasses.replace(built, texts=texts, negative_prompt="blur")
    ids = jnp.asarray(built.tokenize(["one", "two"]))
    given = texts.encode({}, ids) | {"image": jnp.ones((2, 4, 4, 3)), "control": jnp.ones((2, 8, 8, 3))}
    params = {"frozen": {"text": {}}}
    negative = system._negative(params, given)
    assert negative.keys() == {"tokens"}
    np.testing.assert_array_equal(negative["tokens"][1, :, 0], built.tokenize(["blur"])[0])
    edits = dataclasses.replace(system, task=TASKS["instruct_pix2pix"], zero_negative=True, negative_prompt="")
    negative = edits._negative(params, given)
    assert negative.keys() == {"tokens", "image"} and not any(x.any() for x in negative.values())


def test_only_the_network_is_trained(built):
    state = jax.eval_shape(lambda key: init_state(built, optax.adam(1e-3), (0.9,), key), jax.random.key(0))
    assert set(state.params) == {"network", "frozen"} and set(state.ema["0.9"]) == {"network"}
    assert set(state.params["frozen"]) == {"text", "first_stage"}


@pytest.mark.slow
def test_image_to_image_is_sdedit_with_the_strength_of_the_system():
    system = build.system(config(task="image_to_image", strength=0.5))
    assert system.conditions.image_shape == (8, 8, 1) and not system.batch_conditions.image_shape
    x = jnp.zeros((1, 4, 4, 3))
    _, times = system.diffusion.editing.start(
        system.diffusion.process,
        lambda x, t: x,
        jax.random.split(jax.random.key(0), 1),
        x,
        jnp.linspace(1, 0, 5),
        {"image": x},
    )
    np.testing.assert_allclose(times, [0.5, 0.25, 0])
    for strength, message in (
        (1.5, r"strength=1\.5 must be in \[0, 1\]"),
        (0.1, r"strength=0\.1 leaves none of the 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            build.system(config(task="image_to_image", strength=strength))
    edited = config(task="image_to_image")
    edited.editing = ConfigDict(dict(name="sdedit"))
    with pytest.raises(ConfigError, match=r"config\.editing\.name='sdedit' must be 'none'"):
        build.system(edited)


def edited(section, *, solver=None, **changes):
    """A small text-to-image system with the editing `section`, parameters of which none is zero, and its `draw`."""
    read = config()
    read.network.update(block_out_channels=(8, 16), norm_num_groups=4, num_attention_heads=2)
    for name, value in changes.items():
        read[name] = ConfigDict(value)
    read.editing, read.sampling.steps = ConfigDict(section), 3
    system = build.system(read)
    if solver:
        system = dataclasses.replace(system, diffusion=dataclasses.replace(system.diffusion, solver=solver))
    random = np.random.default_rng(0)
    moved = lambda p: p + jnp.asarray(0.1 * random.standard_normal(p.shape), p.dtype)
    params = jax.tree.map(moved, jax.jit(system.init)(jax.random.key(0)))
    draw = jax.jit(lambda cond: system.draw(params, jax.random.key(1), jnp.arange(2), cond)["samples"])
    return system, lambda **cond: np.asarray(draw(cond))


IMAGES = np.float32(np.random.default_rng(0).uniform(-0.9, 0.9, (2, 8, 8, 1)))
MASK = np.where(np.random.default_rng(1).uniform(size=IMAGES.shape) < 0.5, 1, -1).astype(np.float32)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "section",
    [
        dict(name="repaint", length=1, repeats=2),
        pytest.param(dict(name="sdedit", strength=0.7, mask="box"), marks=pytest.mark.slow),
    ],
    ids=lambda section: section["name"],
)
def test_what_is_painted_depends_on_the_text_and_the_rest_is_the_image(section):
    system, draw = edited(section)
    assert set(system.conditions) == {"tokens", "image", "mask"}
    cond = dict(image=IMAGES, mask=MASK)
    one, two = (draw(tokens=system.tokenize([text] * 2), **cond) for text in ("one", "two"))
    np.testing.assert_array_equal(one[MASK < 0], IMAGES[MASK < 0])
    np.testing.assert_array_equal(two[MASK < 0], IMAGES[MASK < 0])
    assert np.isfinite(one).all() and np.abs(one - two)[MASK >= 0].max() > 1e-3


@pytest.mark.slow
def test_an_image_is_encoded_under_its_own_text():
    """The latents, seen with a solver that decodes nothing: one whose steps to less noise change nothing."""
    inverting = solvers.ddim()

    def step(process, D, keys, x, t, s, carry):
        there, carry = inverting.step(process, D, keys, x, t, s, carry)
        return jnp.where(s > t, there, x), carry

    grid = dict(name="discrete", spacing="trailing", end=1)
    sampling = config().sampling.to_dict() | dict(grid=grid)
    system, draw = edited(dict(name="inversion"), solver=inverting._replace(step=step), sampling=sampling)
    assert set(system.conditions) == {"tokens", "image", "source_tokens"}
    one, two = (system.tokenize([text] * 2) for text in ("one", "two"))
    encoded = draw(image=IMAGES, source_tokens=one, tokens=one)
    np.testing.assert_array_equal(draw(image=IMAGES, source_tokens=one, tokens=two), encoded)
    assert np.abs(draw(image=IMAGES, source_tokens=two, tokens=one) - encoded).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("task", "channels"), [("inpainting", 2), ("instruct_pix2pix", 1)])
def test_a_network_that_reads_an_image_itself_is_not_edited(task, channels):
    read = config(task=task)
    read.network.image_channels = channels
    read.editing = ConfigDict(dict(name="replacement", mask="box"))
    with pytest.raises(ConfigError, match=r"config\.editing\.name='replacement'.* the network reads it as well"):
        build.system(read)


def test_channels_of_latents_are_not_colourised():
    read = config(
        first_stage=dict(name="autoencoder_kl", block_out_channels=(8,), norm_num_groups=4, latent_channels=3)
    )
    read.editing = ConfigDict(dict(name="colorization"))
    with pytest.raises(ConfigError, match=r"'colorization'.* needs a model of pixels; .*'text_to_image' draws latents"):
        build.system(read)


def test_texts_go_to_ids_and_back(built):
    cond = requests.requested("seven | two", built.conditions, 3, built.tokenize)
    assert requests.captions(cond, built.conditions, built.describe) == ["seven", "two", "seven"]


@pytest.mark.parametrize("files", [True, False])
def test_every_encoder_has_the_padding_of_its_own(tmp_path, files):
    """OpenCLIP's and BERT's is 0, that of OpenAI's CLIP the end of the text; also where one folder serves two."""
    letters = ["!", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("")
    clip, open_clip = ({**ENCODER, "hidden_act": act} for act in ("quick_gelu", "gelu"))
    given = dict(tokenizer=str(tmp_path) if files else "")

    def rows(**encoders):
        texts = text_to_image._texts(parts_of(config(**encoders, **given)), Placeholders())
        return texts.tokenize(["a" if files else ""]).tolist()

    start = [2, 1, 3] if files else [2, 3]
    filled = [start + [end] * (5 - len(start)) for end in (3, 0)]
    assert rows(text_encoder=clip) == [filled[0]]
    assert rows(text_encoder=open_clip) == [filled[1]]
    assert rows(text_encoder=clip, text_encoder_2=open_clip) == [filled[0] + filled[1]]
    if not files:
        bert = dict(name="ldm_bert", vocab_size=200, max_position_embeddings=5)
        assert rows(text_encoder=bert) == [[101, 102, 0, 0, 0]]


def test_requests_in_a_file_name_texts_and_images(tmp_path):
    system = build.system(config(task="image_to_image", strength=0.5))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([{"caption": "one", "image": "a.png"}] * 2))
    cond = requests.requested(str(path), system.conditions, 3, system.tokenize)
    assert cond["image"].shape == (3, 8, 8, 1) and cond["tokens"].shape == (3, 8)
    np.testing.assert_allclose(cond["image"][2, ..., 0], pixels / 127.5 - 1, atol=1e-6)
    for wrong, message in [
        ([{"caption": "one"}], "object 0 has caption; it needs caption, image"),
        ([{"caption": 3, "image": "a.png"}], "a caption must be a string, got 3"),
        ([{"caption": "one", "image": "b.png"}], "Cannot read the image"),
        ([{"caption": "one", "image": 5}], "must be 1 path"),
        ({}, "must hold a list of objects"),
    ]:
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            requests.requested(str(path), system.conditions, 1, system.tokenize)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images of 8 pixels with texts, and drawings of them."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (folder / "edges").mkdir()
    lines = []
    for i in range(6):
        for name in (f"{i}.png", f"edges/{i}.png"):
            PIL.Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "one", "edges": f"edges/{i}.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "channels", "key", "shape"),
    [
        pytest.param("image_to_image", 0, "control_key", (8, 8, 1), marks=pytest.mark.slow),
        ("inpainting", 3, "control_key", (8, 8, 2)),
        pytest.param("upscaling", 1, "control_key", (4, 4, 1), marks=pytest.mark.slow),
        pytest.param("instruct_pix2pix", 2, "image_key", (8, 8, 1), marks=pytest.mark.slow),
    ],
)
def test_images_with_texts_train_every_task(pictures, task, channels, key, shape):
    """Conditions that the data does not have are made of its images, but for what editing begins with."""
    stage = dict(name="autoencoder_kl", block_out_channels=(4, 8), norm_num_groups=4, latent_channels=2)
    read = config(task=task, first_stage=stage)
    read.network.update(image_channels=channels, num_classes=999 * (task == "upscaling"))
    data = dict(name="folder", path=str(pictures), caption_key="text", split="train", eval_split="train")
    read.data = ConfigDict({**data, "image_size": 8, "channels": 1, key: "edges"})
    system = build.system(read)
    batch = source_of(read).batch(np.arange(2), np.random.default_rng(0))
    editing = task == "image_to_image"
    assert system.conditions["image"].spec.shape == shape
    assert ("image" in system.batch) != editing and (editing or batch["image"].shape == (2, *shape))
    params, batch = jax.eval_shape(system.init, jax.random.key(0)), jax.tree.map(jnp.asarray, batch)
    loss = jax.eval_shape(lambda params: system.loss(params, jax.random.key(1), batch, None)[0], params)
    assert loss.shape == (2,)
    if task == "instruct_pix2pix":
        del read.data["image_key"]
        read.data.control_key = "edges"
        with pytest.raises(ConfigError, match=r"needs the condition 'image' of shape .* does not give"):
            source_of(read)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (dict(task="paint"), "config.system.task='paint' is unknown"),
        (dict(text_encoder=dict(name="word2vec")), "system.text_encoder.name='word2vec' is unknown"),
        (dict(tokenizer="", negative_prompt="blur"), "texts need the files of a tokenizer"),
        (dict(tokenizer="/nowhere"), "holds no tokenizer"),
        (dict(pipeline="/nowhere"), "config.system.pipeline='/nowhere' must be a folder of diffusers"),
        (dict(latent_scale=0.0), "config.system.latent_scale=0.0 must be a positive number"),
        (dict(task="instruct_pix2pix"), "does not read the condition 'image'"),
        (dict(colour="red"), "takes no 'colour'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(system, message):
    with pytest.raises(ConfigError, match=message):
        build.system(config(**system))
