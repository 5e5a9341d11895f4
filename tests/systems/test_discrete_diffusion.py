"""Discrete diffusion as a system: from a text to samples, infilled texts and bits per character, by the command."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.processes.categorical import at_values
from diffusion_jax.run import evaluate, sample, train
from tests.config.test_configs import read
from tests.runs import ROOT, resumed, with_devices

TEXT = "the cat sat on the mat. " * 200
TIMED = dict(name="token_dit", hidden_size=16, depth=1, num_heads=2, cond_dim=8, time_conditioned=True)


def tiny(path="", name="masked_text:python", **sections):
    config = read(name)
    config.data.update(length=12, path=str(path))
    config.network.update(hidden_size=16, depth=1, num_heads=2, cond_dim=8)
    config.training.update(num_steps=4, batch_size=8, log_every=1, checkpoint_every=2, sample_every=0)
    config.sampling.update(num_samples=4, batch_size=4, steps=4)
    config.evaluation.update(num_samples=8, after_training=False)
    config.system.num_times = 4
    for key, value in sections.items():
        config[key] = ConfigDict(value) if "name" in value else config[key]
        if "name" not in value:
            config[key].update(value)
    return config


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """A model of a text of one sentence, which a few hundred steps learn."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny(text, training=dict(num_steps=400, batch_size=64, log_every=100, checkpoint_every=400))
    config.network.update(hidden_size=32, depth=2)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=20)
    config.sampling.update(steps=12)
    config.evaluation.update(num_samples=32)
    train.train(config, folder)
    return config, folder


@pytest.mark.slow
def test_a_short_training_learns_a_sentence(run):
    """A period of 24 characters costs log2(24) / 12 = 0.38 bits per character, its letters alone 3.1, all 96 6.6."""
    config, folder = run
    evaluate.evaluate(config, folder)
    values = json.loads((folder / "evaluation.json").read_text())
    assert np.log2(24) / 12 - 0.15 < values["held_out_bits_per_token"] < 2
    assert 0 < values["held_out_bits_per_token_standard_error"] < 0.3
    assert values["held_out_bits_3gram"] < 1.2
    sample.sample(config, folder)
    samples = np.load(folder / "samples" / "samples.npz")["samples"]
    assert samples.shape == (4, 12) and samples.dtype == np.int32 and samples.max() < 96
    letters = build.build(config).source().facts["encode"]("".join(sorted(set(TEXT))))
    assert np.isin(samples, letters).mean() > 0.9  # 11 of 96 characters
    written = (folder / "samples" / "samples.txt").read_text()
    assert written.startswith("=== 0\n") and written.count("===") == 4


@pytest.mark.few(1)
@pytest.mark.parametrize("solver", [dict(name="ancestral", cache=True), dict(name="first_hitting")])
def test_hidden_characters_are_drawn_and_the_others_kept(run, solver):
    config, folder = run
    config = config.copy_and_resolve_references()
    config.editing = ConfigDict(dict(name="infilling", length=4))
    config.solver = ConfigDict(solver)
    config.evaluation.metrics = ("infilling",)
    evaluate.evaluate(config, folder)
    values = json.loads((folder / "evaluation.json").read_text())
    assert values["infilling_right_3gram_best"] > 0.7
    assert values["infilling_right"] > 0.4  # the most frequent character is a quarter of them
    config.sampling.cond = "the c_t sat |e cat ___ on"
    config.sampling.file = "infilled"
    sample.sample(config, folder)
    texts = (folder / "samples" / "infilled.txt").read_text()
    assert "the c_t sat_\n--- drawn:\nthe c" in texts
    drawn = [block.split("--- drawn:\n")[1][:12] for block in texts.split("=== ")[1:]]
    assert all(text[:5] == "the c" and text[6:11] == "t sat" for text in drawn[::2])
    assert all(text[:6] == "e cat " and text[9:] == " on" for text in drawn[1::2])


@pytest.mark.slow
def test_training_resumes_exactly(text, tmp_path):
    config = tiny(text)
    config.training.num_steps, config.optimizer.schedule = 4, "constant"
    resumed(config, tmp_path, 2)


PROGRAM = """
import dataclasses, sys
import jax, numpy as np
from diffusion_jax.run import job as jobs
from diffusion_jax.run.parameters import fresh_state
from diffusion_jax.training import mesh as meshes
from tests.systems.test_discrete_diffusion import tiny

def found(**mesh):
    config = tiny(sys.argv[1])
    config.network.update(hidden_size=64)
    config.optimizer = type(config.optimizer)({"name": "sgd", "learning_rate": 0.05})
    config.mesh.update(mesh)
    job = jobs.prepare(config)
    place = meshes.batch_sharding(job.mesh)
    x = job.source.batch(np.arange(8))["x"]
    with jax.set_mesh(job.mesh):
        state = jax.device_put(fresh_state(job), job.layout)
        step = jax.jit(jobs.train_step(job), out_shardings=(job.layout, None))
        losses = []
        for _ in range(2):
            state, metrics = step(state, {"x": jax.device_put(x, place)})
            losses.append(float(metrics["loss"]))
        ids = jax.device_put(np.arange(8), place)
        return losses, np.asarray(jax.jit(job.system.draw)(state.params, jax.random.key(5), ids, None)["samples"])

if jax.device_count() == 1:
    np.save(sys.argv[2], np.array(found()[0]))
else:
    for sizes in (dict(data=4), dict(data=1, fsdp=2, tensor=2)):
        losses, samples = found(**sizes)
        np.testing.assert_allclose(losses, np.load(sys.argv[2]), rtol=1e-5)
        assert samples.shape == (8, 12)
"""


@pytest.mark.slow
def test_four_devices_train_like_one(text, tmp_path):
    for devices in (1, 4):
        command = [sys.executable, "-c", PROGRAM, str(text), str(tmp_path / "losses.npy")]
        done = subprocess.run(command, env=with_devices(devices), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]


def test_samples_do_not_depend_on_the_batch_size(run):
    config, _ = run
    system = build.system(config)
    params = system.init(jax.random.key(0))
    draw = jax.jit(system.draw)
    many = draw(params, jax.random.key(1), jnp.arange(4), None, {})["samples"]
    few = draw(params, jax.random.key(1), jnp.arange(2, 4), None, {})["samples"]
    np.testing.assert_array_equal(many[2:], few)


def test_guidance_extrapolates_log_probabilities():
    """With w = 2 the odds of two values are the squared odds under the class over the odds under the null class."""
    config = tiny(name="masked_text:python", system=dict(cond_dropout=0.1))
    config.network.num_classes = 3
    config.guidance = ConfigDict(dict(name="classifier_free", scale=2.0))
    system = build.system(config)
    params = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), system.init(jax.random.key(0))
    )
    cond, x = {"label": jnp.array([1])}, jnp.full((1, 12), 96).at[0, 3].set(7)
    guided, plain = system.denoiser(params, cond), system.model(params, cond)
    log_D, of_class = guided(x, jnp.float32(0.5)), plain.D(x, jnp.float32(0.5), plain.cond)
    of_null = plain.D(x, jnp.float32(0.5), plain.null)
    odds = lambda log_p: np.asarray(log_p[0, 0, 5] - log_p[0, 0, 9])
    np.testing.assert_allclose(odds(log_D), 2 * odds(of_class) - odds(of_null), atol=1e-4)
    assert abs(odds(of_class) - odds(of_null)) > 1e-3
    np.testing.assert_allclose(jnp.exp(log_D).sum(-1), 1, atol=1e-5)
    assert float(at_values(log_D, x)[0, 3]) == 0  # what is not masked stays certain


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (dict(process=dict(name="vp")), r"config\.process\.name='vp' is for real numbers.*absorbing"),
        (dict(solver=dict(name="heun")), r"config\.solver\.name='heun' is for real numbers.*first_hitting"),
        (dict(loss=dict(name="denoising")), r"config\.loss\.name='denoising'"),
        (dict(editing=dict(name="sdedit")), r"config\.editing\.name='sdedit'"),
        (dict(parameterization=dict(name="eps")), r"config\.parameterization\.name='eps'"),
        (dict(solver=dict(name="first_hitting")), r"config\.sampling\.steps=4 must be at least 12"),
        (dict(loss=dict(name="discrete_nelbo")), r"config\.process\.num_steps"),
        (dict(loss=dict(name="score_entropy")), r"config\.loss.*log_score"),
        (dict(process=dict(name="uniform"), solver=dict(name="first_hitting")), r"config\.solver.*with a mask"),
        (dict(process=dict(name="uniform"), editing=dict(name="infilling")), r"config\.editing.*with a mask"),
        (dict(process=dict(name="uniform"), solver=dict(name="euler")), r"config\.sampling\.grid\.t_max=0\.99"),
        (dict(process=dict(name="absorbing", num_steps=8)), r"config\.loss\.name='nelbo'.*discrete_nelbo"),
        (dict(editing=dict(name="infilling", length=40)), r"config\.editing.*40"),
        (
            dict(network=TIMED, solver=dict(name="ancestral", cache=True)),
            "does not read t",
        ),
        (dict(system=dict(num_times=0)), r"config\.system\.num_times=0"),
        (dict(system=dict(head="logistic")), r"config\.system\.head='logistic'"),
        (dict(network=dict(name="mlp")), r"config\.network"),
    ],
)
def test_refused_pairs(sections, words):
    with pytest.raises(ConfigError, match=words):
        build.build(tiny(**sections))


def test_masks_that_would_be_left_are_refused():
    config = tiny()
    config.sampling.grid.t_min = 0.1
    with pytest.raises(ConfigError, match=r"config\.sampling\.denoise=True"):
        build.build(config)


def test_a_categorical_process_is_refused_for_real_numbers():
    config = read("ddpm:digits")
    config.process = ConfigDict(dict(name="absorbing"))
    with pytest.raises(ConfigError, match=r"config\.process\.name='absorbing'.*discrete_diffusion.*vp"):
        build.build(config)
    config = read("ddpm:digits")
    config.editing = ConfigDict(dict(name="infilling"))
    with pytest.raises(ConfigError, match=r"config\.editing"):
        build.build(config)


@pytest.mark.parametrize("variant", ["digits_gauss", "digits_uniform"])
def test_grey_levels_are_tokens(variant):
    """A step of the loss and of sampling, whose images are on the levels of the data."""
    config = read(f"d3pm:{variant}")
    config.process.num_steps = config.sampling.steps = 4
    config.network.update(channels=8, num_groups=4, channel_mult=(1,), attention_resolutions=())
    system = build.system(config)
    params = system.init(jax.random.key(0))
    x = 2 * jax.random.randint(jax.random.key(1), (2, 8, 8, 1), 0, 17) / 16 - 1.0
    loss, _ = jax.jit(lambda p, x: system.loss(p, jax.random.key(0), {"x": x}, None))(params, x)
    assert np.isfinite(loss).all()
    samples = jax.jit(system.draw)(params, jax.random.key(0), jnp.arange(2), None, {})["samples"]
    assert samples.shape == (2, 8, 8, 1)
    np.testing.assert_allclose(np.asarray(8 * (samples + 1)) % 1, 0, atol=1e-5)
