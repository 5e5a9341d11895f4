"""Noisy classifiers, and what the command steers with them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import build, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses import times
from diffusion_jax.networks.encoder_unet import EncoderUNet
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.parameterizations import eps_prediction
from diffusion_jax.processes import VP, bcast
from diffusion_jax.run import evaluate, sample, train
from diffusion_jax.systems import NoisyClassifier
from diffusion_jax.types import System
from tests.networks import random_params
from tests.runs import digits

SMALL = dict(
    image_size=8,
    num_classes=3,
    in_channels=1,
    model_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_head_channels=4,
    num_groups=4,
)
MEANS = jnp.array([[-1.0, 0.0], [1.0, 0.5]])


def exact() -> NoisyClassifier:
    """The posterior of two unit Gaussians under VP, whose logits are known: x . alpha m_k - alpha^2 |m_k|^2 / 2."""
    process = VP()

    def apply(params, x, c_noise, cond, *, key=None):
        alpha = bcast(process.alpha(c_noise / 999), x)
        return alpha * x @ MEANS.T - alpha**2 * jnp.sum(MEANS**2, axis=1) / 2

    return NoisyClassifier(
        init_network=lambda key: {},
        apply=apply,
        process=process,
        param=eps_prediction(),
        times=times.uniform(),
        num_classes=2,
        shape=(2,),
    )


def test_the_gradient_is_the_difference_of_scores():
    """grad log p(y | x_t) = score of p(x_t | y) - score of p(x_t), for unit Gaussians alpha (m_y - E[m | x_t])."""
    system, t = exact(), jnp.float32(0.3)
    assert isinstance(system, System)
    x, cond = jax.random.normal(jax.random.key(0), (5, 2)), {"label": jnp.array([0, 1, 1, 0, 1])}
    gradient = jax.grad(lambda x: jnp.sum(system.log_prob({"network": {}}, x, t, cond)))(x)
    expected_mean = jax.nn.softmax(system.logits({"network": {}}, x, t)) @ MEANS
    np.testing.assert_allclose(gradient, system.process.alpha(t) * (MEANS[cond["label"]] - expected_mean), atol=1e-5)


def test_the_loss_is_the_entropy_left_and_accuracy_falls_with_noise():
    system = exact()
    label = jax.random.randint(jax.random.key(0), (4000,), 0, 2)
    batch = {"x": MEANS[label] + jax.random.normal(jax.random.key(1), (4000, 2)), "label": label}
    figures = {
        name: float(jnp.mean(v)) for name, v in system.evaluate({"network": {}}, jax.random.key(2), batch).items()
    }
    # Two unit Gaussians at distance 2 r alpha: the best classifier is right with probability Phi(r alpha).
    distance = jnp.linalg.norm(MEANS[0] - MEANS[1]) / 2
    for level in (0.1, 0.5, 0.9):
        best = jax.scipy.stats.norm.cdf(distance * system.process.alpha(jnp.float32(level)))
        assert abs(figures[f"accuracy_t{level:g}"] - best) < 0.03
    others = dataclasses.replace(system, apply=lambda *a, **k: 1.3 * system.apply(*a, **k))
    assert figures["loss"] < jnp.mean(others.evaluate({"network": {}}, jax.random.key(2), batch)["loss"])
    assert system.sample({}, jax.random.key(0), 3) == {}


@pytest.mark.parametrize(
    "options", [{}, dict(pool="adaptive", use_scale_shift_norm=False, resblock_updown=False, attention_resolutions=())]
)
def test_the_network(options):
    init, apply = init_apply(lambda rngs: EncoderUNet(**SMALL | options, dropout=0.5, rngs=rngs))
    params, apply = random_params(init, scale=0.3), jax.jit(apply)
    x, c = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([1.0, 800.0])
    y = apply(params, x, c)
    assert y.shape == (2, 3)
    for other in (apply(params, x + 1, c), apply(params, x, c + 50), apply(params, x, c, key=jax.random.key(0))):
        assert (np.abs(other - y).max(-1) > 1e-4).all()
    np.testing.assert_allclose(apply(params, x[::-1], c[::-1]), y[::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(pool="max"), "pool .*'max'"),
        (dict(attention_resolutions=(5,)), "must be among the resolutions"),
        (dict(num_head_channels=5), "num_head_channels=5"),
        (dict(image_size=9), "image_size=9"),
        (dict(num_classes=0), "num_classes=0"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(init_apply(lambda rngs: EncoderUNet(**SMALL | options, rngs=rngs))[0], jax.random.key(0))


def classifier_config(**changes):
    section = {key: value for key, value in SMALL.items() if key not in ("image_size", "in_channels")}
    config = digits(system__name="noisy_classifier", **changes)
    config.network = dict(name="encoder_unet", **section | dict(num_classes=10))
    config.parameterization = dict(name="eps", label="time")
    return build.reset_unread(config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A classifier and an unconditional model of digits, hardly trained."""
    folders = [tmp_path_factory.mktemp(name) for name in ("classifier", "model")]
    for folder, config in zip(folders, (classifier_config(), digits()), strict=True):
        train.train(config, folder)
    return folders


def guided(name, path, **changes):
    config = digits(**changes)
    config.guidance = dict(name=name, path=str(path), scale=3.0)
    return config


@pytest.mark.slow
def test_the_command_steers_with_a_classifier(runs):
    """Every sample depends on its class, at scale 0 on none; classes are recorded."""
    classifier, model = runs
    drawn = {}
    for name, scale, cond in (("a", 30.0, "1"), ("b", 30.0, "2"), ("c", 0.0, "2"), ("d", None, "")):
        config = digits(sampling__file=name, sampling__cond=cond)
        if scale is not None:
            config.guidance = dict(name="classifier", path=str(classifier), scale=scale)
        sample.sample(config, model)
        drawn[name] = dict(np.load(model / "samples" / f"{name}.npz"))
    np.testing.assert_array_equal(drawn["a"]["cond"], np.full(6, 1))
    assert (drawn["a"]["samples"] != drawn["b"]["samples"]).any()
    np.testing.assert_array_equal(drawn["c"]["samples"], drawn["d"]["samples"])
    assert "cond" not in drawn["d"]


@pytest.mark.slow
def test_figures_say_how_they_were_guided(runs):
    evaluate.evaluate(guided("classifier", runs[0], evaluation__metrics=()), runs[1])
    figures = json.loads((runs[1] / "evaluation.json").read_text())
    assert figures["guidance"] == "classifier" and figures["scale"] == 3.0


@pytest.mark.slow
def test_a_model_is_guided_by_itself(runs):
    """Autoguidance by the same parameters changes nothing at any scale."""
    for _, config in (("e", guided("autoguidance", runs[1], sampling__file="e")), ("f", digits(sampling__file="f"))):
        sample.sample(config, runs[1])
    a, b = (np.load(runs[1] / "samples" / f"{name}.npz")["samples"].astype(int) for name in "ef")
    assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c, m: guided("classifier", c, process__beta_max=10.0), "config.process.beta_max is 10.0 now"),
        (lambda c, m: guided("classifier", m), "config.system.name='diffusion'"),
        (lambda c, m: guided("autoguidance", c), "config.system.name='noisy_classifier'"),
        (lambda c, m: guided("classifier", c, network__num_classes=5), "the classifier has 10 classes"),
        (lambda c, m: guided("autoguidance", m, network__num_classes=5), "the condition 'label'"),
        (lambda c, m: guided("classifier", "/nowhere"), "config.guidance.path='/nowhere' must be the work directory"),
        (lambda c, m: guided("classifier", ""), "config.guidance.path='' must be the work directory"),
        (lambda c, m: guided("classifier", c, sampling__cond="10"), "label 10 is out of range"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_compiled(runs, make, message):
    with pytest.raises(ConfigError) as refusal:
        sample.sample(make(*runs), runs[1])
    assert message in str(refusal.value)


def test_other_images_are_refused(runs):
    config = guided("classifier", runs[0])
    config.data.image_size = 16
    with pytest.raises(ConfigError, match=r"config\.guidance\.path.*\(16, 16, 1\).*\(8, 8, 1\)"):
        build.system(config)


def test_a_weaker_model_has_the_same_classes(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    saved.write_config(tmp_path, digits(network__num_classes=10))
    build.system(guided("autoguidance", tmp_path, network__num_classes=10))
    with pytest.raises(ConfigError, match=r"config\.guidance\.path.*'label'.*=5.*=10"):
        build.system(guided("autoguidance", tmp_path, network__num_classes=5))


def test_a_classifier_draws_no_samples(runs):
    with pytest.raises(ConfigError, match="draws no samples"):
        sample.sample(classifier_config(), runs[0])
