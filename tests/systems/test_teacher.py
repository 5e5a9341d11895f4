"""The frozen teacher of a student: its denoiser on other processes, what is copied, and which runs are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import build, data, parts, saved
from diffusion_jax.config.recipes import teacher as recipe
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance import classifier_free
from diffusion_jax.processes import EDM, RectifiedFlow, log_snr, time_of_log_snr
from diffusion_jax.systems.teacher import Teacher, params_of
from tests.runs import digits


def random_params(init):
    """Parameters of which none is zero."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.float32(0.1 * rng.standard_normal(s.shape)), shapes)


def config_of_run(**changes):
    config = digits(**{"network__hidden": 16, "network__num_layers": 1, **changes})
    config.process = ConfigDict(dict(name="edm"))
    config.parameterization = ConfigDict(dict(name="edm", sigma_data=0.5))
    config.sampling.grid = ConfigDict(dict(name="karras"))
    return config


@pytest.fixture(scope="module")
def diffusion():
    """A class-conditional model with random parameters."""
    system = build.system(config_of_run(network__num_classes=10))
    return system, random_params(system.init)


def test_its_denoiser_is_that_of_the_run(diffusion):
    system, params = diffusion
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.float32([0.01, 0.2, 1.0])
    cond = {"label": jnp.int32([1, 7, 3])}
    own = system.denoiser(params, cond)
    teacher, kept = Teacher(diffusion=system), params_of(params)
    np.testing.assert_array_equal(teacher.denoiser(kept, cond=cond)(x, t), own(x, t))

    flow = RectifiedFlow()
    u = time_of_log_snr(flow, log_snr(EDM(), t))
    scaled = x * (1 - u)[:, None, None, None]
    np.testing.assert_allclose(teacher.denoiser(kept, flow, cond)(scaled, u), own(x, t), rtol=1e-3, atol=1e-4)


def test_guidance_has_one_scale_per_example(diffusion):
    system, params = diffusion
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.float32(0.1)
    cond, scale = {"label": jnp.int32([1, 7, 3])}, jnp.float32([0.0, 1.0, 4.0])
    model, teacher = system.model(params, cond), Teacher(diffusion=system)
    guided = teacher.denoiser(params_of(params), EDM(), cond, scale)(x, t)
    for row, w in enumerate(scale):
        alone = classifier_free(model.D, float(w), model.null)(x, t, model.cond)
        np.testing.assert_allclose(guided[row], alone[row], rtol=1e-4, atol=1e-4)


def test_no_gradient_flows_into_it(diffusion):
    system, params = diffusion
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    cond = {"label": jnp.int32([1, 7])}

    def loss(params, x):
        return jnp.sum(Teacher(diffusion=system).denoiser(params, EDM(), cond)(x, jnp.float32(0.1)) ** 2)

    gradients, of_x = jax.grad(loss, argnums=(0, 1))(params_of(params), x)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradients)) and jnp.abs(of_x).max() > 0


def parts_of(config):
    return parts.Parts(config, data.spec(config), lambda run: (build.system(run), "denoiser"))


def student(directory, **changes):
    config = config_of_run(**changes)
    config.system.teacher = str(directory)
    return parts_of(config)


def pretend(directory, config):
    """A work directory whose config.json is that of `config`."""
    (directory / "checkpoints").mkdir(parents=True)
    saved.write_config(directory, config)
    return directory


def test_a_run_of_another_process_is_a_teacher(tmp_path):
    run = config_of_run()
    run.process, run.sampling.grid = ConfigDict(dict(name="vp")), ConfigDict(dict(name="uniform"))
    made = recipe.teacher(student(pretend(tmp_path, run)))
    assert made.diffusion.process.num_steps is None and made.diffusion.process != EDM()
    assert set(recipe.stands_on(student(tmp_path), copied=True)) == {"frozen/teacher", "network"}
    assert set(recipe.stands_on(student(tmp_path), copied=False)) == {"frozen/teacher"}
    recipe.check_same_network(student(tmp_path, network__dropout=0.2))


def test_refuses_runs_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.system\.teacher='.*nothing'"):
        recipe.run_of(student(tmp_path / "nothing"))
    pretend(tmp_path / "here", config_of_run())
    with pytest.raises(ConfigError, match=r"condition 'label' is Spec.* here and None there"):
        recipe.run_of(student(tmp_path / "here", network__num_classes=10))
    with pytest.raises(ConfigError, match=r"config\.network\.hidden is 32 now and was 16"):
        recipe.check_same_network(student(tmp_path / "here", network__hidden=32))
    other = config_of_run()
    other.data = ConfigDict(dict(name="folder", image_size=8, channels=1, path="x"))
    with pytest.raises(ConfigError, match=r"another data set: config\.data\.name is 'digits' here and 'folder' there"):
        recipe.run_of(student(pretend(tmp_path / "other", other)))
