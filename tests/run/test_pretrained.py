"""`diffusion_jax.load`: samples and the denoiser of a work directory or a public checkpoint, in Python."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import diffusion_jax
from diffusion_jax import grids, sampling, solvers
from diffusion_jax.config import from_file
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.run import sample, train
from diffusion_jax.run.job import prepare
from diffusion_jax.run.pretrained import Pretrained
from tests.run.test_conversion import pipeline  # noqa: F401 (a fixture)
from tests.runs import ROOT, digits, toy

VE = ConfigDict(dict(name="ve", sigma_min=0.01, sigma_max=50.0))
CLASSES = dict(network__num_classes=10)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    train.train(toy(process=VE, training__num_steps=2), folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    learning = dict(training__num_steps=3, optimizer__learning_rate=0.1, optimizer__warmup_steps=0)
    train.train(digits(**CLASSES, **learning, ema__rates=(), mesh__data=1), folder)
    return folder


@pytest.mark.parametrize("file", ["bridge", "schroedinger"])
def test_the_process_of_a_bridge_is_that_of_its_system(file):
    job = prepare(from_file(f"configs/{file}.py"))
    model = Pretrained(config=job.config, system=job.system, params={}, step=0, job=job)
    assert model.process is model.system.process
    assert float(model.process.near(jnp.float32(0))) == 1


def test_samples_are_those_of_the_command(points):
    sample.sample(toy(process=VE, sampling__seed=3), points)
    model = diffusion_jax.load(points)
    assert model.step == 2 and model.config.sampling.steps == 4
    expected = np.load(points / "samples" / "samples.npz")["samples"]
    np.testing.assert_allclose(model.sample(jax.random.key(3), 6), expected, atol=1e-5)


def test_the_denoiser_and_a_solver_give_the_same_samples(points):
    model = diffusion_jax.load(points, changes={"solver.name": "euler", "sampling.grid.name": "uniform"})
    assert "eta" not in model.config.solver
    drawn = model.sample(jax.random.key(0), 3)
    prior_key, noise_key = jax.random.split(jax.random.key(0))
    x_T = diffusion_jax.processes.prior(model.process, prior_key, (3, 2))
    times = grids.uniform()(model.process, 4)
    by_hand = sampling.sample(solvers.euler(), model.process, model.denoiser(), noise_key, x_T, times)
    np.testing.assert_allclose(drawn, by_hand, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_conditions_as_texts_and_as_arrays(images):
    model = diffusion_jax.load(str(images))
    by_text = model.sample(jax.random.key(0), 4, "3,5")
    by_array = model.sample(jax.random.key(0), 4, {"label": np.array([3, 5, 3, 5])})
    np.testing.assert_array_equal(by_text, by_array)
    assert by_text.shape == (4, 8, 8, 1)
    x = jnp.ones((2, 8, 8, 1))
    three, five = (model.denoiser(text, 2)(x, jnp.float32(0.5)) for text in ("3", "5"))
    assert three.shape == x.shape and not np.array_equal(three, five)


def test_classes_have_the_names_of_the_run():
    reading = types.SimpleNamespace(tokenize=None)
    model = Pretrained(
        config=ConfigDict(),
        system=types.SimpleNamespace(conditions=Conditions(num_classes=2)),
        params={},
        step=4,
        job=types.SimpleNamespace(built=types.SimpleNamespace(reading=reading)),
        classes=("cat", "dog"),
    )
    np.testing.assert_array_equal(model.conditions("dog,cat", 3)["label"], [1, 0, 1])
    with pytest.raises(ValueError, match="'fox'"):
        model.conditions("fox", 1)


def test_a_network_of_diffusers(pipeline):  # noqa: F811
    network = diffusion_jax.load(pipeline / "transformer", changes={"sampling.steps": 2})
    assert network.step == 0
    assert network.sample(jax.random.key(0), 2, "1").shape == (2, 8, 8, 4)


@pytest.mark.slow
def test_a_pipeline_of_diffusers(pipeline):  # noqa: F811
    latent = diffusion_jax.load(pipeline, changes={"sampling.steps": 2})
    assert latent.sample(jax.random.key(0), 2, "1").shape == (2, 8, 8, 3)
    z = jnp.ones((1, *latent.system.first_stage.latent_shape))
    assert latent.denoiser("1")(z, jnp.float32(0.5)).shape == z.shape


@pytest.mark.parametrize(
    "path, options, words",
    [
        ("gone", {}, "'gone' is neither a work directory"),
        ("file.pt", {}, r"'file\.pt' does not say which network.*config='FILE"),
        ("points", dict(changes={"solvr.name": "heun"}), r"changes\['solvr\.name'\]: the config has no section"),
        ("points", dict(changes={"solver.name": "hun"}), r"config\.solver\.name='hun'.*'heun'"),
    ],
)
def test_refusals(points, monkeypatch, tmp_path, path, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=words):
        diffusion_jax.load(points if path == "points" else path, **options)


def test_the_snippet_of_the_readme(points):
    text = (ROOT / "README.md").read_text()
    (snippet,) = [b for b in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "diffusion_jax.load" in b]
    namespace: dict = {}
    exec(snippet.replace("runs/ncsn", str(points)), namespace)
    assert namespace["images"].shape == (16, 2)
