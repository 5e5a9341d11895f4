"""Public checkpoints as config.weights: what is drawn and trained from them, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config.defaults import from_file
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.run import sample
from diffusion_jax.run.job import prepare
from diffusion_jax.run.parameters import fresh_state, load_params
from diffusion_jax.systems.bottlenecks import Codebook
from diffusion_jax.weights import public
from diffusion_jax.weights.dit import ORIGINAL
from diffusion_jax.weights.families import named
from diffusion_jax.weights.files import write_weights
from diffusion_jax.weights.folders import write_component
from diffusion_jax.weights.layout import export_params
from tests import runs

SMALL = dict(channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=8)
DDPM = str(runs.ROOT / "configs" / "ddpm.py:mnist")


def arguments(**more):
    return dict(image_size=8, in_channels=1, **SMALL) | more


def random_params(name, options, seed=0):
    """Parameters of a network of `families`, of which none is zero or one."""
    init, _ = init_apply(lambda rngs: named(name).network(**options, rngs=rngs))
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda s: (0.1 * rng.standard_normal(s.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as diffusers has it, and what is in it."""
    path, params = tmp_path_factory.mktemp("unet"), random_params("unet", arguments())
    write_component(path, named("unet"), arguments(), params)
    return path, params


def flags(workdir, weights, **more):
    network = {f"network__{key}": str(value).replace(" ", "") for key, value in SMALL.items()}
    sizes = dict(data__image_size=8, sampling__steps=2, sampling__num_samples=2, sampling__batch_size=2)
    settings = {**network, **sizes, "weights": weights, "training__batch_size": 2, "training__num_steps": 1, **more}
    return [*runs.flag(DDPM, **settings), f"--workdir={workdir}"]


def config(tmp_path, weights, monkeypatch, **more):
    """The config of these flags."""
    runs.forget_flags()
    command = ["main", *flags(tmp_path, weights, **more)]
    monkeypatch.setattr("sys.argv", command)
    runs.main.parse(command)
    return runs.given_config()


def test_command_samples_a_folder_of_diffusers(tmp_path, monkeypatch, folder):
    path, params = folder
    runs.command(monkeypatch, *flags(tmp_path, path), "--mode=sample")
    drawn = np.load(tmp_path / "samples" / "samples.npz")["samples"]
    job = prepare(runs.given_config())
    expected = job.system.sample({"network": jax.tree.map(jnp.asarray, params)}, jax.random.key(0), 2)["samples"]
    np.testing.assert_array_equal(drawn, np.round((expected.clip(-1, 1) + 1) * 127.5).astype(np.uint8))
    assert drawn.std() > 0


def test_parameters_and_average_start_from_it(tmp_path):
    small = dict(patch_size=4, hidden_size=8, depth=1, num_heads=2, num_classes=10)
    given = dict(image_size=8, in_channels=1, **small)
    params = random_params("dit", given)
    (file,) = write_weights(tmp_path, export_params(ORIGINAL, params))
    built = from_file(str(runs.ROOT / "configs" / "dit.py"))
    built.network, built.weights = dict(name="dit", **small), str(file)
    state = fresh_state(prepare(built))
    jax.tree.map(np.testing.assert_array_equal, state.params["network"], params)
    jax.tree.map(np.testing.assert_array_equal, state.ema["0.999"]["network"], params)
    assert int(state.step) == 0
    # Every buffer belongs to one array, so that the step may give it away.
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_a_pipeline_and_a_single_file(tmp_path, monkeypatch, folder):
    path, params = folder
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "unet").symlink_to(path)
    (pipeline / "scheduler").mkdir()
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "X"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    (file,) = write_weights(tmp_path / "file", export_params(named("unet").layouts({})[0], params))
    job = prepare(config(tmp_path, pipeline, monkeypatch))
    for weights in (pipeline, file):
        found, step = load_params(job, weights)
        jax.tree.map(np.testing.assert_array_equal, found, {"network": params})
        assert step == 0
    del index["unet"]
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"has 0 components for the network 'unet', UNet2DModel"):
        load_params(job, pipeline)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(name="unet", **SMALL | dict(num_res_blocks=3)), "layers_per_block is 1 there and 3 here"),
        (dict(name="unet", vector_dim=4, **SMALL), "vector_dim=4 must be 0: UNet2DModel of diffusers has no such"),
        (dict(name="unet", residual_input=True, **SMALL), "residual_input=True must be False: UNet2DModel"),
        (dict(name="unet", fourier=(7, 8), **SMALL), r"config\.network\.fourier must be empty"),
        (dict(name="mlp"), "no layout of files for the network 'mlp'"),
        (dict(name="dit"), r"is a UNet2DModel, our 'unet'; config\.network\.name is 'dit'"),
    ],
)
def test_another_architecture_is_refused(folder, section, message):
    with pytest.raises(ValueError, match=message):
        public.load_network(folder[0], section, (8, 8, 1), {})


def test_the_command_refuses_before_it_compiles_or_writes(tmp_path, monkeypatch, folder):
    with pytest.raises(ConfigError, match=r"config\.weights: .*block_out_channels is \[8\] there and \[16\] here"):
        sample.sample(config(tmp_path, folder[0], monkeypatch, network__channels=16), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_of_another_network_is_refused(tmp_path, monkeypatch):
    (file,) = write_weights(tmp_path, {"a.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(ConfigError, match=r"config\.weights: .*missing: conv_in\.bias, .*; 1 unexpected: a\.weight"):
        sample.sample(config(tmp_path, file, monkeypatch), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds no checkpoint; train first, or give"):
        sample.sample(config(tmp_path, tmp_path / "nothing", monkeypatch), tmp_path / "run")


def test_an_imported_codebook_is_not_re_initialised():
    entries = jax.random.normal(jax.random.key(0), (16, 2))
    network, bottleneck = {"quantize": {"embedding": {"embedding": entries}}}, Codebook()
    statistics = {"counts": jnp.zeros(16), "sums": jnp.zeros((16, 2)), "drawn": jnp.ones((16, 2))}
    after, _ = bottleneck.advance(network, bottleneck.adopt(network), statistics)
    np.testing.assert_allclose(after["quantize"]["embedding"]["embedding"], entries, rtol=1e-6)
    fresh, _ = bottleneck.advance(network, bottleneck.init(network), statistics)
    np.testing.assert_array_equal(fresh["quantize"]["embedding"]["embedding"], 1)
