"""Schedulers of diffusers as sections of a config, and what single files say of their schedule."""

import json

import numpy as np
import pytest

from diffusion_jax.processes.discrete import beta_table
from diffusion_jax.weights import schedulers, statements


def written(folder, **options):
    path = folder / schedulers.FILE
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(options))
    return folder


def read(folder, name, **options):
    return schedulers.read(written(folder, _class_name=name, **options))


@pytest.mark.parametrize(
    ("options", "process"),
    [
        ({}, dict(betas="linear", num_steps=1000, beta_start=1e-4, beta_end=0.02)),
        (
            dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True),
            dict(betas="scaled_linear", num_steps=1000, beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True),
        ),
        (
            dict(beta_schedule="squaredcos_cap_v2", beta_start=None, num_train_timesteps=50),
            dict(betas="cosine", num_steps=50),
        ),
        (
            dict(
                trained_betas=beta_table("scaled_linear", 20).tolist(), num_train_timesteps=20, beta_schedule="linear"
            ),
            dict(betas="scaled_linear", num_steps=20, beta_start=pytest.approx(1e-4), beta_end=pytest.approx(0.02)),
        ),
    ],
)
def test_processes(tmp_path, options, process):
    scheduler = read(tmp_path, "DDPMScheduler", **options)
    assert scheduler.process() == dict(name="discrete_vp") | process
    assert scheduler.prediction() == "eps"


@pytest.mark.parametrize(
    "name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DPMSolverSDEScheduler", "LCMScheduler"]
)
def test_defaults_are_those_of_the_class(tmp_path, name):
    assert read(tmp_path, name).process()["beta_end"] == 0.012
    with pytest.raises(ValueError, match=name):
        read(tmp_path, name).solver()


@pytest.mark.parametrize(
    ("name", "options", "solver"),
    [
        ("DDPMScheduler", {}, dict(name="ancestral", variance="beta_tilde")),
        ("DDPMScheduler", dict(variance_type="fixed_large"), dict(name="ancestral", variance="beta")),
        ("DDPMScheduler", dict(variance_type="learned_range"), dict(name="ancestral", variance="learned")),
        ("DDIMScheduler", dict(variance_type="fixed_large"), dict(name="ddim")),  # which does not read it
        ("PNDMScheduler", dict(skip_prk_steps=True), dict(name="plms")),
        ("PNDMScheduler", {}, dict(name="pndm")),
        ("EulerDiscreteScheduler", dict(sigma_min=None, sigma_max=None), dict(name="ddim")),
        ("EulerAncestralDiscreteScheduler", {}, dict(name="ancestral")),
        ("LMSDiscreteScheduler", {}, dict(name="lms")),
        (
            "DPMSolverMultistepScheduler",
            dict(solver_order=3, use_karras_sigmas=None),
            dict(name="dpm_solver_pp", order=3, solver_type="midpoint", kind="multistep"),
        ),
        (
            "DPMSolverMultistepScheduler",
            dict(algorithm_type="sde-dpmsolver++"),
            dict(name="sde_dpm_solver_pp", order=2, solver_type="midpoint"),
        ),
        ("UniPCMultistepScheduler", {}, dict(name="unipc", order=2, variant="bh2", prediction="x0")),
        ("DEISMultistepScheduler", dict(solver_order=3), dict(name="deis", order=3)),
    ],
)
def test_solvers(tmp_path, name, options, solver):
    assert read(tmp_path, name, **options).solver() == solver


@pytest.mark.parametrize(
    ("options", "threshold"),
    [
        ({}, dict(name="static")),
        (dict(clip_sample_range=3.0), dict(name="static", bound=3.0)),
        (dict(clip_sample=False), dict(name="none")),
        (dict(clip_sample=None), dict(name="none")),
        (
            dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
            dict(name="dynamic", percentile=0.9, largest=1.5),
        ),
    ],
)
def test_thresholds(tmp_path, options, threshold):
    assert read(tmp_path, "DDPMScheduler", **options).threshold() == threshold


def test_grids(tmp_path):
    assert read(tmp_path, "DDIMScheduler").grid() == dict(name="discrete", spacing="leading")
    assert read(tmp_path, "EulerDiscreteScheduler").grid() == dict(name="discrete", spacing="linspace")
    stable = read(tmp_path, "PNDMScheduler", steps_offset=1)
    assert stable.grid() == dict(name="discrete", spacing="leading", offset=1, end=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("EDMEulerScheduler", {}, "EDMEulerScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler"),
        ("LCMScheduler", {}, "LCMScheduler"),
        (None, {}, "_class_name='None'"),
        ("DDPMScheduler", dict(beta_schedule="sigmoid"), "DDPMScheduler.*beta_schedule='sigmoid'"),
        ("DDPMScheduler", dict(prediction_type="flow_prediction"), "prediction_type='flow_prediction'"),
        ("DDPMScheduler", dict(prediction_type=None), "prediction_type='None'"),
        ("DDPMScheduler", dict(trained_betas=[0.1, 0.2]), "trained_betas=.*num_train_timesteps=1000"),
        ("DDPMScheduler", dict(trained_betas=[0.1, 0.9, 0.1], num_train_timesteps=3), "trained_betas="),
        ("DDPMScheduler", dict(variance_type="fixed_large_log"), "variance_type='fixed_large_log'"),
        ("DDPMScheduler", dict(beta_start="0.1"), "beta_start='0.1'"),
        ("DDPMScheduler", dict(beta_start=None), "beta_start='None'"),
        ("DDPMScheduler", dict(num_train_timesteps=1e3), r"num_train_timesteps='1000\.0'"),
        ("DPMSolverMultistepScheduler", dict(use_flow_sigmas=True), "use_flow_sigmas='True'"),
        ("DPMSolverMultistepScheduler", dict(use_karras_sigmas=True), "use_karras_sigmas='True'"),
        ("EulerDiscreteScheduler", dict(timestep_type="continuous"), "timestep_type='continuous'"),
        ("EulerDiscreteScheduler", dict(sigma_max=700.0), "sigma_max=.700"),
        ("ScoreSdeVeScheduler", dict(sigma_min=None), "sigma_min='None'"),
        ("ScoreSdeVeScheduler", dict(sigma_min=0), "sigma_min='0'"),
        ("PNDMScheduler", dict(skip_prk_steps="no"), "skip_prk_steps='no'"),
        ("DDPMScheduler", dict(num_train_timesteps=10**9), "num_train_timesteps='1000000000'"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_class_and_key(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        scheduler = read(tmp_path, name, **options)
        (scheduler.solver(), scheduler.variance_exploding or scheduler.process())


def test_older_files(tmp_path):
    """Before there were prediction types, and without the class that model_index.json names."""
    assert read(tmp_path, "DDPMScheduler", predict_epsilon=False).prediction() == "x0"
    assert read(tmp_path, "DDPMScheduler", predict_epsilon=True).prediction() == "eps"
    (tmp_path / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "DDIMScheduler"]}))
    assert schedulers.read(written(tmp_path)).name == "DDIMScheduler"


def test_a_pipeline_without_one_says_nothing(tmp_path):
    assert schedulers.read(tmp_path) is None and statements.of_pipeline(tmp_path) is None


def empty(*names):
    return {name: np.zeros(0, np.float32) for name in names}


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction", "zero"),
    [
        (empty("v_pred", "ztsnr"), {}, "v", True),
        (empty("model.diffusion_model.v_pred"), {}, "v", None),
        ({}, {"modelspec.prediction_type": "v"}, "v", None),
        ({}, {"modelspec.prediction_type": "epsilon"}, "eps", None),
        ({}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, "v", True),
    ],
)
def test_marks_of_single_files(tmp_path, tensors, metadata, prediction, zero):
    said = statements.of_file(tmp_path, tensors, metadata)
    assert (said.prediction[2], said.zero_snr) == (prediction, zero)
    assert statements.without_markers({**tensors, "conv.weight": 1}) == {"conv.weight": 1}


def test_tables_of_single_files(tmp_path):
    betas = beta_table("cosine", 30)
    for tensors in ({"betas": betas}, {"alphas_cumprod": np.cumprod(1 - betas)}):
        np.testing.assert_allclose(statements.of_file(tmp_path, tensors, {}).alpha_squared, np.cumprod(1 - betas))
    assert statements.of_file(tmp_path, {"conv.weight": betas}, {}) is None


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (empty("edm_mean", "edm_std"), {}, "edm_mean"),
        (empty("edm_vpred.sigma_max", "v_pred"), {}, r"edm_vpred\.sigma_max"),
        ({}, {"modelspec.prediction_type": "flow"}, r"modelspec\.prediction_type='flow'"),
    ],
)
def test_files_of_other_processes_are_refused(tmp_path, tensors, metadata, message):
    with pytest.raises(ValueError, match=message):
        statements.of_file(tmp_path, tensors, metadata)


def test_a_file_comes_before_the_pipeline_that_completes_it(tmp_path):
    pipeline = statements.of_pipeline(written(tmp_path, _class_name="DDIMScheduler"))
    marked = statements.of_file(tmp_path, empty("v_pred"), {})
    both = statements.merged([marked, None, pipeline])
    assert both.prediction[2] == "v" and both.process["betas"] == "linear"
    assert statements.merged([None, pipeline]) == pipeline and statements.merged([]) is None
