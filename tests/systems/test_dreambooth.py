"""DreamBooth: weighted rows, images of the class, low-rank updates of the network and of its text encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations, processes, solvers
from diffusion_jax.config import saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses import denoising_loss, weightings
from diffusion_jax.processes import VP
from diffusion_jax.run import convert
from diffusion_jax.run.job import prepare, train_step
from diffusion_jax.run.parameters import fresh_state, load_params
from diffusion_jax.solvers import grids, sampling
from diffusion_jax.systems import low_rank
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.weights.lora import components
from tests import runs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The work directory of a text-to-image run that was not trained, with images of a class."""
    folder = runs.untrained(runs.text_to_image("stable_diffusion.py:digits"), tmp_path_factory.mktemp("words"))
    samples = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    np.savez(folder / "class.npz", samples=samples, cond=np.array(["three"] * 6))
    return folder


def dreambooth(base, **changes):
    given = dict(weights=str(base), data__prior__path=str(base / "class.npz"), training__batch_size=4, lora__rank=2)
    return runs.text_to_image("dreambooth.py:digits_lora", **given | changes)


@pytest.fixture(scope="module")
def trained(base):
    """The job, its state at step 0 and after two steps."""
    job = prepare(dreambooth(base, optimizer__learning_rate=0.1))
    start = fresh_state(job)
    step, state = jax.jit(train_step(job)), start
    for i in range(2):
        batch = job.source.batch(np.array([0, 1, len(job.source) - 1, len(job.source) - 2]), np.random.default_rng(i))
        state, _ = step(state, {name: jnp.asarray(batch[name]) for name in job.batch})
    return job, start, state


@pytest.mark.slow
def test_the_network_and_the_text_encoder_are_updated_and_nothing_else(trained):
    job, start, state = trained
    jax.tree.map(np.testing.assert_array_equal, state.params["frozen"], start.params["frozen"])
    assert set(state.params) == {"lora", "text_lora", "frozen"} and set(state.params["text_lora"]) == {"text_encoder"}
    layers = state.params["text_lora"]["text_encoder"]["layers"]["0"]["self_attn"]
    assert set(layers) == {"q_proj", "k_proj", "v_proj", "out_proj"}
    for group in ("lora", "text_lora"):
        ups = [x for path, x in jax.tree.leaves_with_path(state.params[group]) if path[-1].key == "up"]
        assert ups and all(np.abs(x).max() > 1e-4 for x in ups), group
    at_zero = job.learner.merged(start.params)
    jax.tree.map(np.testing.assert_array_equal, at_zero["frozen"]["text"]["0"], start.params["frozen"]["text"]["0"])
    merged = job.learner.merged(state.params)["frozen"]["text"]["0"]
    expected = low_rank.merge(state.params["frozen"]["text"]["0"], state.params["text_lora"]["text_encoder"], 1.0)
    jax.tree.map(np.testing.assert_array_equal, merged, expected)


@pytest.mark.slow
def test_the_weight_of_a_row_multiplies_its_loss(trained):
    job, start, _ = trained
    batch = {name: jnp.asarray(value) for name, value in job.source.batch(np.arange(4)).items() if name in job.batch}
    loss = jax.jit(lambda batch: job.learner.loss(start.params, jax.random.key(0), batch, None)[0])
    one, weighted = (np.asarray(loss({**batch, "weight": jnp.asarray(w)})) for w in (np.ones(4), np.arange(4.0)))
    np.testing.assert_allclose(weighted, np.arange(4) * one, rtol=1e-5)


@pytest.mark.slow
def test_updates_are_written_and_read_with_those_of_the_text_encoder(base, trained, tmp_path):
    job, _, state = trained
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(2, state, convert.Beginning(), wait=True)
    saved.write_config(tmp_path / "run", job.config)
    (file,) = convert.to_lora(tmp_path / "run", tmp_path / "style")
    assert components(file) == {"unet", "text_encoder"}
    expected = job.learner.merged(state.params)

    def same(params):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, expected)

    added = runs.text_to_image("stable_diffusion.py:digits", lora__weights=str(file))
    same(load_params(prepare(added), base)[0])
    again = prepare(dreambooth(base, lora__weights=str(file)))
    same(again.learner.merged(fresh_state(again).params))
    with pytest.raises(ConfigError, match=r"also updates text_encoder.*set config\.lora\.text_modules"):
        fresh_state(prepare(dreambooth(base, lora__weights=str(file), lora__text_modules="")))


def test_refusals_of_text_modules(base):
    with pytest.raises(ConfigError, match=r"text_modules, text_encoder: modules='nowhere' is found in no layer"):
        prepare(dreambooth(base, lora__text_modules="nowhere"))
    with pytest.raises(ConfigError, match=r"text_modules='fc1' must be empty for a system without text encoders"):
        prepare(runs.toy(lora__rank=2, lora__modules=".", lora__text_modules="fc1"))


def test_exact_samples_of_the_model_give_no_gradient_on_average_at_step_0():
    """The term of the class, for a Gaussian model and a solver that draws its law. Images of a subject give one."""
    process = VP()
    param = parameterizations.x0_prediction(parameterizations.unit_time_label)

    def apply(params, x, c_noise, cond=None, *, key=None):
        """The denoiser of data ~ N(mean, exp(log_var))."""
        alpha, var = process.alpha(c_noise)[:, None], jnp.exp(params["log_var"])
        gain = alpha * var / (alpha**2 * var + process.sigma(c_noise)[:, None] ** 2)
        return params["mean"] + gain * (x - alpha * params["mean"])

    params = {"mean": jnp.float32(0.4), "log_var": jnp.float32(-1.5)}
    D = parameterizations.denoiser(functools.partial(apply, params), param, process)
    num, times = 2000, grids.uniform(t_min=1e-3)(process, 30)
    draw = jax.jit(lambda key, x: sampling.sample(solvers.heun(), process, D, key, x, times))
    own = draw(jax.random.key(1), processes.prior(process, jax.random.key(0), (num, 1)))
    loss = denoising_loss(apply, param, process, weightings.uniform())
    row = lambda key, x: jax.grad(lambda params: loss(params, key, x[None])[0][0])(params)
    rows = jax.jit(jax.vmap(row))

    def gradients(x):
        """The mean gradient, in its standard errors."""
        each = rows(jax.random.split(jax.random.key(2), num), x)
        return {name: float(np.mean(g) / np.std(g) * num**0.5) for name, g in each.items()}

    assert all(abs(value) < 3 for value in gradients(own).values())
    assert gradients(own + 0.2)["mean"] < -10 and gradients(0.4 + 2 * (own - 0.4))["log_var"] < -10
