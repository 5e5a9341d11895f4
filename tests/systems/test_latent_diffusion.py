"""Latent diffusion: what an exact first stage makes of it, what stays frozen, precomputed latents, and refusals."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import systems
from diffusion_jax.config import build, saved
from diffusion_jax.config.recipes.latent_diffusion import fingerprint
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data.sources import latents as files
from diffusion_jax.losses import first_stage as losses
from diffusion_jax.run import encode, evaluate, job, parameters, sample, train
from diffusion_jax.systems import bottlenecks
from diffusion_jax.systems.latent_diffusion import averaged_to, first_stage_params
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import System, Train
from tests.runs import command, digits, listing, source_of


def exact_stage(matrix: np.ndarray) -> systems.Autoencoder:
    """Images [8, 8, 1] as latents [8, 8, 1]: each column of pixels times an orthogonal matrix, without noise."""
    kernel = jnp.float32(matrix)

    def encode(params, x):
        mean = jnp.einsum("bhwc,hk->bkwc", x, params["kernel"])
        return jnp.concatenate([mean, jnp.full_like(mean, -30.0)], -1)

    return systems.Autoencoder(
        init_network=lambda key: {"kernel": kernel},
        encode=encode,
        decode=lambda params, z: jnp.einsum("bkwc,hk->bhwc", z, params["kernel"]),
        bottleneck=bottlenecks.Gaussian(),
        reconstruction=losses.reconstruction("l2"),
        perceptual=None,
        adversary=None,
        shape=(8, 8, 1),
        latent_shape=(8, 8, 1),
    )


@pytest.fixture(scope="module")
def pixels():
    """A pixel-space model of the digits with classes."""
    return build.system(digits(network__num_classes=10, network__hidden=8))


def batch(n=8):
    random = np.random.default_rng(0)
    x = jnp.float32(random.uniform(-1, 1, (n, 8, 8, 1)))
    return {"x": x, "label": jnp.int32(random.integers(10, size=n))}


def test_with_an_exact_first_stage_it_is_diffusion_of_rotated_pixels(pixels):
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))
    stage = exact_stage(rotation)
    system = systems.LatentDiffusion(diffusion=pixels, first_stage=stage)
    assert isinstance(system, System)
    params = jax.jit(system.init)(jax.random.key(0))
    key, held = jax.random.key(1), batch()
    rotated = {**held, "x": jnp.einsum("bhwc,hk->bkwc", held["x"], jnp.float32(rotation))}
    ours = system.loss(params, key, held, None)[0]
    theirs = pixels.loss(params, jax.random.split(key)[1], rotated, None)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    samples = system.sample(params, key, 5)
    drawn = pixels.sample(params, key, 5)
    back = np.einsum("bkwc,hk->bhwc", drawn["samples"], rotation)
    np.testing.assert_allclose(samples["samples"], back, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(samples["label"], drawn["label"])
    fewer = dataclasses.replace(system, decode_batch_size=2).sample(params, key, 5)
    np.testing.assert_allclose(fewer["samples"], samples["samples"], rtol=1e-4, atol=1e-4)


def test_precomputed_latents_are_those_on_the_way():
    """Also with noise of the posterior, whose key is the same."""
    stage = exact_stage(np.eye(8))
    noisy = dataclasses.replace(stage, encode=lambda params, x: jnp.concatenate([2 * x, 0 * x - 1], -1))
    diffusion = build.system(digits(network__hidden=8))
    system = systems.LatentDiffusion(diffusion=diffusion, first_stage=noisy)
    params, held = jax.jit(system.init)(jax.random.key(0)), batch()
    h = noisy.encode(params["frozen"]["first_stage"]["network"], held["x"])
    read = dataclasses.replace(system, precomputed=True)
    for step in (None, Train(step=jnp.int32(0), num_steps=10)):
        a = system.loss(params, jax.random.key(1), held, step)[0]
        b = read.loss(params, jax.random.key(1), {**held, "x": h}, step)[0]
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_map_of_classes_becomes_shares():
    classes = jnp.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    shares = averaged_to(jax.nn.one_hot(classes, 2)[None], (1, 2))
    np.testing.assert_allclose(shares, [[[[0.75, 0.25], [0.0, 1.0]]]])


def stage_config(**changes):
    """A tiny autoencoder of the digits."""
    config = digits(**changes)
    config.system = ConfigDict(dict(name="autoencoder_kl"))
    config.loss = ConfigDict(dict(name="l2"))
    config.network = ConfigDict(
        dict(
            name="autoencoder_kl",
            block_out_channels=(4, 4),
            layers_per_block=1,
            latent_channels=2,
            norm_num_groups=2,
            mid_block_add_attention=False,
        )
    )
    return build.reset_unread(config)


def latent_config(stage, **changes):
    config = digits(network__hidden=8)
    config.system = ConfigDict(dict(name="latent_diffusion", first_stage=str(stage)))
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stage")
    train.train(stage_config(), directory)
    return directory


@pytest.mark.slow
def test_the_command_from_first_stage_to_samples(stage, tmp_path, capsys):
    """Train and go on; the first stage is in the checkpoint as it was; latents written once; decoded."""
    train.train(latent_config(stage, training__num_steps=2), tmp_path / "run")
    train.train(latent_config(stage), tmp_path / "run")
    assert "resuming from step 2" in capsys.readouterr().out
    params, _ = parameters.load_params(job.prepare(latent_config(stage)), tmp_path / "run")
    run = build.trained(str(stage), "field")
    jax.tree.map(np.testing.assert_array_equal, params["frozen"]["first_stage"], first_stage_params(run.load()))
    moved = shutil.copytree(stage, tmp_path / "moved")
    sample.sample(latent_config(moved), tmp_path / "run")
    drawn = np.load(tmp_path / "run" / "samples" / "samples.npz")["samples"]
    assert drawn.shape == (6, 8, 8, 1) and drawn.dtype == np.uint8

    folder = tmp_path / "latents"
    encode.main(["encode", f"--first_stage={stage}", f"--to={folder}"])
    output = capsys.readouterr().out
    assert "1297 latents of (4, 4, 4)" in output and "standardised" in output
    header = files.read_header(folder, "train")
    assert header.image_shape == (8, 8, 1) and header.num_classes == 10
    source = files.source(folder, "train[:20]")
    images = source_of(stage_config()).batch(files.files.select("train[:20]", 1297))
    found = source.batch(np.arange(20))
    np.testing.assert_array_equal(found["label"], images["label"])
    h = jax.jit(run.system.encode)(run.load()["network"], jnp.asarray(images["x"]))
    np.testing.assert_allclose(found["x"], h, atol=1e-5)

    read = latent_config(stage, data__name="latents", data__path=str(folder))
    train.train(read, tmp_path / "read")
    assert json.loads((tmp_path / "read" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4
    encode.main(["decode", f"--first_stage={stage}", f"--from={folder}", f"--to={tmp_path / 'x.npz'}", "--num=10"])
    decoded = np.load(tmp_path / "x.npz")["samples"]
    whole = source_of(stage_config()).batch(np.arange(10))["x"]
    expected = jax.jit(run.system.reconstruct)(run.load(), jnp.asarray(whole))
    np.testing.assert_allclose(decoded / 127.5 - 1, np.clip(expected, -1, 1), atol=0.005)
    assert (tmp_path / "x.png").exists()


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_modes_of_the_command_write_what_the_former_command_wrote(stage, tmp_path, monkeypatch, capsys):
    """Latents of a part of the data, and their images, byte for byte."""
    config = tmp_path / "stage.py"
    config.write_text(
        "from tests.systems.test_latent_diffusion import stage_config\n\n\ndef get_config(variant=None):\n"
        "    return stage_config(sampling__num_samples=10, sampling__batch_size=128, training__batch_size=128)\n"
    )
    encode.main(["encode", f"--first_stage={stage}", f"--to={tmp_path / 'old'}", "--split=train[:100]"])
    encode.main(
        ["decode", f"--first_stage={stage}", f"--from={tmp_path / 'old'}", f"--to={tmp_path / 'old.npz'}", "--num=10"]
    )
    before = listing(stage)
    arguments = [f"--config={config}", f"--workdir={stage}"]
    command(monkeypatch, *arguments, "--mode=encode", f"--to={tmp_path / 'new'}", "--config.data.split=train[:100]")
    command(monkeypatch, *arguments, "--mode=decode", f"--from={tmp_path / 'new'}", f"--to={tmp_path / 'new.npz'}")
    assert listing(stage) == before
    old, new = files_below(tmp_path / "old"), files_below(tmp_path / "new")
    assert old == new and len(old) > 1
    for suffix in ("npz", "png"):
        assert (tmp_path / f"old.{suffix}").read_bytes() == (tmp_path / f"new.{suffix}").read_bytes()
    assert np.load(tmp_path / "new.npz")["samples"].shape == (10, 8, 8, 1)
    assert str(tmp_path / "new.npz") in capsys.readouterr().out


@pytest.mark.slow
def test_only_the_diffusion_model_is_trained(stage):
    config = latent_config(stage)
    config.network.num_classes = 10
    built = build.build(config)
    system, (optimizer, _) = built.system, built.parts.optimizer()
    state = jax.jit(lambda key: init_state(system, optimizer, (0.9,), key))(jax.random.key(0))
    step = jax.jit(make_train_step(system, optimizer, num_steps=4, ema_rates=(0.9,)))
    after = state
    for _ in range(3):
        after, _ = step(after, batch())
    jax.tree.map(np.testing.assert_array_equal, after.params["frozen"], state.params["frozen"])
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), after.params["network"], state.params["network"])
    assert any(jax.tree.leaves(moved))
    assert "frozen" not in after.ema["0.9"]


@pytest.mark.slow
def test_refuses_what_does_not_fit(stage, tmp_path):
    def refused(match, config):
        with pytest.raises(ConfigError, match=match):
            job.prepare(config)

    refused(r"config\.system\.first_stage='nowhere' must be.*configs/autoencoder_kl\.py", latent_config("nowhere"))
    foreign = tmp_path / "foreign"
    (foreign / "checkpoints").mkdir(parents=True)
    saved.write_config(foreign, digits())
    refused(r"foreign'.*config\.system\.name='diffusion'", latent_config(foreign))
    refused(r"is for examples of \(8, 8, 1\); .* \(16, 16, 1\)", latent_config(stage, data__image_size=16))
    refused(r"is for examples of \(8, 8, 1\); .* \(8, 8, 3\)", latent_config(stage, data__channels=3))
    odds = latent_config(stage)
    odds.evaluation.likelihood = ConfigDict(dict(name="ode"))
    refused(r"likelihood\.name='ode' must be 'none'", odds)
    read = dict(data__name="latents", data__path=str(tmp_path))
    refused(
        r"train\.json does not describe latents .* --mode=encode",
        latent_config(stage, **read),
    )
    rows = {"x": np.zeros((3, 4, 4, 4), np.float32)}
    made = dict(image_shape=(8, 8, 1), num_classes=0)
    files.write(tmp_path, "train", [rows], first_stage="0123456789abcdef", **made)
    refused(r"from weights 0123456789abcdef; .* has weights .* Encode with it", latent_config(stage, **read))
    own = fingerprint(build.trained(str(stage), "config.system.first_stage").load())
    files.write(tmp_path / "own", "train", [rows], first_stage=own, **made)
    read["data__path"] = str(tmp_path / "own")
    fit = job.prepare(latent_config(stage, **read, evaluation__metrics=("classifier",)))
    with pytest.raises(ConfigError, match=r"config\.evaluation\.metrics='classifier'.*'latents'"):
        evaluate.metrics_of(fit, None)
