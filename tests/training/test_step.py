"""The train step against a loop written by hand, and its promises about groups, parts of a batch and devices."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.run import sample, train
from diffusion_jax.training import summary
from diffusion_jax.training.optimizers import make_optimizer
from diffusion_jax.training.step import init_state, make_train_step, stream
from tests.runs import ROOT, toy, with_devices


@dataclasses.dataclass(frozen=True)
class _Regression:
    """y = scale w x by least squares; `scale` is frozen, the group "target" follows w without a gradient."""

    noise: float = 0.0

    def init(self, key):
        return {
            "net": {"w": jax.random.normal(key, (3,))},
            "target": {"w": jnp.zeros(3)},
            "frozen": {"scale": jnp.float32(2.0)},
        }

    def loss(self, params, key, batch, train):
        w = params["net"]["w"] + self.noise * jax.random.normal(key, (3,))
        error = params["frozen"]["scale"] * batch["x"] @ w - batch["y"]
        return error**2, {"progress": train.step / train.num_steps, "bias": jnp.mean(error)}

    def advance(self, params, train, metrics):
        target = params["target"]["w"] + (params["net"]["w"] - params["target"]["w"]) / (train.step + 2)
        return {**params, "target": {"w": target}}

    def sample(self, params, key, num, cond=None):
        return {}

    def evaluate(self, params, key, batch):
        return {}


def _batch(rows=8):
    x = jax.random.normal(jax.random.key(7), (rows, 3))
    return {"x": x, "y": x @ jnp.array([1.0, -2.0, 0.5])}


def _start(system, optimizer, rates=(0.9,)):
    return init_state(system, optimizer, rates, jax.random.key(0))


def test_step_equals_a_hand_written_loop():
    system, batch = _Regression(noise=0.1), _batch()
    optimizer = optax.adam(0.1)
    state = _start(system, optimizer)
    step = jax.jit(make_train_step(system, optimizer, num_steps=5, ema_rates=(0.9,), ema_warmup=False))

    w, average, moments = state.params["net"]["w"], state.params["net"]["w"], None
    hand = optax.adam(0.1)
    moments = hand.init(w)
    for k in range(5):
        state, metrics = step(state, batch)
        noise = 0.1 * jax.random.normal(jax.random.fold_in(state.key, k), (3,))

        def objective(w, noise=noise):
            return jnp.mean((2.0 * batch["x"] @ (w + noise) - batch["y"]) ** 2)

        loss, grad = jax.value_and_grad(objective)(w)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], jnp.linalg.norm(grad), rtol=1e-5)
        np.testing.assert_allclose(metrics["progress"], k / 5, rtol=1e-6)
        updates, moments = hand.update(grad, moments, w)
        w = w + updates
        average = 0.9 * average + 0.1 * w
    np.testing.assert_allclose(state.params["net"]["w"], w, rtol=1e-5)
    np.testing.assert_allclose(state.ema["0.9"]["net"]["w"], average, rtol=1e-5)
    assert state.step == 5


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(accumulate):
    system, optimizer = _Regression(), optax.sgd(0.1)
    whole, parts = (
        jax.jit(make_train_step(system, optimizer, num_steps=3, ema_rates=(0.9,), accumulate=n))
        for n in (1, accumulate)
    )
    one, many = _start(system, optimizer), _start(system, optimizer)
    for _ in range(3):
        one, metrics = whole(one, _batch())
        many, metrics_of_parts = parts(many, _batch())
        for name in metrics:
            np.testing.assert_allclose(metrics_of_parts[name], metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), many.params, one.params)


def test_parts_of_a_batch_have_noise_of_their_own():
    system, optimizer = _Regression(noise=1.0), optax.sgd(0.0)
    rows = {"x": jnp.ones((4, 3)), "y": jnp.zeros(4)}
    losses = []
    for accumulate in (1, 4):
        step = make_train_step(system, optimizer, num_steps=1, ema_rates=(), accumulate=accumulate)
        losses.append(float(step(_start(system, optimizer, ()), rows)[1]["loss"]))
    assert abs(losses[0] - losses[1]) > 1e-3


def test_frozen_parameters_are_left_alone():
    system, optimizer = _Regression(), optax.adamw(0.1, weight_decay=0.1)
    state = _start(system, optimizer)
    for leaf in jax.tree.leaves(state.opt_state):
        assert leaf.shape in ((), (3,))
    assert len(jax.tree.leaves(state.opt_state)) == 1 + 2 * 2  # count, and two moments of "net" and "target"
    assert set(state.ema["0.9"]) == {"net", "target"}
    state, _ = make_train_step(system, optimizer, num_steps=1, ema_rates=(0.9,))(state, _batch())
    assert state.params["frozen"]["scale"] == 2.0
    assert "frozen" not in state.ema["0.9"]


def test_advance_moves_a_group_without_a_gradient():
    system, optimizer = _Regression(), optax.sgd(0.1)
    step = jax.jit(make_train_step(system, optimizer, num_steps=4, ema_rates=()))
    state, target = _start(system, optimizer, ()), jnp.zeros(3)
    for k in range(4):
        state, _ = step(state, _batch())
        target = target + (state.params["net"]["w"] - target) / (k + 2)
        np.testing.assert_allclose(state.params["target"]["w"], target, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class _Adversaries(_Regression):
    """min over a and max over b of a b, as a sum of two losses with gradients stopped between the groups."""

    def init(self, key):
        return {"generator": {"a": jnp.float32(3.0)}, "discriminator": {"b": jnp.float32(1.0)}}

    def loss(self, params, key, batch, train):
        a, b = params["generator"]["a"], params["discriminator"]["b"]
        stop = jax.lax.stop_gradient
        return a * stop(b) * batch["x"] - stop(a) * b * batch["x"], {}

    def advance(self, params, train, metrics):
        return params


def test_two_groups_have_two_optimizers():
    optimizer, _ = make_optimizer(
        name="adam",
        learning_rate=0.1,
        num_steps=10,
        groups={"discriminator": {"name": "sgd", "learning_rate": 0.25, "b1": 0.0}},
    )
    system = _Adversaries()
    state = _start(system, optimizer, ())
    state, _ = make_train_step(system, optimizer, num_steps=1, ema_rates=())(state, {"x": jnp.ones(2)})
    np.testing.assert_allclose(state.params["generator"]["a"], 3.0 - 0.1, rtol=1e-5)  # Adam's first step: its rate
    np.testing.assert_allclose(state.params["discriminator"]["b"], 1.0 + 0.25 * 3.0, rtol=1e-6)  # up the slope 3


_ON_SIMULATED_DEVICES = """
import json, pathlib, sys, jax
from diffusion_jax.run import sample, train
from tests.runs import toy
folder, changes = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
train.train(toy(**changes), folder)
sample.sample(toy(**changes, sampling__file=f"on_{jax.device_count()}"), folder)
"""


@pytest.mark.slow
def test_eight_devices_then_four_then_one_train_like_one(tmp_path):
    """Devices add in another order: 1e-3 relative on losses, 1e-2 on samples of a few units.

    A step that read other examples, or in another order, would have another loss.
    """
    changes = dict(network__hidden=128, optimizer__warmup_steps=0, optimizer__schedule="constant")
    train.train(toy(**changes, training__num_steps=6), tmp_path / "whole")
    folder = tmp_path / "moved"
    for devices, steps, mesh in ((8, 2, dict(mesh__fsdp=4)), (4, 4, dict(mesh__fsdp=2, mesh__tensor=2))):
        result = subprocess.run(
            [
                *(sys.executable, "-c", _ON_SIMULATED_DEVICES, str(folder)),
                json.dumps({**changes, **mesh, "training__num_steps": steps}),
            ],
            cwd=ROOT,
            env=with_devices(devices),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"on {devices} cpu device(s)" in result.stdout
    sample.sample(toy(**changes, sampling__file="on_1"), folder)
    samples = {n: np.load(folder / "samples" / f"on_{n}.npz")["samples"] for n in (8, 4, 1)}
    np.testing.assert_allclose(samples[4], samples[1], atol=1e-2)
    assert np.abs(samples[8] - samples[1]).max() > 1e-2, "two steps further the samples are others"
    train.train(toy(**changes, training__num_steps=6), folder)

    def losses(name):
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return {row["step"]: row["loss"] for row in rows}

    assert list(losses("moved")) == list(losses("whole")) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(losses("moved").values()), list(losses("whole").values()), rtol=1e-3)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    """Steps with a NaN leave parameters, averages and the optimizer as they were; after three in a row it is taken."""
    system = _Regression()
    optimizer, _ = make_optimizer(name="adam", learning_rate=0.1, num_steps=10, skip_non_finite=2)
    step = jax.jit(make_train_step(system, optimizer, num_steps=10, ema_rates=(0.9,)))
    good, bad = _batch(), jax.tree.map(lambda x: x.at[3].set(jnp.nan), _batch())
    state, metrics = step(_start(system, optimizer), good)
    assert metrics["skipped_steps"] == 0
    after = state
    for count in (1, 2):
        after, metrics = step(after, bad)
        assert (metrics["skipped_steps"], metrics["skipped_in_a_row"]) == (count, count)
    for group in ("params", "opt_state"):
        kept = jax.tree.map(np.array_equal, *(_without_counts(s, group) for s in (state, after)))
        assert all(jax.tree.leaves(kept)), kept
    again, metrics = step(after, good)
    assert (metrics["skipped_steps"], metrics["skipped_in_a_row"]) == (2, 0)
    assert np.all(np.isfinite(again.params["net"]["w"]))
    broken, _ = step(step(step(state, bad)[0], bad)[0], bad)
    assert np.isnan(broken.params["net"]["w"]).all()


def _without_counts(state, group):
    return state.params["net"] if group == "params" else state.opt_state.inner_state


def test_activations_of_a_known_loss():
    """The gradient of (2 w x - y)^2 needs the three numbers x and the error of every example, 4 bytes each."""
    system = _Regression()
    params, batch = jax.eval_shape(system.init, jax.random.key(0)), jax.eval_shape(_batch)
    assert 4 * (3 + 1) <= summary.activation_bytes(system, params, batch) <= 4 * (3 + 3)


class _Averaging(_Regression):
    """Follows the batch with a running mean, as latent statistics and codebooks do."""

    def init(self, key):
        params = super().init(key)
        return {**params, "frozen": {**params["frozen"], "mean": jnp.zeros(())}}

    def advance(self, params, train, metrics):
        mean = params["frozen"]["mean"]
        moved = mean + 0.1 * (jnp.mean(metrics["loss"]) - mean)
        return {**params, "frozen": {**params["frozen"], "mean": moved}}


def test_a_skipped_step_changes_nothing_that_advance_follows():
    system = _Averaging()
    optimizer, _ = make_optimizer(name="adam", learning_rate=0.1, num_steps=10, skip_non_finite=5)
    step = jax.jit(make_train_step(system, optimizer, num_steps=10, ema_rates=(0.9,)))
    state, _ = step(_start(system, optimizer), _batch())
    bad, metrics = step(state, jax.tree.map(lambda x: x.at[3].set(jnp.nan), _batch()))
    assert metrics["skipped_steps"] == 1
    assert state.params["frozen"]["mean"] > 0
    for group in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(bad, group), getattr(state, group))
    after, _ = step(bad, _batch())
    moved = after.params["frozen"]["mean"]
    assert np.isfinite(moved) and moved != state.params["frozen"]["mean"]


def test_training_has_random_numbers_of_its_own():
    """No key of training is the key itself, one of its splits, or what samples and metrics fold into it."""
    system, key = _Regression(), jax.random.key(0)
    optimizer, _ = make_optimizer(name="adam", learning_rate=0.1, num_steps=10)
    own = jax.random.key_data(init_state(system, optimizer, (), key).key)
    others = [
        key,
        *jax.random.split(key, 8),
        stream(key, "evaluation"),
        *(jax.random.fold_in(key, i) for i in range(8)),
    ]
    assert not any((own == jax.random.key_data(other)).all() for other in others)
