"""Diffusion autoencoders where every denoiser is known, PDAE's shift of a frozen run, codes, and refusals."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import parameterizations, solvers
from diffusion_jax.config import build, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.evaluation import probe
from diffusion_jax.losses import denoising_loss, weightings
from diffusion_jax.losses.denoising import error_of_denoiser
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes import VP
from diffusion_jax.processes.base import bcast
from diffusion_jax.run import encode, train
from diffusion_jax.run.codes import Coder, way
from diffusion_jax.run.job import prepare
from diffusion_jax.solvers import grids
from diffusion_jax.systems import Diffusion, DiffusionAutoencoder, moments
from diffusion_jax.systems.shifted_diffusion import shifted
from diffusion_jax.types import System, Train
from tests.oracles import Gaussian
from tests.runs import digits, final_state, resumed

SHAPE, DIM = (2, 2, 1), 4
PRIOR = Gaussian(
    mean=jnp.float32([0.2, -0.4, 0.1, 0.3]),
    covariance=jnp.float32(np.diag([0.5, 0.2, 0.1, 0.3]) + 0.1 * np.ones((4, 4))),
)
A = jnp.float32([[1.0, 0.5, 0.0, -0.5], [0.0, 1.0, 1.0, 0.0]])  # z = A x


def conditional(z, matrix=A):
    """The law of x given z = matrix x: its mean for each z, and the covariance of all."""
    gain = PRIOR.covariance @ matrix.T @ jnp.linalg.inv(matrix @ PRIOR.covariance @ matrix.T)
    return PRIOR.mean + (z - PRIOR.mean @ matrix.T) @ gain.T, PRIOR.covariance - gain @ matrix @ PRIOR.covariance


def exact(params, x, t, cond=None, *, key=None, matrix=A, process=VP()):
    """The denoiser E[x_0 | x_t, z], as a network of x0-prediction whose label is t."""
    mean, covariance = conditional(cond["vector"], matrix)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None, None]
    flat = x.reshape(len(x), -1)
    marginal = alpha[..., None] ** 2 * covariance + sigma**2 * jnp.eye(DIM)
    score = -jnp.linalg.solve(marginal, (flat - alpha * mean)[..., None])[..., 0]
    out = mean - alpha * score @ covariance
    return out.reshape(x.shape)


def autoencoder(matrix=A, solver=solvers.adaptive_ode(rtol=1e-6, atol=1e-6), steps=1, at=0.4, **fields):
    """A diffusion autoencoder with the encoder z = matrix x and the exact decoder; its loss is at one time."""
    param = parameterizations.x0_prediction(parameterizations.unit_time_label)
    apply = functools.partial(exact, matrix=matrix)
    loss = denoising_loss(apply, param, VP(), weightings.uniform(), lambda p, k, n: (jnp.full(n, at), jnp.ones(n)))
    model = Diffusion(
        init_network=lambda key: {},
        apply=apply,
        process=VP(),
        param=param,
        loss_fn=loss,
        solver=solver,
        grid=grids.uniform(t_min=1e-2),
        steps=steps,
        shape=SHAPE,
        modality="image",
        network_conditions=Conditions(vector_dim=len(matrix)),
    )
    return DiffusionAutoencoder(
        diffusion=model,
        init_encoder=lambda key: {"matrix": matrix},
        encoder=lambda params, x, key=None: x.reshape(len(x), -1) @ params["matrix"].T,
        code_dim=len(matrix),
        **fields,
    )


def images(n, seed=1):
    return PRIOR.sample(jax.random.key(seed), n).reshape(n, *SHAPE)


def test_the_loss_of_the_exact_decoder_is_the_variance_that_is_left():
    system, x = autoencoder(), images(8000)
    params = system.init(jax.random.key(0))
    loss, metrics = system.loss(params, jax.random.key(1), {"x": x}, Train(jnp.int32(0), 10))
    t = jnp.float32(0.4)
    left = Gaussian(mean=PRIOR.mean, covariance=conditional(jnp.zeros(2))[1]).posterior_variance(VP(), t) / DIM
    assert float(loss.mean()) == pytest.approx(float(left), rel=0.03)
    assert float(PRIOR.posterior_variance(VP(), t)) / DIM > 1.5 * float(left)  # what a decoder without a code has left
    # A decoder that reads another code has more left, so that the encoder is learnt from it.
    other = {**params, "encoder": {"matrix": A + 0.3}}
    assert float(system.loss(other, jax.random.key(1), {"x": x}, None)[0].mean()) > 1.2 * float(left)
    z = system.encode(params, x)
    np.testing.assert_allclose(metrics["statistics"]["mean"], z.mean(0), rtol=1e-5)


def test_a_code_that_determines_the_image_needs_no_noise():
    x = images(5)
    for steps in (1, 3):
        system = autoencoder(jnp.eye(DIM), solvers.ddim(), steps, stochastic_code="random")
        drawn = system.draw(system.init(jax.random.key(0)), jax.random.key(2), jnp.arange(5), {"x": x})
        # The noise of the last time, sigma(0.01), is still in the images.
        sigma = float(VP().sigma(jnp.float32(0.01)) / VP().alpha(jnp.float32(0.01)))
        assert float(jnp.abs(drawn["samples"] - x).max()) < 4 * sigma
        denoised = autoencoder(jnp.eye(DIM), solvers.ddim(), steps, stochastic_code="random")
        object.__setattr__(denoised, "diffusion", denoised.diffusion.unguided)
        object.__setattr__(denoised.diffusion, "denoise", True)
        exact_ones = denoised.draw(denoised.init(jax.random.key(0)), jax.random.key(2), jnp.arange(5), {"x": x})
        np.testing.assert_allclose(exact_ones["samples"], x, atol=1e-4)


def test_encoding_follows_the_flow_of_the_conditional_law_and_decoding_inverts_it():
    system, x = autoencoder(), images(6)
    params = system.init(jax.random.key(0))
    z = system.encode(params, x)
    x_T = system.infer(params, x, z)
    mean, covariance = conditional(z)
    start, end = jnp.float32(0.01), jnp.float32(1.0)
    for i in range(6):
        law = Gaussian(mean=mean[i], covariance=covariance)
        flat = VP().alpha(start) * x[i].reshape(1, -1)
        np.testing.assert_allclose(x_T[i].ravel(), law.flow(VP(), flat, start, end)[0], atol=2e-3)
    decoded = system.decode(params, jax.random.key(5), jnp.arange(6), z, x_T)
    np.testing.assert_allclose(decoded, x, atol=1e-4)
    # Decoded under the code of another image it is another one.
    other = system.decode(params, jax.random.key(5), jnp.arange(6), z[::-1], x_T)
    assert float(jnp.abs(other - x).max()) > 0.1


def test_the_error_of_ddim_falls_with_the_step():
    x, errors = images(32), []
    for steps in (40, 80, 160):
        system = autoencoder(solver=solvers.ddim(), steps=steps)
        drawn = system.draw(system.init(jax.random.key(0)), jax.random.key(2), jnp.arange(32), {"x": x})
        errors.append(float(jnp.sqrt(jnp.square(drawn["samples"] - x).mean())))
    assert errors[0] / errors[1] > 1.7 and errors[1] / errors[2] > 1.7
    assert errors[2] < 0.02


def test_standardised_codes_have_unit_moments_and_return():
    system, x = autoencoder(), images(4000)
    params = system.init(jax.random.key(0))
    for step in range(3):
        batch = {"x": x[step * 1000 : (step + 1) * 1000]}
        _, metrics = system.loss(params, jax.random.key(step), batch, Train(jnp.int32(step), 3))
        params = system.advance(params, Train(jnp.int32(step), 3), metrics)
    z = system.encode(params, x[:3000])
    mean, std = moments.mean_and_std(params["frozen"]["codes"])
    np.testing.assert_allclose(mean, z.mean(0), atol=1e-5)  # the first steps are averaged evenly
    np.testing.assert_allclose(std, z.std(0), rtol=1e-4)
    np.testing.assert_allclose(system.raw(params, system.standardised(params, z)), z, atol=1e-6)


def test_a_row_does_not_depend_on_its_batch():
    system, x = autoencoder(solver=solvers.ddim(), steps=4, stochastic_code="random"), images(5)
    params = system.init(jax.random.key(0))
    whole = system.draw(params, jax.random.key(3), jnp.arange(5), {"x": x})["samples"]
    part = system.draw(params, jax.random.key(3), jnp.arange(2, 4), {"x": x[2:4]})["samples"]
    np.testing.assert_allclose(part, whole[2:4], atol=1e-6)
    assert isinstance(system, System)


class Identity(Coder):
    """Images that are their own codes: the codes that a manipulation decodes are its images."""

    def __init__(self, x):
        self.x = x

    def encode(self, x):
        return x

    def infer(self, x, z):
        return self.x

    def decode(self, z, x_T):
        np.testing.assert_array_equal(x_T, np.repeat(self.x, len(z) // len(self.x), axis=0))  # x_T is kept
        return z


def test_a_manipulation_shifts_the_logit_by_what_it_says():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((400, 8))
    labels = (z @ rng.standard_normal((8, 3))).argmax(1)
    found, scales = probe.fit(z, labels, 3), np.array([-0.3, 0.0, 0.7, 1.0])
    assert found.accuracy(z, labels) > 0.95
    for source, target in ((0, 1), (2, 0)):
        w, direction = found.weights[target] - found.weights[source], found.direction(source, target)
        odds = lambda z: found.logits(z)[:, target] - found.logits(z)[:, source]
        start, end = z[labels == source], z[labels == target]
        moved = Identity(start).manipulated(start, way(z, labels, direction, source, target), scales)
        shifts = np.stack([odds(moved[:, i]) - odds(start) for i in range(len(scales))], axis=1)
        expected = scales * (w @ (end.mean(0) - start.mean(0)))
        np.testing.assert_allclose(shifts, np.broadcast_to(expected, shifts.shape), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(odds(moved[:, -1]).mean(), odds(end).mean())  # level at a scale of 1


def test_the_probe_is_the_minimum():
    """The gradient of the regularised loss vanishes, and other weights are worse."""
    rng = np.random.default_rng(1)
    z, labels = rng.standard_normal((200, 3)), rng.integers(0, 2, 200)
    found = probe.fit(z, labels, 2, decay=0.1)

    def loss(w, b):
        logits = z @ w.T + b
        nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(200), labels]
        return nll.mean() + 0.05 * np.square(w).sum()

    best = loss(*found)
    for _ in range(20):
        step = 0.05 * rng.standard_normal((2, 3))
        assert loss(found.weights + step, found.bias) > best
    with pytest.raises(ValueError, match=r"0\.\.1"):
        probe.fit(z, labels + 1, 2)
    with pytest.raises(ValueError, match="finite"):
        probe.fit(z * np.nan, labels, 2)


def test_bayes_rule_gives_the_conditional_denoiser():
    """E[x_0 | x_t, z] = D + (sigma^2 / alpha) grad log p(z | x_t) for a Gaussian x and z = A x + e, to 1e-6."""
    with jax.enable_x64(True):
        process = VP()
        mean, covariance = jnp.asarray(PRIOR.mean, jnp.float64), jnp.asarray(PRIOR.covariance, jnp.float64)
        matrix, noise = jnp.asarray(A, jnp.float64), 0.1 * jnp.eye(2)
        gain = covariance @ matrix.T @ jnp.linalg.inv(matrix @ covariance @ matrix.T + noise)
        left = covariance - gain @ matrix @ covariance

        def denoised(x, t, mean, covariance):
            alpha, sigma = process.alpha(t), process.sigma(t)
            marginal = alpha**2 * covariance + sigma**2 * jnp.eye(DIM)
            return mean + alpha * covariance @ jnp.linalg.solve(marginal, x - alpha * mean)

        def log_likelihood(x, t, z):
            alpha, sigma = process.alpha(t), process.sigma(t)
            marginal = alpha**2 * covariance + sigma**2 * jnp.eye(DIM)
            posterior = covariance - alpha**2 * covariance @ jnp.linalg.solve(marginal, covariance)
            predicted = matrix @ denoised(x, t, mean, covariance)
            return jax.scipy.stats.multivariate_normal.logpdf(z, predicted, matrix @ posterior @ matrix.T + noise)

        rng = np.random.default_rng(0)
        x, z = jnp.asarray(rng.standard_normal((5, DIM))), jnp.asarray(rng.standard_normal((5, 2)))
        D = lambda x, t, cond=None: jax.vmap(lambda x: denoised(x, t, mean, covariance))(x)
        G = lambda x, t, cond: jax.vmap(lambda x, z: jax.grad(log_likelihood)(x, t, z))(x, cond["vector"])
        for t in (0.05, 0.3, 0.9):
            D_z = shifted(D, G, process)(x, jnp.float64(t), {"vector": z})
            truth = jax.vmap(lambda x, z, t=t: denoised(x, t, mean + gain @ (z - matrix @ mean), left))(x, z)
            np.testing.assert_allclose(D_z, truth, atol=1e-6)
            # Half the coefficient is another denoiser.
            half = shifted(D, lambda x, t, cond: G(x, t, cond) / 2, process)(x, jnp.float64(t), {"vector": z})
            assert float(jnp.abs(half - truth).max()) > 1e-3


def test_the_weight_of_pdae_is_that_of_the_paper():
    process, t = VP(), jnp.float32([0.01, 0.2, 0.6, 0.95])
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    of_eps = (1 / (1 + snr)) ** 0.9 * (snr / (1 + snr)) ** 0.1
    np.testing.assert_allclose(weightings.pdae()(process, t), snr * of_eps, rtol=1e-4)
    with pytest.raises(ValueError, match="gamma"):
        weightings.pdae(1.5)


def test_the_error_of_a_denoiser_is_the_denoising_loss():
    """Of the same denoiser, at the same times and with the same mean."""
    x, process, times = images(20_000), VP(), lambda p, k, n: (jnp.full(n, 0.3), jnp.ones(n))
    D = lambda x, t, cond: bcast(0.3 * jnp.ones_like(t), x) * x
    found = error_of_denoiser(D, process, weightings.simple(), times, jax.random.key(0), x)
    alpha, sigma = (float(f(jnp.float32(0.3))) for f in (process.alpha, process.sigma))
    second = float(jnp.square(x).mean())
    assert float(found.mean()) == pytest.approx(
        (alpha / sigma) ** 2 * ((1 - 0.3 * alpha) ** 2 * second + (0.3 * sigma) ** 2), rel=0.03
    )


# Runs on the digits.


def config_of(name="diffusion_autoencoder", **changes):
    config = digits(
        **{"network__hidden": 8, "network__vector_dim": 3, "sampling__steps": 3, "sampling__num_samples": 6, **changes}
    )
    config.process = ConfigDict(dict(name="discrete_vp", betas="linear", num_steps=1000))
    config.parameterization = ConfigDict(dict(name="eps", label="index"))
    config.times = ConfigDict(dict(name="discrete", num_steps=1000))
    config.sampling.grid = ConfigDict(dict(name="uniform", t_min=1e-3))
    config.system = ConfigDict(dict(name=name, encoder=dict(name="mlp", hidden=8, num_layers=1)))
    return config


def unconditional():
    config = config_of(network__vector_dim=0)
    config.system = ConfigDict(dict(name="diffusion"))
    return config


def pdae_config(run, **changes):
    config = config_of("pdae", **changes)
    config.system.update(dict(teacher=str(run)))
    config.weighting = ConfigDict(dict(name="pdae"))
    return config


def code_config(run):
    config = unconditional()
    config.network = ConfigDict(dict(name="mlp_skip", hidden=8, num_layers=3, time_channels=4))
    config.loss = ConfigDict(dict(name="denoising", norm="l1"))
    config.system = ConfigDict(dict(name="code_diffusion", autoencoder=str(run)))
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    train.train(unconditional(), directory)
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("diffae")
    train.train(config_of(), directory)
    return directory


def as_if_trained(tmp_path, config):
    """A work directory in which nothing was trained."""
    (tmp_path / "checkpoints").mkdir()
    saved.write_config(tmp_path, config)
    return tmp_path


def test_pdae_starts_as_its_teacher_and_leaves_it_as_it_is(teacher, tmp_path):
    config = pdae_config(teacher)
    train.train(config, tmp_path)
    step, state, _ = final_state(config, tmp_path)
    assert step == config.training.num_steps
    trained = build.trained(str(teacher), "config.system.teacher").load()
    frozen = {path: value for path, value in state.items() if ".params['frozen']['teacher']" in path}
    assert len(frozen) == len(jax.tree.leaves(trained))
    for path, value in jax.tree.leaves_with_path(trained):
        np.testing.assert_array_equal(frozen[f".params['frozen']['teacher']{jax.tree_util.keystr(path)}"], value)

    system = build.system(config)
    params = system.init(jax.random.key(1))
    params["frozen"]["teacher"] = trained
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.float32(0.5)
    own = build.system(unconditional()).denoiser(trained)
    D_z = system.denoiser_of(params, jnp.ones((2, 3)))
    np.testing.assert_array_equal(D_z(x, t), own(x, t))
    moved = jax.tree.map(lambda p: p + 0.1, params["network"])
    assert (
        float(jnp.abs(system.denoiser_of({**params, "network": moved}, jnp.ones((2, 3)))(x, t) - own(x, t)).max()) > 0
    )
    gradients = jax.grad(
        lambda p: system.loss({**params, "network": moved, "encoder": p}, jax.random.key(0), {"x": x}, None)[0].mean()
    )(params["encoder"])
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) > 0


def unet_config(**changes):
    config = config_of(**changes)
    config.network = ConfigDict(
        dict(
            name="adm",
            model_channels=4,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_heads=1,
            num_head_channels=None,
            num_groups=2,
        )
    )
    return config


def test_the_estimator_shares_the_encoder_path_of_the_frozen_unet(tmp_path):
    plain = unet_config()
    plain.system = ConfigDict(dict(name="diffusion"))
    config = unet_config()
    config.network.update(dict(code_dim=5, code_in_encoder=False, code_shift=True))
    config.system = ConfigDict(
        dict(
            name="pdae",
            teacher=str(as_if_trained(tmp_path, plain)),
            shared=("time_embed", "input_blocks"),
            encoder=dict(name="strided", channels=(4, 4), attention_after=1, num_heads=1, num_groups=2),
        )
    )
    config.weighting = ConfigDict(dict(name="pdae"))
    system = build.system(config)
    params = jax.eval_shape(system.init, jax.random.key(0))
    assert set(params["network"]) == {"middle_block", "output_blocks", "out", "code_embed"}
    assert {"time_embed", "input_blocks", "middle_block"} <= set(params["frozen"]["teacher"]["network"])
    config.system.shared = ("input_blocks", "nonsense")
    with pytest.raises(ConfigError, match=r"config\.system\.shared=.*'nonsense' must be a module"):
        build.system(config)
    config.system.shared = ("input_blocks",)
    config.network.code_in_encoder = True
    with pytest.raises(ConfigError, match=r"'input_blocks' must be a module of the same shapes"):
        build.system(config)


def test_the_code_scales_the_blocks_of_the_unet():
    """A scale of 1 + 0 changes nothing; otherwise the code does, also through the encoder alone."""
    config = unet_config()
    config.network.code_dim = 5
    config.system.encoder = ConfigDict(
        dict(
            name="unet",
            model_channels=4,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_groups=2,
        )
    )
    system = build.system(config)
    assert system.code == "code" and system.code_dim == 5
    rng, shapes = np.random.default_rng(0), jax.eval_shape(system.init, jax.random.key(0))
    params = jax.tree.map(lambda s: jnp.float32(0.3 * rng.standard_normal(s.shape)), shapes)
    assert "time_embed" not in params["encoder"]
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), jnp.float32(0.5)
    z = system.encode(params, x)
    one, two = (system.denoiser_of(params, code)(x, t) for code in (z, z + 1))
    assert float(jnp.abs(one - two).max()) > 1e-3

    def without_code(path, leaf):
        return jnp.zeros_like(leaf) if "cond_emb_layers" in jax.tree_util.keystr(path) else leaf

    silent = {**params, "network": jax.tree.map_with_path(without_code, params["network"])}
    one, two = (system.denoiser_of(silent, code)(x, t) for code in (z, z + 1))
    np.testing.assert_array_equal(one, two)


def test_codes_are_drawn_and_decoded(run, tmp_path):
    config = code_config(run)
    train.train(config, tmp_path)
    system, source = build.system(config), build.trained(str(run), "config.system.autoencoder").load()
    _, state, _ = final_state(config, tmp_path)
    frozen = {path: value for path, value in state.items() if ".params['frozen']['autoencoder']" in path}
    for path, value in jax.tree.leaves_with_path(source):
        np.testing.assert_array_equal(frozen[f".params['frozen']['autoencoder']{jax.tree_util.keystr(path)}"], value)
    params = system.init(jax.random.key(0))
    params["frozen"]["autoencoder"] = source
    whole = system.sample(params, jax.random.key(1), 4)["samples"]
    assert whole.shape == (4, 8, 8, 1) and set(system.conditions) == set()
    part = system.draw(params, jax.random.key(1), jnp.arange(1, 3), None)["samples"]
    np.testing.assert_allclose(part, whole[1:3], atol=1e-4)
    assert isinstance(system, System)


def test_encoding_writes_codes_figures_and_pictures(run, tmp_path):
    config = config_of(sampling__num_samples=40, sampling__batch_size=64)
    config.system.attribute = (3, 8)
    encode.encode(config, run, tmp_path)
    values = json.loads((tmp_path / "encoding.json").read_text())
    assert set(values) == {"num", "code_dim", "psnr", "psnr_random", "probe_accuracy"}
    assert values["num"] == 1297 and values["code_dim"] == 3
    with np.load(tmp_path / "codes.npz") as arrays:
        assert arrays["codes"].shape == (1297, 3) and arrays["held_out_codes"].shape == (500, 3)
        assert arrays["label"].shape == (1297,)
    with np.load(tmp_path / "manipulation.npz") as arrays:
        own = arrays["manipulated"][:, list(arrays["scales"]).index(0.0)]
    with np.load(tmp_path / "reconstructions.npz") as arrays:
        kept = [i for i, x in enumerate(arrays["original"]) if any(np.array_equal(x, y) for y in _originals(tmp_path))]
        np.testing.assert_allclose(own, arrays["inferred"][kept], atol=1e-3)  # a walk of length 0 is a reconstruction
    for name in ("reconstructions", "interpolation", "manipulation"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0
    config.system.attribute = (3, 11)
    with pytest.raises(ConfigError, match=r"config\.system\.attribute=\(3, 11\).*10 classes"):
        encode.encode(config, run, tmp_path)


def _originals(folder):
    with np.load(folder / "manipulation.npz") as arrays:
        return arrays["original"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diffusion_autoencoder", "pdae", "code_diffusion"])
def test_an_interrupted_run_goes_on_exactly(kind, teacher, run, tmp_path):
    config = {
        "diffusion_autoencoder": config_of,
        "pdae": lambda: pdae_config(teacher),
        "code_diffusion": lambda: code_config(run),
    }
    resumed(config[kind](), tmp_path, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network.vector_dim": 0}, r"config\.network \(mlp\) reads the conditions none.*vector_dim"),
        ({"network.num_classes": 10}, r"reads the conditions label, vector.*a code and nothing else"),
        ({"system.encoder": dict(name="cnn")}, r"config\.system\.encoder\.name='cnn' is unknown"),
        ({"system.encoder": dict(name="mlp", width=3)}, r"config\.system\.encoder\.width=3: mlp takes no 'width'"),
        ({"system.encoder": dict(name="mlp", code_dim=3)}, r"config\.system\.encoder\.code_dim=3 is given"),
        ({"system.encoder": dict(name="strided")}, r"config\.system\.encoder.*image_size=8"),
        ({"system.stochastic_code": "none"}, r"stochastic_code is 'none'; choose inferred or random"),
        ({"system.attribute": (3, 3)}, r"attribute is \(3, 3\); it must be two different classes"),
        ({"guidance": dict(name="classifier_free", scale=2.0)}, r"config\.guidance\.name='classifier_free' must be"),
        ({"editing": dict(name="sdedit", strength=0.5)}, r"config\.editing\.name='sdedit' must be 'none'"),
        ({"solver": dict(name="ancestral")}, r"config\.solver\.name='ancestral'.*solver of the probability-flow ODE"),
        ({"sampling.grid": dict(name="uniform", t_min=0.0)}, r"needs sigma > 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    config = config_of()
    for name, value in changes.items():
        *sections, last = name.split(".")
        node = functools.reduce(lambda node, key: node[key], sections, config)
        node[last] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=words):
        prepare(config)


def test_other_runs_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.system\.teacher=.*must be the run of a denoiser"):
        build.system(pdae_config(run))
    conditional_run = unconditional()
    conditional_run.network.num_classes = 10
    with pytest.raises(ConfigError, match=r"the condition 'label' is None here"):
        build.system(pdae_config(as_if_trained(tmp_path, conditional_run)))
    with pytest.raises(ConfigError, match=r"config\.system\.autoencoder='nowhere'.*--config=configs/diffae\.py"):
        build.system(code_config("nowhere"))
