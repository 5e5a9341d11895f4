"""GANs as systems: gradients of both players, samples by their numbers, resuming, refusals; modes of a ring."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config import build, from_file
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.evaluation.points import toy_metrics
from diffusion_jax.losses.adversarial import Penalty
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import System, Train
from tests.runs import ROOT, brief, changed, resumed

SMALL = dict(name="mlp", hidden=8, num_layers=1)
STEPS = 1500


def config_of(variant="ring", **changes):
    config = from_file(f"{ROOT / 'configs' / 'gan.py'}:{variant}")
    config.network = ConfigDict(SMALL)
    config.system.discriminator = ConfigDict(SMALL)
    return brief(config, **changes)


@pytest.fixture(scope="module")
def system():
    return build.system(config_of(system__every=2))


def shaken(params):
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(3), x.shape), params)


def test_is_a_system(system):
    assert isinstance(system, System)
    assert system.evaluations() == 1 and system.makes.shape == (2,) and system.makes.modality == "points"


def test_samples_depend_on_their_number_alone(system):
    params = shaken(system.init(jax.random.key(0)))
    whole = system.sample(params, jax.random.key(1), 9)["samples"]
    parts = dataclasses.replace(system, batch_size=4).sample(params, jax.random.key(1), 9)["samples"]
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    assert len(np.unique(whole[:, 0])) == 9


def test_the_gradient_of_each_group_is_that_of_its_own_player(system):
    """The generator's does not depend on the penalty, nor the discriminator's on the generator's loss."""
    params, batch = shaken(system.init(jax.random.key(0))), {"x": jax.random.normal(jax.random.key(1), (8, 2))}

    def gradient(system, step):
        loss = lambda params: system.loss(params, jax.random.key(2), batch, Train(jnp.int32(step), 10))[0].mean()
        return jax.jit(jax.grad(loss))(params)

    penalised, plain = gradient(system, 0), gradient(system, 1)  # every second step has a penalty
    same = lambda a, b: all(map(np.allclose, jax.tree.leaves(a), jax.tree.leaves(b)))
    assert same(penalised["network"], plain["network"])
    assert not same(penalised["discriminator"], plain["discriminator"])
    without = dataclasses.replace(system, penalty=Penalty(r1=0.0))
    assert same(gradient(without, 0), plain)
    silent = system.losses._replace(generator=lambda real, fake: jnp.zeros_like(real))
    found = gradient(dataclasses.replace(system, losses=silent), 0)
    assert same(found["discriminator"], penalised["discriminator"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["network"]))


def test_classes_reach_both_networks():
    config = config_of("digits", network__num_classes=10)
    system = build.system(config)
    params = shaken(system.init(jax.random.key(0)))
    assert system.batch["label"].values == 10 and system.conditions.num_classes == 10
    draw = lambda label: system.sample(params, jax.random.key(1), 3, {"label": np.full(3, label)})["samples"]
    assert np.abs(draw(1) - draw(2)).max() > 1e-3
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    logits = [system.discriminate(params["discriminator"], x, {"label": jnp.full(3, label)}) for label in (1, 2)]
    assert np.abs(logits[0] - logits[1]).min() > 1e-4


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    config = config_of(system__every=3, optimizer__schedule="constant")
    config.optimizer.groups = ConfigDict(dict(discriminator=dict(learning_rate=1e-3)))
    resumed(config, tmp_path, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sampling__steps=4), r"config\.sampling\.steps=4 must be 1"),
        (dict(sampling__denoise=True), r"config\.sampling\.denoise=True must be false"),
        (dict(system__loss="hinge"), r"config\.system\.loss='hinge' is unknown"),
        (dict(system__r1=-1.0), r"config\.system \(gan\): r1 is -1\.0; it must be at least 0"),
        (dict(system__latent_dim=0), r"config\.system \(gan\): latent_dim is 0; it must be at least 1"),
        (dict(network__name="unet"), r"config\.network\.name='unet' is unknown.*choose one of mlp, r3gan"),
        (dict(network__latent_dim=3), r"config\.network\.latent_dim=3 is given by the data and the system"),
        (dict(system__discriminator__shape=(3,)), r"config\.system\.discriminator\.shape=\(3,\) is given"),
        (dict(system__discriminator__hidden=0), r"config\.system\.discriminator\.hidden=0 must be at least 1"),
        (dict(system__discriminator__name="patchgan"), r"config\.system\.discriminator\.name='patchgan' is unknown"),
        (dict(system__discriminator=ConfigDict(dict(hidden=3))), r"config\.system\.discriminator=.* must be a section"),
        (dict(guidance__name="classifier_free"), r"config\.guidance was changed .* does not read it"),
        (dict(solver__name="ddim"), r"config\.solver was changed .* does not read it"),
    ],
)
def test_refusals(changes, message):
    config = changed(config_of(), **changes)
    with pytest.raises(ConfigError, match=message):
        build.check_read(config)
        build.system(config)


def test_examples_of_integers_have_no_gradient():
    config = config_of()
    config.data = ConfigDict(dict(name="text", split="train", eval_split="test", path="", length=16))
    with pytest.raises(ConfigError, match="must be real numbers"):
        build.system(config)


def modes(variant: str) -> dict[str, float]:
    """The metrics of 2000 samples of a short training on the narrow ring."""
    config = from_file(f"{ROOT / 'configs' / 'gan.py'}:{variant}")
    config.training.num_steps, config.training.batch_size = STEPS, 128
    built = build.build(config)
    system, source, (optimizer, _) = built.system, built.source(), built.parts.optimizer()
    step = jax.jit(make_train_step(system, optimizer, num_steps=STEPS, ema_rates=()))
    state = jax.jit(lambda key: init_state(system, optimizer, (), key))(jax.random.key(0))
    batches = data.batches(source, batch_size=config.training.batch_size, seed=0)
    for _ in range(STEPS):
        state, _ = step(state, {"x": next(batches)["x"]})
    samples = system.sample(state.params, jax.random.key(1), 2000)["samples"]
    return toy_metrics(samples, data.arrays(source, 4000)["x"], **source.facts["mixture"]._asdict())


@pytest.mark.slow
def test_the_penalty_keeps_all_modes_of_a_ring_and_without_it_some_are_lost():
    found, control = modes("ring"), modes("ring_vanilla")
    assert found["modes"] == 8 and found["near_modes"] > 0.6
    assert control["modes"] < 8
