"""Combinations that cannot work are refused by key when the system is built, before anything is compiled."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from tests.config.test_configs import as_if_trained, read


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("edm:digits", {"sampling.denoise": False}, r"config\.sampling\.grid\.denoising=True .*sampling\.denoise=True"),
        ("edm:digits", {"sampling.steps": 1}, r"config\.sampling\.steps=1\b"),
        (
            "edm:digits",
            {"sampling.steps": 10, "editing.name": "sdedit", "editing.strength": 0.1},
            r"config\.editing\.strength=0\.1\b.*none of the 9 steps",
        ),
        ("classifier_free:digits", {"guidance.channels": 2}, r"config\.guidance\.channels=2 .*1\b"),
        ("classifier_free:digits", {"guidance.channels": -1}, r"config\.guidance .*channels is -1"),
        ("ddpm:digits", {"loss.norm": "l3"}, r"config\.loss .*norm is 'l3'.* l1"),
        ("ddpm:digits", {"loss.reduce": "sum"}, r"config\.loss .*reduce is 'sum'.* half_sum"),
    ],
)
def test_refused_by_key(name, changes, words):
    config = read(name)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=words):
        build.build(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(normalize="std"), r"config\.system.*normalize is 'std'.* scale"),
        (dict(normalize="scale", latent_scale=0.5), r"config\.system\.normalize='scale' .*latent_scale=0\.5"),
        (dict(latent_scale=-1.0), r"config\.system\.latent_scale=-1\.0"),
    ],
)
def test_latents_are_normalised_in_one_way(changes, words):
    config = read("latent_diffusion:digits")
    config.system.first_stage = as_if_trained("autoencoder_kl:digits")
    config.system.update(changes)
    with pytest.raises(ConfigError, match=words):
        build.build(config)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        # The channels have the means 1 and -1 and the mean squares 5 and 5: variances 4, and 5 for both together.
        (dict(), 1 / 2),
        (dict(normalize="scale"), 5**-0.5),
        (dict(normalize="none"), 1.0),
        (dict(latent_scale=0.3), 0.3),
    ],
)
def test_normalisation_of_latents_is_that_of_the_config_also_in_exports(changes, factor):
    config = read("latent_diffusion:digits")
    config.system.first_stage = as_if_trained("autoencoder_kl:digits")
    config.system.update(changes)
    stage = build.build(config).system.first_stage
    params = {"frozen": {"latents": {"mean": jnp.array([1.0, -1.0]), "square": jnp.array([5.0, 5.0])}}}
    shift, scale = stage.shift_and_scale(params)
    np.testing.assert_allclose(1 / scale, factor, rtol=1e-6)
    np.testing.assert_allclose(shift, 0.0 if changes else [1.0, -1.0])
    (placed,) = stage.networks.values()
    assert placed.extra(params)["scaling_factor"] == pytest.approx(factor, rel=1e-6)
