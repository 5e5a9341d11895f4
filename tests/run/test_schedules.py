"""The schedule of a pipeline or single file beside that of the config that loads it, and in converted configs."""

import json
import warnings

import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config.sections import ConfigError
from diffusion_jax.processes.discrete import beta_table
from diffusion_jax.run import convert
from diffusion_jax.run.configs import config_of
from diffusion_jax.run.job import prepare
from diffusion_jax.run.parameters import fresh_state, load_params
from diffusion_jax.run.schedules import check_schedule
from diffusion_jax.weights.families import named
from diffusion_jax.weights.files import write_weights
from diffusion_jax.weights.folders import write_component
from diffusion_jax.weights.layout import export_params
from tests.weights.test_public import arguments, random_params
from tests.weights.test_schedulers import written

SCHEDULER = dict(_class_name="DDPMScheduler", beta_schedule="scaled_linear", clip_sample=False, num_train_timesteps=50)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A DDPMPipeline of a tiny U-Net, whose safety checker has no folder."""
    path = tmp_path_factory.mktemp("pipeline")
    write_component(path / "unet", named("unet"), arguments(), random_params("unet", arguments()))
    names = {"unet": "UNet2DModel", "scheduler": "DDPMScheduler", "safety_checker": "SafetyChecker"}
    index = {"_class_name": "DDPMPipeline"} | {k: ["diffusers", v] for k, v in names.items()}
    (path / "model_index.json").write_text(json.dumps(index))
    return written(path, **SCHEDULER)


@pytest.fixture(scope="module")
def job(pipeline):
    """The job of the config of the pipeline."""
    written(pipeline, **SCHEDULER)
    return prepare(config_of(pipeline))


@pytest.fixture
def other(tmp_path, pipeline):
    """Makes the same pipeline with other options of its scheduler."""

    def make(**changes):
        for part in ("unet", "model_index.json"):
            if not (tmp_path / part).exists():
                (tmp_path / part).symlink_to(pipeline / part)
        return written(tmp_path, **SCHEDULER | changes)

    return make


def test_the_config_of_a_pipeline_agrees_with_it(job, pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (pipeline, pipeline / "unet", next((pipeline / "unet").glob("*.safetensors"))):
            check_schedule(job, path)
        load_params(job, pipeline)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prediction_type="v_prediction"), r"prediction_type='v_prediction'.*config\.parameterization\.name='eps'"),
        (dict(beta_schedule="linear"), r"beta_schedule='linear'.*config\.process\.betas='scaled_linear'"),
        (dict(beta_end=0.03), r"beta_end=0\.03.*config\.process\.beta_end=0\.02"),
        (dict(num_train_timesteps=60), r"num_train_timesteps=60.*config\.process\.num_steps=50"),
        (dict(rescale_betas_zero_snr=True), r"rescale_betas_zero_snr=True.*config\.process\.zero_terminal_snr=None"),
        (dict(trained_betas=beta_table("linear", 50).tolist()), "beta_schedule='linear'"),
        (dict(_class_name="EDMEulerScheduler"), "EDMEulerScheduler"),
        (dict(_class_name="FlowMatchEulerDiscreteScheduler"), "FlowMatchEulerDiscreteScheduler"),
        (dict(_class_name="ScoreSdeVeScheduler"), r"ScoreSdeVeScheduler.*config\.process\.name='discrete_vp'"),
    ],
)
def test_another_schedule_is_refused_before_anything_is_read(job, other, changes, message):
    path = other(**changes)
    for source in (path, path / "unet"):
        with pytest.raises(ConfigError, match=rf"config\.weights: .*{message}"):
            load_params(job, source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(clip_sample=True, clip_sample_range=3), r"clip_sample=True.*config\.sampling\.threshold=.*none"),
        (dict(thresholding=True), r"thresholding=True.*config\.sampling\.threshold=.*none"),
        (dict(variance_type="fixed_large"), r"variance_type='fixed_large'.*config\.solver\.variance='beta_tilde'"),
    ],
)
def test_another_sampler_is_a_warning(job, other, changes, message):
    with pytest.warns(UserWarning, match=message):
        check_schedule(job, other(**changes))


def test_single_files(tmp_path, job, pipeline):
    arrays = export_params(named("unet").layouts({})[0], random_params("unet", arguments()))
    right = {"betas": beta_table("scaled_linear", 50).astype(np.float32)}
    for extra, message in (
        ({"v_pred": np.zeros(0, np.float32)}, "v_pred"),
        ({"ztsnr": np.zeros(0, np.float32)}, r"config\.process\.zero_terminal_snr=False"),
        ({"betas": beta_table("linear", 50).astype(np.float32)}, "alphas_cumprod of 50"),
        ({"edm_mean": np.zeros(4, np.float32)}, "edm_mean"),
    ):
        (file,) = write_weights(tmp_path / next(iter(extra)), {**arrays, **extra})
        with pytest.raises(ConfigError, match=rf"config\.weights: .*{message}"):
            load_params(job, file)
    check_schedule(job, write_weights(tmp_path / "right", arrays | right)[0])
    rounded = {"alphas_cumprod": np.cumprod(1 - right["betas"]).astype(ml_dtypes.bfloat16)}
    check_schedule(job, write_weights(tmp_path / "rounded", arrays | rounded)[0])


def test_marks_are_not_weights(tmp_path, pipeline, job):
    arrays = export_params(named("unet").layouts({})[0], random_params("unet", arguments()))
    (file,) = write_weights(tmp_path, {**arrays, "v_pred": np.zeros(0, np.float32)})
    config = job.config.copy_and_resolve_references()
    config.parameterization.name = "v"
    found, _ = load_params(prepare(config), file)
    assert "conv_in" in found["network"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(variance_type="fixed_large"), {"solver": dict(name="ancestral", variance="beta")}),
        (dict(clip_sample=True, clip_sample_range=3), {"sampling.threshold": dict(name="static", bound=3)}),
        (dict(thresholding=True), {"sampling.threshold": dict(name="dynamic", percentile=0.995, largest=1.0)}),
        (dict(prediction_type="v_prediction"), {"parameterization": dict(name="v", label="index")}),
        (dict(_class_name="DDIMScheduler"), {"solver": dict(name="ddim")}),
        (dict(_class_name="EulerDiscreteScheduler", sigma_min=None), {"solver": dict(name="ddim")}),
    ],
)
def test_conversion_carries_over(other, changes, expected):
    config = config_of(other(**changes)).to_dict()
    for key, value in expected.items():
        found = config
        for name in key.split("."):
            found = found[name]
        assert found == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(_class_name="EDMEulerScheduler"), "EDMEulerScheduler"),
        (dict(_class_name="FlowMatchEulerDiscreteScheduler"), "FlowMatchEulerDiscreteScheduler"),
        (dict(_class_name="HeunDiscreteScheduler"), "HeunDiscreteScheduler"),
        (dict(_class_name="ScoreSdeVeScheduler"), "ScoreSdeVeScheduler.*'unet'"),
        (dict(variance_type="learned_range"), "variance_type='learned_range'"),
    ],
)
def test_conversion_refuses_by_name(other, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(other(**changes))


def test_nothing_is_assumed_of_a_pipeline_without_a_scheduler(tmp_path, pipeline, other):
    path = other()
    (path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=r"scheduler_config\.json.*--config"):
        config_of(path)
    write_component(tmp_path / "alone" / "unet", named("unet"), arguments(), random_params("unet", arguments()))
    with pytest.warns(UserWarning, match="DDPM"):
        config_of(tmp_path / "alone" / "unet")


def test_a_config_of_its_own_is_compared_in_conversion(tmp_path, job, other):
    path = other(prediction_type="v_prediction")
    with pytest.raises(ConfigError, match="v_prediction"):
        convert.to_workdir(path, tmp_path / "run", job.config)
    assert not (tmp_path / "run" / "config.json").exists()


def test_training_from_a_checkpoint_compares_too(job, other):
    config = job.config.copy_and_resolve_references()
    config.weights = str(other(prediction_type="v_prediction"))
    with pytest.raises(ConfigError, match="v_prediction"):
        fresh_state(prepare(config))


def test_a_denoiser_is_written_as_a_pipeline_that_says_its_process(tmp_path, pipeline, job):
    config, file = job.config, next((pipeline / "unet").glob("*.safetensors"))
    written_ = convert.to_folder(file, tmp_path / "ddpm", config)
    assert {path.relative_to(tmp_path / "ddpm").as_posix() for path in written_} == {
        *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
        "unet/diffusion_pytorch_model.safetensors",
    }
    again = config_of(tmp_path / "ddpm").to_dict()
    assert again == config_of(pipeline).to_dict()
    check_schedule(job, tmp_path / "ddpm")
    other = config.copy_and_resolve_references()
    other.parameterization = ConfigDict(dict(name="velocity", label="index"))
    with pytest.warns(UserWarning, match=r"neither model_index\.json nor .*config\.parameterization\.name='velocity'"):
        convert.to_folder(bare(tmp_path), tmp_path / "velocity", other)
    assert (tmp_path / "velocity" / "config.json").exists()


def bare(folder):
    """A file of the network that no pipeline surrounds."""
    return write_weights(
        folder / "bare", export_params(named("unet").layouts({})[0], random_params("unet", arguments()))
    )[0]
