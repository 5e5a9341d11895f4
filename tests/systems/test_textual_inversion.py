"""Textual inversion: only new vectors are trained, their files, and what a config may ask for."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.config import build, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data.captions import texts_of, tokens_of
from diffusion_jax.run import convert
from diffusion_jax.run.job import prepare, train_step
from diffusion_jax.run.parameters import fresh_state
from diffusion_jax.systems.low_rank import learner
from diffusion_jax.systems.textual_inversion import TextualInversion
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.weights.textual_inversion import Learned, read_learned, write_learned
from tests import runs
from tests.weights import write_zip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The work directory of a text-to-image run that was not trained."""
    return runs.untrained(runs.text_to_image("stable_diffusion.py:digits"), tmp_path_factory.mktemp("words"))


def inversion(base, **changes):
    given = dict(system__model=str(base), system__num_vectors=3, system__initializer="two", training__batch_size=4)
    return runs.text_to_image("inversion.py:digits", **given | changes)


@pytest.fixture(scope="module")
def trained(base):
    """The job of textual inversion with strong weight decay, its state at step 0 and after two steps."""
    job = prepare(inversion(base, optimizer__weight_decay=0.5, optimizer__learning_rate=0.1))
    start = fresh_state(job)
    before = jax.tree.map(np.asarray, start.params)
    step, state = jax.jit(train_step(job)), start
    for i in range(2):
        batch = job.source.batch(np.arange(4), np.random.default_rng(i))
        state, _ = step(state, {name: jnp.asarray(batch[name]) for name in job.batch})
    return job, before, state


def test_vectors_of_several_encoders_are_drawn_apart():
    base = types.SimpleNamespace(init=lambda key: {"network": {}})
    vectors = TextualInversion(system=base, token="<new>", shapes={"0": (2, 8), "1": (2, 8)}).init(jax.random.key(0))
    assert (vectors["vectors"]["0"] != vectors["vectors"]["1"]).all()


@pytest.mark.slow
def test_training_changes_the_vectors_and_nothing_else(trained):
    _, before, state = trained
    jax.tree.map(np.testing.assert_array_equal, state.params["frozen"], before["frozen"])
    assert state.params["vectors"]["0"].shape == (3, 8)
    assert np.abs(state.params["vectors"]["0"] - before["vectors"]["0"]).max(axis=1).min() > 1e-3
    held = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert held == [24, 24], "two moments of the vectors"


@pytest.mark.slow
def test_vectors_of_a_word_are_that_word_and_its_network_the_one_of_the_run(base, trained):
    job, before, _ = trained
    model = job.system.system
    text = job.system.merged(before)["frozen"]["text"]
    tokenize = job.built.reading.tokenize
    encode = lambda word: np.asarray(model.texts.encode(text, jnp.asarray(tokenize([word])))["tokens"])
    new, two = encode("<new>"), encode("two")
    np.testing.assert_array_equal(new, two)
    run = build.trained(str(base), "config.system.model").load()
    jax.tree.map(np.testing.assert_array_equal, before["frozen"]["network"], run["network"])


@pytest.mark.slow
def test_learned_vectors_are_used_by_the_model_itself(base, trained, tmp_path):
    job, _, state = trained
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(2, state, convert.Beginning(), wait=True)
    saved.write_config(tmp_path / "run", job.config)
    (file,) = convert.to_embeddings(tmp_path / "run", tmp_path / "token")
    assert file.name == "learned_embeds.safetensors"
    prompt = "a <new>!"
    for entry, word in ((str(tmp_path / "token"), "<new>"), (f"<cat>={file}", "<cat>")):
        model = build.build(runs.text_to_image("stable_diffusion.py:digits", system__embeddings=(entry,)))
        ids = model.reading.tokenize([prompt.replace("<new>", word)])
        assert model.reading.describe(ids) == [prompt.replace("<new>", word)]
        assert model.system.conditions["tokens"].spec.values == 260
        found = model.system.texts.encode(state.params["frozen"]["text"], jnp.asarray(ids))["tokens"]
        whole = job.system.merged(state.params)["frozen"]["text"]
        expected = job.system.system.texts.encode(whole, jnp.asarray(job.built.reading.tokenize([prompt])))["tokens"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    here = runs.text_to_image("stable_diffusion.py:digits", system__embeddings=(str(file),))
    assert saved.check_same_model(here, base, resume=False), "a difference that sampling allows"
    with pytest.raises(ValueError, match="has no vectors of a token"):
        convert.to_embeddings(base, tmp_path / "none")


def test_bytes_with_placeholders():
    added = {"<a>": range(300, 302), "<a>b": range(302, 303)}
    ids = tokens_of(["x<a>y", "<a>b", "é<a>"], 6, added=added)
    assert ids.tolist() == [[121, 300, 301, 122, 0, 0], [302, 0, 0, 0, 0, 0], [196, 170, 300, 301, 0, 0]]
    assert texts_of(ids, added) == ["x<a>y", "<a>b", "é<a>"]


VECTORS = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)


def test_files_of_diffusers_and_others(tmp_path):
    learned = Learned("<cat>", (VECTORS, np.ones((2, 5), np.float32)))
    names = [file.name for file in write_learned(tmp_path, learned)]
    assert names == ["learned_embeds.safetensors", "learned_embeds_2.safetensors"]
    (tmp_path / "xl").mkdir()
    save_file({"clip_l": VECTORS, "clip_g": np.ones((2, 5), np.float32)}, tmp_path / "xl" / "both.safetensors")
    (tmp_path / "bin").mkdir()
    write_zip(tmp_path / "bin" / "learned_embeds.bin", {"<dog>": VECTORS[0]})
    for path, token, expected in (
        (tmp_path, "", learned),
        (tmp_path / "learned_embeds.safetensors", "<new>", learned._replace(token="<new>")),
        (tmp_path / "xl" / "both.safetensors", "<cat>", learned),
        (tmp_path / "bin", "", Learned("<dog>", (VECTORS[:1],))),
    ):
        found = read_learned(path, token)
        assert found.token == expected.token
        jax.tree.map(np.testing.assert_array_equal, found.vectors, expected.vectors)
    with pytest.raises(ValueError, match="vectors without their token"):
        read_learned(tmp_path / "xl" / "both.safetensors")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": VECTORS, "b": VECTORS}, "has 2 entries, such as a, b; a file of textual inversion"),
        ({"a": VECTORS[None]}, r"must hold vectors \[n, dim\] or one vector \[dim\], got \(1, 2, 8\)"),
        ({"a": VECTORS * np.nan}, "holds vectors that are not finite"),
    ],
)
def test_other_files_are_refused(tmp_path, arrays, message):
    save_file(arrays, tmp_path / "learned_embeds.safetensors")
    with pytest.raises(ValueError, match=message):
        read_learned(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(weights="runs/words"), r"config\.weights='runs/words' must be empty for textual inversion"),
        (dict(system__placeholder="a b"), r"config\.system\.placeholder: 'a b' must be one token"),
        (
            dict(system__placeholder="three"),
            r"config\.system\.placeholder='three' is a text that config\.system\.model",
        ),
        (dict(system__initializer="seven"), r"config\.system\.initializer='seven' has 5 tokens; it must have one"),
        (dict(system__num_vectors=0), r"config\.system\.num_vectors=0 must be a positive number"),
        (dict(system__model=""), r"config\.system\.model must be the work directory"),
        (dict(network__block_out_channels=(4,)), r"config\.system\.model='.*' is another model: .*block_out_channels"),
        (dict(system__embeddings=("nowhere",)), r"config\.system\.embeddings: nowhere does not exist"),
        (dict(data__instance__prompts=("three",)), r"config\.data: \d+ of \d+ texts lack config\.system\.placeholder"),
    ],
)
def test_refusals_of_configs(base, changes, message):
    with pytest.raises(ConfigError, match=message):
        build.build(inversion(base, **changes)).source()


@pytest.mark.slow
def test_low_rank_updates_need_a_trained_network(trained):
    with pytest.raises(ValueError, match="rank=2 must be 0 for a system that trains no network"):
        learner(dict(rank=2, alpha=0.0, modules="."), trained[0].system)


def test_files_that_do_not_fit_the_encoders(tmp_path):
    write_learned(tmp_path, Learned("<cat>", (np.ones((1, 5), np.float32),)))
    config = runs.text_to_image("stable_diffusion.py:digits", system__embeddings=(str(tmp_path),))
    with pytest.raises(
        ConfigError, match=r"vectors of 5 numbers; the text encoders need one array each: 8 for text_enc"
    ):
        build.system(config)
    config.system.embeddings = (str(tmp_path), f"<cat>={tmp_path}")
    config.system.text_encoder.update(hidden_size=5, num_attention_heads=1)
    with pytest.raises(ConfigError, match="two files or a placeholder have the token '<cat>'"):
        build.system(config)
