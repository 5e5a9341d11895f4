"""SpecGrad: filters that undo each other, noise with the spectrum of a recording, and the diffusion model between."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations, processes, solvers
from diffusion_jax.config import build, from_file
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data.spectrograms import MelSpectrogram, stft
from diffusion_jax.evaluation import audio
from diffusion_jax.losses import denoising_loss, times, weightings
from diffusion_jax.networks.conditions import Condition, Conditions
from diffusion_jax.processes.base import bcast
from diffusion_jax.solvers import grids
from diffusion_jax.systems import Diffusion, SpecGrad
from diffusion_jax.systems.specgrad import envelope
from diffusion_jax.types import Spec, System, Train

FRONT_END = MelSpectrogram()
LENGTH = 2048
PROCESS = processes.Cosine()
PARAM = parameterizations.x0_prediction(label=parameterizations.unit_time_label)
CONDITIONS = Conditions({"mel": Condition(Spec((LENGTH // FRONT_END.hop, FRONT_END.num_mels)))})
PARAMS = {"network": {}}


def unknowing(params, x, t, cond, key=None):
    """E[u given u_t] of white noise u of variance 1, whatever the condition says."""
    a, b = (bcast(f(jnp.broadcast_to(t, len(x))), x) for f in (PROCESS.alpha, PROCESS.sigma))
    return a * x / (a**2 + b**2)


def model(**changes) -> SpecGrad:
    diffusion = Diffusion(
        init_network=lambda key: {},
        apply=unknowing,
        process=PROCESS,
        param=PARAM,
        loss_fn=denoising_loss(unknowing, PARAM, PROCESS, weightings.simple(), times.uniform(0.05, 0.95)),
        solver=solvers.ddim(),
        grid=grids.uniform(t_min=1e-3, t_max=0.999),
        steps=10,
        shape=(LENGTH, 1),
        modality="waveform",
        network_conditions=CONDITIONS,
        batch_size=32,
    )
    return SpecGrad(**{**dict(diffusion=diffusion, front_end=FRONT_END), **changes})


def spoken(num: int = 8) -> np.ndarray:
    """Noise whose spectrum has a resonance near 700 Hz, with a loudness that changes slowly: [num, length, 1]."""
    rng = np.random.default_rng(0)
    x, pole = np.zeros((num, LENGTH + 200)), 0.9 * np.exp(2j * np.pi * 700 / FRONT_END.sample_rate)
    noise = rng.standard_normal(x.shape)
    for i in range(2, x.shape[1]):
        x[:, i] = 2 * pole.real * x[:, i - 1] - abs(pole) ** 2 * x[:, i - 2] + noise[:, i]
    loudness = 0.02 * (1.2 + np.sin(2 * np.pi * np.arange(LENGTH) / LENGTH + rng.uniform(0, 6, (num, 1))))
    return (x[:, 200:] * loudness).astype(np.float32)[..., None]


X = spoken()
MEL = np.asarray(FRONT_END(jnp.asarray(X[..., 0])))


def powers(x) -> np.ndarray:
    """Mean powers of 16 bands of frequencies, in decibels."""
    spectrum = np.abs(np.asarray(stft(jnp.asarray(x)[..., 0], 256, 64))) ** 2
    return 10 * np.log10(spectrum.mean((0, 1))[1:].reshape(16, 8).mean(1))


def test_is_a_system():
    assert isinstance(model(), System)
    assert model().batch.keys() == {"x", "mel"}


@pytest.mark.parametrize("variance", [1e-3, 0.1])
def test_the_envelope_of_white_noise_is_its_standard_deviation(variance):
    noise = np.sqrt(variance) * np.random.default_rng(0).standard_normal((8, 6144))
    found = np.asarray(envelope(FRONT_END, FRONT_END(jnp.float32(noise)), order=1, floor=1e-3))
    assert found.shape == (8, 6144 // FRONT_END.hop + 1, 129)
    # The mean of the logarithm of a chi-square power, which the envelope is, is below that of the power.
    np.testing.assert_allclose(np.exp(np.log(found).mean()), np.sqrt(variance), rtol=0.25)


def test_the_filters_undo_each_other_where_the_envelope_is_smooth():
    """With one coefficient per frame the gain of a stationary sound is nearly the same everywhere, and nearly exact."""
    errors = {}
    for order in (1, 24, 129):
        system = model(order=order)
        back = system.coloured(system.whitened(X, MEL), MEL)
        errors[order] = audio.snr(X[..., 0], np.asarray(back)[..., 0]).min()
    assert errors[1] > 25 and errors[24] > 15
    assert errors[129] < errors[24] - 3, "without smoothing the filters must not undo each other as well"


def test_white_noise_becomes_noise_with_the_spectrum_of_the_recording():
    u = np.random.default_rng(1).standard_normal(X.shape).astype(np.float32)
    made = model().coloured(u, MEL)
    # The first and the last band are not within the mel filters. The logarithm of the power of noise is 2.5 dB below
    # the power on average, and the envelope with it where the filters average little.
    assert np.abs(powers(made) - powers(X))[1:-1].max() < 2.5
    assert np.ptp(powers(X)) > 20
    assert np.abs(powers(u) - powers(X)).max() > 20
    white = np.asarray(model().whitened(X, MEL))
    assert 0.8 < white.std() < 1.3 and np.ptp(powers(white)) < 5


def test_samples_of_a_model_of_white_noise_are_noise_with_the_envelope():
    """What the network leaves undecided has the loudness of the mels in every frequency."""
    cond = {"mel": MEL}
    drawn = model().sample(PARAMS, jax.random.key(0), len(X), cond)["samples"]
    plain = model().diffusion.sample(PARAMS, jax.random.key(0), len(X), cond)["samples"]
    np.testing.assert_allclose(drawn, model().coloured(plain, MEL), atol=1e-5)
    distance, other = (audio.lsd(X[..., 0], np.asarray(x)[..., 0]).mean() for x in (drawn, plain))
    assert distance < 0.5 * other


def test_a_sample_depends_on_its_own_mel_alone():
    system = model()
    drawn = system.sample(PARAMS, jax.random.key(0), len(X), {"mel": MEL})["samples"]
    other = system.sample(PARAMS, jax.random.key(0), len(X), {"mel": np.roll(MEL, 1, axis=0)})["samples"]
    few = dataclasses.replace(system, diffusion=dataclasses.replace(system.diffusion, batch_size=3))
    np.testing.assert_allclose(few.sample(PARAMS, jax.random.key(0), len(X), {"mel": MEL})["samples"], drawn, atol=1e-5)
    assert np.abs(np.asarray(drawn) - np.asarray(other)).max() > 1e-3


def test_the_loss_is_that_of_whitened_waveforms():
    system, key = model(), jax.random.key(0)
    loss, _ = system.loss(PARAMS, key, {"x": X, "mel": MEL}, Train(step=0, num_steps=10))
    white = {"x": system.whitened(X, MEL), "mel": MEL}
    np.testing.assert_allclose(
        loss, system.diffusion.loss(PARAMS, key, white, Train(step=0, num_steps=10))[0], rtol=1e-5
    )
    raw, _ = system.diffusion.loss(PARAMS, key, {"x": X, "mel": MEL}, Train(step=0, num_steps=10))
    assert np.abs(loss - raw).max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(order=0), "order"),
        (dict(order=130), r"1\.\.129"),
        (dict(floor=0.0), "floor"),
        (dict(diffusion=dataclasses.replace(model().diffusion, network_conditions=Conditions())), "no condition 'mel'"),
        (dict(diffusion=dataclasses.replace(model().diffusion, modality="series")), "waveforms of one channel"),
    ],
)
def test_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network.num_mels": 0}, r"config\.network\.num_mels"),
        ({"system.order": 500}, "order"),
        ({"data.features": "mel"}, "needs waveforms"),
        ({"sampling.threshold": {"name": "static"}}, r"config\.sampling\.threshold"),
    ],
)
def test_configs_are_refused_by_name(changes, message):
    config = from_file("configs/diffwave.py:fsdd_specgrad")
    for name, value in changes.items():
        section, key = name.split(".")
        config[section][key] = value
    with pytest.raises(ConfigError, match=message):
        build.check_read(config)
        build.build(config)
