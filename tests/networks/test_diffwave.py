"""The networks of DiffWave and WaveGrad: sizes of the authors' code, receptive field, shifts, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.conv1d import Conv1d
from diffusion_jax.networks.diffwave import DiffWave, TransposedConv, step_encoding
from diffusion_jax.networks.functional import count_parameters, functional, init_apply
from diffusion_jax.networks.streams import streams
from diffusion_jax.networks.wavegrad import WaveGrad
from tests.networks import random_params

TINY = dict(shape=(64, 1), residual_channels=4, residual_layers=4, dilation_cycle=2, num_mels=3, upsample=(2, 4))
TINY_GRAD = dict(shape=(64, 1), num_mels=3, factors=(2, 2, 2), channels=(8, 6, 4), first=8)


@pytest.mark.parametrize(
    ("network", "kwargs", "count"),
    [
        (DiffWave, dict(shape=(62 * 256, 1), num_mels=80), 2_619_971),
        (DiffWave, dict(shape=(62 * 256, 1), num_mels=80, residual_channels=128), 6_885_315),
        (DiffWave, dict(residual_layers=36, residual_channels=256, dilation_cycle=12), 24_034_305),
        (DiffWave, dict(residual_layers=48, residual_channels=128, dilation_cycle=12), 9_813_505),
        (WaveGrad, {}, 15_920_993),
    ],
)
def test_sizes_of_the_authors_code(network, kwargs, count):
    init, _ = init_apply(lambda rngs: network(**kwargs, rngs=rngs))
    assert count_parameters(jax.eval_shape(init, jax.random.key(0))) == count


@pytest.mark.few(1)
@pytest.mark.parametrize(("network", "kwargs"), [(DiffWave, TINY), (WaveGrad, TINY_GRAD)])
def test_the_output_starts_at_zero_and_moves_with_waveform_and_spectrogram(network, kwargs):
    init, apply = init_apply(lambda rngs: network(**kwargs | dict(shape=(256, 1)), rngs=rngs))
    apply = jax.jit(apply)
    params = jax.jit(init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    hop = 8
    x = jnp.asarray(rng.standard_normal((2, 256, 1)), jnp.float32)
    mel = jnp.asarray(rng.standard_normal((2, 256 // hop, 3)), jnp.float32)
    assert np.abs(apply(params, x, jnp.ones(2), {"mel": mel})).max() == 0
    params = random_params(init, scale=0.2)
    out = np.asarray(apply(params, x, jnp.ones(2), {"mel": mel}))
    # A delay by one frame delays what zeros at the ends do not reach.
    later = np.asarray(apply(params, jnp.roll(x, hop, 1), jnp.ones(2), {"mel": jnp.roll(mel, 1, 1)}))
    np.testing.assert_allclose(later[:, 124 + hop : 132 + hop], out[:, 124:132], atol=2e-4 * np.abs(out).max())
    other = np.asarray(apply(params, x, jnp.ones(2), {"mel": mel + 1}))
    assert np.abs(other - out).max() > 1e-3 * np.abs(out).max()
    level = np.asarray(apply(params, x, jnp.full(2, 0.5), {"mel": mel}))
    assert np.abs(level - out).max() > 1e-3 * np.abs(out).max()


def test_receptive_field():
    """1 + 2 sum of the dilations: 6139 samples in the paper's section 5, and here 1 + 2 (1 + 2 + 1 + 2)."""
    init, apply = init_apply(lambda rngs: DiffWave(**TINY | dict(num_mels=0), rngs=rngs))
    params = random_params(init)
    x = jax.random.normal(jax.random.key(1), (1, 64, 1))
    gradient = jax.grad(lambda x: apply(params, x, jnp.ones(1))[0, 32, 0])(x)[0, :, 0]
    assert np.flatnonzero(gradient).tolist() == list(range(32 - 6, 32 + 7))
    assert 1 + 2 * 3 * (2**10 - 1) == 6139


def test_the_encoding_of_a_fractional_step_is_between_its_neighbours():
    angles = lambda step: step * 10 ** (np.arange(64) * 4 / 63)
    whole = lambda step: np.concatenate([np.sin(angles(step)), np.cos(angles(step))])
    found = step_encoding(jnp.array([3.0, 3.25]))
    np.testing.assert_allclose(found[0], whole(3), atol=0.03)  # of angles up to 30,000, in float32
    np.testing.assert_allclose(found[1], 0.75 * whole(3) + 0.25 * whole(4), atol=0.03)


def test_convolutions_are_those_of_xla():
    x = jax.random.normal(jax.random.key(0), (2, 20, 3))
    module = Conv1d(3, 5, 3, dilation=4, rngs=streams(default=0))
    expected = jax.lax.conv_general_dilated(
        x, module.kernel[...], (1,), [(4, 4)], rhs_dilation=(4,), dimension_numbers=("NWC", "WIO", "NWC")
    )
    np.testing.assert_allclose(module(x), expected, atol=1e-5)


def test_the_transposed_convolution_is_the_gradient_of_a_strided_one():
    """out[m, f n + j - f / 2] = sum of kernel[k, j] mel[m + 1 - k, n], written as loops."""
    factor, mel = 4, np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 6)))
    module = TransposedConv(factor, rngs=streams(default=0))
    kernel, expected = np.asarray(module.kernel[...]), np.zeros((5 * factor, 6))
    for n in range(5):
        for m in range(6):
            for k in range(3):
                for j in range(2 * factor):
                    place, row = factor * n + j - factor // 2, m + k - 1
                    if 0 <= place < 5 * factor and 0 <= row < 6:
                        expected[place, row] += kernel[k, j] * mel[0, n, m]
    np.testing.assert_allclose(module(jnp.asarray(mel))[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "changes", "words"),
    [
        (DiffWave, dict(shape=(8, 8, 1)), r"no waveforms, \[length, 1\]"),
        (WaveGrad, dict(shape=(64, 3)), r"shape is \(64, 3\); it must be \(length, 1\)"),
        (DiffWave, dict(shape=(60, 1)), "product 8 must divide the 60 samples"),
        (DiffWave, dict(upsample=(3,), shape=(60, 1)), "upsample is .3,.; it must be even factors"),
        (DiffWave, dict(num_classes=3), "num_classes is 3; it must be 0 with num_mels=3"),
        (WaveGrad, dict(channels=(8,)), "channels is .8,.; it must be at least 2, one for each"),
        (WaveGrad, dict(num_mels=0), "num_mels is 0; it must be at least 1"),
    ],
)
def test_refusals(network, changes, words):
    kwargs = (TINY if network is DiffWave else TINY_GRAD) | changes
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: functional(network(**kwargs, rngs=streams(default=0)))[1])


def test_classes_change_the_output():
    init, apply = init_apply(lambda rngs: DiffWave(**TINY | dict(num_mels=0, num_classes=3), rngs=rngs))
    params = random_params(init, scale=0.3)
    x = jnp.ones((2, 64, 1))
    out = np.asarray(apply(params, x, jnp.ones(2), {"label": jnp.array([0, 2])}))
    assert np.abs(out[0] - out[1]).max() > 1e-4
