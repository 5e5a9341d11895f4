"""`python -m diffusion_jax.weights`: folders of diffusers to work directories and back."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from diffusion_jax.config import build
from diffusion_jax.config.defaults import from_file
from diffusion_jax.run import convert, train
from diffusion_jax.run.configs import config_of
from diffusion_jax.run.job import prepare
from diffusion_jax.run.parameters import fresh_state, load_params
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.weights import __main__ as command
from diffusion_jax.weights.families import named
from diffusion_jax.weights.folders import open_component, write_component
from tests import runs
from tests.weights.test_public import random_params

DIT = dict(image_size=8, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=3, learn_sigma=True)
DIT |= dict(freq_shift=1.0, mlp_norm_eps=1e-5)
VAE = dict(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False, image_size=8)
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.001,
    "clip_sample": False,
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A DiTPipeline of a tiny network and first stage."""
    path = tmp_path_factory.mktemp("pipeline")
    write_component(path / "transformer", named("dit"), DIT, random_params("dit", DIT))
    first_stage = random_params("autoencoder_kl", VAE)
    write_component(path / "vae", named("autoencoder_kl"), VAE, first_stage, extra={"scaling_factor": 0.25})
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    names = {"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}
    index = {"_class_name": "DiTPipeline", "id2label": {"0": "a"}} | {k: ["diffusers", v] for k, v in names.items()}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["weights", *map(str, arguments)])
    command.main()


def test_a_folder_becomes_a_work_directory_and_a_folder_again(tmp_path, monkeypatch, capsys, pipeline):
    source, target, back = pipeline / "transformer", tmp_path / "run", tmp_path / "back"
    run(monkeypatch, "--from", source, "--to", target, "--format", "orbax")
    assert str(target) in capsys.readouterr().out
    opened = build.trained(str(target), "config.weights")
    assert from_file(str(target / "config.py")).to_dict() == opened.config.to_dict()
    jax.tree.map(np.testing.assert_array_equal, opened.load()["network"], open_component(source).load())

    run(monkeypatch, "--from", target, "--to", back, "--format", "diffusers", "--max_bytes", 4000)
    here, there = open_component(back), open_component(source)
    assert len(list(back.glob("*.safetensors"))) > 1
    assert here.config == there.config and here.tensors.keys() == there.tensors.keys()
    for key, tensor in there.tensors.items():
        np.testing.assert_array_equal(np.asarray(here.tensors[key]), np.asarray(tensor))


def test_the_config_of_a_pipeline(tmp_path, pipeline):
    config = config_of(pipeline, "runs/first_stage")
    assert config.system.to_dict() == dict(name="latent_diffusion", first_stage="runs/first_stage")
    assert config.process.to_dict() == dict(
        name="discrete_vp", betas="scaled_linear", num_steps=1000, beta_start=0.001, beta_end=0.02
    )
    assert (config.data.image_size, config.data.channels) == (8, 3)
    assert config.loss.name == "hybrid" and config.solver.name == "ddim" and config.network.hidden_size == 16
    stage = config_of(pipeline / "vae")
    assert stage.system.to_dict() == dict(name="autoencoder_kl", latent_scale=0.25)
    assert prepare(stage).system.latent_shape == (8, 8, 4)


@pytest.mark.slow
def test_training_begins_with_the_parameters_of_step_0(tmp_path):
    config = runs.toy()
    state = fresh_state(prepare(config))
    other = jax.tree.map(lambda x: x + 1, state.params)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = dataclasses.replace(state, params=other, ema={"0.999": other})
        checkpoints.save(0, state, convert.Beginning(), wait=True)
    train.train(config, tmp_path)  # its learning rate is far below what was added
    found, step = load_params(prepare(config), tmp_path)
    assert step == config.training.num_steps
    for after, before in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(after, before, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "nowhere", "--format", "orbax"), "nowhere is neither a file of weights nor a folder"),
        (
            ("--from", "nowhere", "--format", "diffusers"),
            "--from='nowhere' must be the work directory of a trained run",
        ),
        (("--from", "hub:only", "--format", "orbax"), "'hub:only' must be hub:owner/name"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, *arguments, "--to", tmp_path / "to")
    assert exit.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_what_is_there_is_not_overwritten(tmp_path, pipeline):
    (tmp_path / "file").write_text("mine")
    for make in (convert.to_workdir, convert.to_folder):
        with pytest.raises(ValueError, match="exists and is not an empty folder"):
            make(pipeline / "transformer", tmp_path)


def test_schedulers_and_networks_without_a_config(tmp_path, pipeline):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in pipeline.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "scheduler").unlink()
    (copy / "scheduler").mkdir()
    for changes, message in (
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"prediction_type": "flow"}, "prediction_type='flow'"),
        ({"trained_betas": [0.1]}, "trained_betas="),
        ({"beta_start": "0.1"}, "beta_start='0.1'"),
    ):
        (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | changes))
        with pytest.raises(ValueError, match=message):
            convert.to_workdir(copy, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_the_hub_is_an_option(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"needs pip install 'diffusion_jax\[hub\]'; a folder that lies here"):
        convert.fetch("hub:google/ddpm-cifar10-32")


def test_a_network_of_scores_is_told_the_noise_of_its_data(tmp_path):
    given = dict(image_size=8, nf=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())
    given |= dict(progressive="output_skip", progressive_input="input_skip")
    extra = {"center_input_sample": True}
    write_component(tmp_path, named("ncsnpp"), given, random_params("ncsnpp", given), extra=extra)
    config = config_of(tmp_path)
    assert config.process.sigma_min == 0.02 and config.parameterization.label == "log_sigma_unit"
