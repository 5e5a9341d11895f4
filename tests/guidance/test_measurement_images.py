"""Restored images with the exact prior of the digits, against estimates without a model, by stated margins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import inverse_problems, priors
from diffusion_jax import data
from diffusion_jax.evaluation import restoration
from tests.oracles import Mixture

EACH = 6


@pytest.fixture(scope="module")
def prior():
    images = data.arrays(data.load(name="digits", evaluation=False))["x"]
    return priors.Prior(priors.exact_prior(images), {"network": {}}, {"x": images}, {}), images


def test_the_exact_prior_is_the_denoiser_of_the_mixture(prior):
    """A width that is off by a tenth is seen."""
    images = prior[1][:40]
    mixture = Mixture(weights=jnp.full(40, 1 / 40), means=images.reshape(40, -1), variances=jnp.full(40, 0.12**2))
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 1)) + images[:6]
    for t in (0.01, 0.1, 0.3):
        system, other = priors.exact_prior(images), priors.exact_prior(images, 1.1 * priors.WIDTH)
        found, off = (s.unguided.denoiser({"network": {}})(x, jnp.full(6, t)) for s in (system, other))
        wanted = mixture.denoiser(system.process)(x.reshape(6, -1), jnp.float32(t)).reshape(x.shape)
        np.testing.assert_allclose(found, wanted, atol=2e-3)
        assert np.abs(off - wanted).max() > 5e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "one", "mean"),
    [
        ("sr", dict(interpolation=3.0), dict(lmmse=1.0)),
        ("tomography", dict(back_projection=4.0, pinv=3.0), dict(back_projection=6.0)),
        ("k_space", dict(pinv=2.0), dict(pinv=4.0, lmmse=1.0)),
    ],
)
def test_restored_digits_are_better_than_simple_estimates(prior, task, one, mean):
    """MMPS with churned DDIM: 24 held-out digits, 6 samples of each, 100 steps; dB above each estimate."""
    given, train = prior
    truth = data.shuffled(data.load(name="digits", evaluation=True), 24)["x"]
    made = inverse_problems.made(inverse_problems.TASKS[task], truth, train)
    setting = inverse_problems.settings(float(train.var(0).mean()))["mmps_renoised"]
    drawn = inverse_problems.samples(setting, given, made.entry, made.operator, EACH)
    values = restoration.restoration(np.clip(drawn, -1, 1), truth, made.entry, made.operator, train)
    for name, margin in one.items():
        assert values["restoration_psnr"] > values[f"restoration_psnr_{name}"] + margin
    for name, margin in mean.items():
        assert values["restoration_mean_psnr"] > values[f"restoration_psnr_{name}"] + margin
    # Samples of other digits' measurements, the negative control, are worse than any of them.
    other = np.roll(drawn.reshape(EACH, 24, 8, 8, 1), 1, 1).reshape(drawn.shape)
    wrong = restoration.restoration(other, truth, made.entry, made.operator, train)
    assert wrong["restoration_psnr"] < values["restoration_psnr_pinv"] - 3


def test_the_table_of_phase_retrieval_does_not_see_a_rotation(prior, capsys, monkeypatch):
    """A method that returns the truth, rotated by 180 degrees in half of the samples, always succeeds."""
    given, _ = prior
    truth = data.shuffled(data.load(name="digits", evaluation=True), 3)["x"]
    turned = np.concatenate([truth, truth[:, ::-1, ::-1], truth, -np.ones_like(truth)])
    monkeypatch.setattr(inverse_problems, "samples", lambda *inputs: turned)
    inverse_problems.phase_retrieval(given, truth, {"exact": None})
    assert "100.0 dB, success 100%" in capsys.readouterr().out
