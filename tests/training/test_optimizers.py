"""Learning-rate schedules at known points, clipping, and groups against separate optimizers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.networks.edm import SongUNet
from diffusion_jax.networks.encoder_unet import EncoderUNet
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.ncsnpp import NCSNpp
from diffusion_jax.networks.vq_model import VQModel
from diffusion_jax.training import optimizers


def _run(optimizer, params, gradients):
    opt_state = optimizer.init(params)
    for gradient in gradients:
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def _gradients(params, num=5):
    keys = jax.random.split(jax.random.key(0), num)
    return [jax.tree.map(lambda p, key=key: 3.0 * jax.random.normal(key, p.shape), params) for key in keys]


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("constant", 1.0, 1.0), ("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("inverse_sqrt", (10 / 60) ** 0.5, None)],
)
def test_schedule_at_known_points(schedule, middle, end):
    rate = optimizers.make_schedule(
        learning_rate=2e-4, num_steps=110, warmup_steps=10, schedule=schedule, final_factor=0.1
    )
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0.0, 1e-4, 2e-4], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(rate(60), 2e-4 * middle, rtol=1e-5)
    np.testing.assert_allclose(rate(110), 2e-4 * ((10 / 110) ** 0.5 if end is None else end), rtol=1e-5)


def test_schedule_without_warmup_starts_at_the_full_rate():
    for schedule in optimizers.SCHEDULES:
        stages = (2, 2) if schedule in ("sawtooth", "multistep") else ()
        assert optimizers.make_schedule(learning_rate=0.5, num_steps=4, schedule=schedule, stages=stages)(0) == 0.5


def test_steps_divide_the_rate_after_each_stage():
    options = dict(learning_rate=1e-3, num_steps=20, schedule="multistep", stages=(15, 3, 2), final_factor=0.1)
    rate = optimizers.make_schedule(**options)
    rates = [rate(k) for k in (0, 14, 15, 17, 18, 40)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


def test_a_run_shorter_than_its_warmup_is_allowed():
    rate = optimizers.make_schedule(learning_rate=1.0, num_steps=10, warmup_steps=5000, schedule="cosine")
    np.testing.assert_allclose(rate(10), 10 / 5000, rtol=1e-4)


def test_clipping_bounds_the_global_norm():
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    optimizer, _ = optimizers.make_optimizer(name="sgd", b1=0.0, learning_rate=1.0, num_steps=10, clip_norm=0.5)
    large = jax.tree.map(lambda p: jnp.full(p.shape, 4.0), params)
    moved = _run(optimizer, params, [large])
    np.testing.assert_allclose(optax.global_norm(moved), 0.5, rtol=1e-6)
    small = jax.tree.map(lambda p: jnp.full(p.shape, 0.01), params)
    np.testing.assert_allclose(_run(optimizer, params, [small])["a"], -0.01, rtol=1e-6)


def test_first_adam_step_has_the_size_of_the_learning_rate():
    params = {"net": jnp.array([1.0, -2.0])}
    optimizer, _ = optimizers.make_optimizer(learning_rate=1e-2, num_steps=10)
    moved = _run(optimizer, params, [{"net": jnp.array([5.0, -1e-3])}])
    np.testing.assert_allclose(moved["net"], params["net"] - 1e-2 * np.array([1.0, -1.0]), rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_decoupled_decay_shrinks_parameters_without_gradient(name):
    params = {"net": jnp.array([[1.0, -2.0]])}
    optimizer, _ = optimizers.make_optimizer(name=name, learning_rate=0.1, num_steps=10, weight_decay=0.5)
    moved = _run(optimizer, params, [{"net": jnp.zeros((1, 2))}])
    np.testing.assert_allclose(moved["net"], 0.95 * params["net"], rtol=1e-6)


def test_l2_decay_is_part_of_the_gradient():
    params = {"net": jnp.array([[1.0, -2.0]])}
    plain, _ = optimizers.make_optimizer(name="adam", learning_rate=0.1, num_steps=10)
    decayed, _ = optimizers.make_optimizer(name="adam", learning_rate=0.1, num_steps=10, weight_decay=0.5)
    gradient = jnp.array([[0.3, 0.4]])
    expected = _run(plain, params, [{"net": gradient + 0.5 * params["net"]}])
    np.testing.assert_allclose(_run(decayed, params, [{"net": gradient}])["net"], expected["net"], rtol=1e-6)


def _network() -> dict:
    """Parameters of a network of each kind that has parameters other than kernels, biases and norms."""
    makes = {
        "song": lambda rngs: SongUNet(
            image_size=8,
            in_channels=3,
            embedding_type="fourier",
            model_channels=16,
            channel_mult=(1,),
            num_blocks=1,
            attn_resolutions=(),
            num_classes=3,
            rngs=rngs,
        ),
        "ncsnpp": lambda rngs: NCSNpp(
            image_size=8, in_channels=3, nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), rngs=rngs
        ),
        "encoder": lambda rngs: EncoderUNet(
            image_size=8,
            in_channels=3,
            num_classes=3,
            model_channels=16,
            channel_mult=(1,),
            num_res_blocks=1,
            attention_resolutions=(8,),
            num_head_channels=16,
            num_groups=8,
            rngs=rngs,
        ),
        "vq": lambda rngs: VQModel(
            in_channels=3,
            block_out_channels=(8,),
            layers_per_block=1,
            latent_channels=2,
            num_vq_embeddings=4,
            norm_num_groups=4,
            rngs=rngs,
        ),
    }
    return {name: jax.jit(init_apply(make)[0])(jax.random.key(0)) for name, make in makes.items()}


def _paths(tree) -> dict[str, jax.Array]:
    return {
        "/".join(str(entry.key) for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _decayed(params, decay: str):
    """The parameters after one step of AdamW without a gradient, which takes a fifth of what decays."""
    optimizer, _ = optimizers.make_optimizer(
        name="adamw", learning_rate=0.5, weight_decay=0.4, num_steps=1, decay=decay
    )

    @jax.jit
    def step(params):
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    return _paths(step(params))


@pytest.mark.parametrize(
    ("decay", "kept"),
    [
        ("kernels", r"(bias|scale|embedding)$|(time_proj|map_noise)/weight$"),
        pytest.param("no_biases", r"bias$|(time_proj|map_noise)/weight$", marks=pytest.mark.slow),
        pytest.param("all", r"(time_proj|map_noise)/weight$", marks=pytest.mark.slow),
    ],
)
def test_weight_decay_reaches_what_the_option_says(decay, kept):
    params = _network()
    before, after = _paths(params), _decayed(params, decay)
    names = ("quantize/embedding/embedding", "positional_embedding", "map_noise/weight", "time_proj/weight")
    for name in names:
        assert any(path.endswith(name) for path in before), name
    for path, leaf in before.items():
        factor = 1.0 if re.search(kept, path) else 0.8
        np.testing.assert_allclose(after[path], factor * leaf, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("name", sorted(optimizers.DIRECTIONS))
def test_every_method_minimises_a_quadratic(name):
    optimizer, _ = optimizers.make_optimizer(name=name, learning_rate=0.05, num_steps=300, schedule="cosine", b2=0.9)
    target = jnp.array([1.0, -0.5])

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = optimizer.update({"net": params["net"] - target}, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = {"net": jnp.zeros(2)}
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=300)
    np.testing.assert_allclose(params["net"], target, atol=0.02)


def test_groups_equal_separate_optimizers():
    params = {
        "generator": {"w": jnp.ones((3, 2))},
        "encoder": {"w": jnp.ones(4)},
        "discriminator": {"w": -jnp.ones(5)},
    }
    gradients = _gradients(params)
    shared = dict(learning_rate=1e-2, num_steps=20, warmup_steps=2, schedule="linear", clip_norm=1.0)
    overrides = dict(name="adamw", learning_rate=3e-2, b1=0.5, weight_decay=0.1, clip_norm=0.3)
    both, rate = optimizers.make_optimizer(**shared, groups={"discriminator": overrides})
    together = _run(both, params, gradients)

    def alone(names, keywords):
        keep = lambda tree: {name: tree[name] for name in names}
        optimizer, _ = optimizers.make_optimizer(**keywords)
        return _run(optimizer, keep(params), [keep(gradient) for gradient in gradients])

    expected = alone(["generator", "encoder"], shared) | alone(["discriminator"], shared | overrides)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), together, expected)
    np.testing.assert_allclose(rate(2), 1e-2, rtol=1e-6)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        (dict(name="adagrad"), "optimizer name .*'adagrad'.* adam"),
        (dict(schedule="step"), "schedule .*'step'.* constant"),
        (dict(learning_rate=0.0), "learning_rate .*0.0"),
        (dict(learning_rate=float("nan")), "learning_rate .*nan"),
        (dict(b1=1.0), r"b1 .*1.0.*\[0, 1\)"),
        (dict(b2=-0.1), "b2 .*-0.1"),
        (dict(eps=0.0), "eps .*0.0"),
        (dict(clip_norm=-1.0), "clip_norm .*-1.0"),
        (dict(weight_decay=-1.0), "weight_decay .*-1.0"),
        (dict(decay="weights"), "decay .*'weights'.* kernels"),
        (dict(warmup_steps=-1), "warmup_steps .*-1"),
        (dict(num_steps=0), "num_steps .*0"),
        (dict(final_factor=2.0), "final_factor .*2.0"),
        (dict(groups={"d": {"learning_rat": 1.0}}), r"groups\.d .*\['learning_rat'\]"),
        (dict(groups={"d": {"b1": 2.0}}), r"groups\.d: .*b1 .*2.0"),
        (dict(groups={"frozen": {}}), "groups .*'frozen'"),
    ],
)
def test_refuses_bad_values(keywords, text):
    with pytest.raises(ValueError, match=text):
        optimizers.make_optimizer(**(dict(learning_rate=1e-3, num_steps=10) | keywords))


def test_refuses_a_group_that_the_parameters_lack():
    optimizer, _ = optimizers.make_optimizer(learning_rate=1e-3, num_steps=10, groups={"discriminator": {}})
    with pytest.raises(ValueError, match=r"groups .*\['discriminator'\].* net"):
        optimizer.init({"net": jnp.zeros(2)})
