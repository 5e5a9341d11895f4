"""Configs of bridges that cannot work are refused with the reason, before anything is compiled."""

import numpy as np
import pytest

from diffusion_jax.config import build, from_file, replace
from diffusion_jax.config.sections import ConfigError

UNPAIRED = dict(
    name="unpaired",
    x=dict(name="digits", image_size=8, channels=1, only=(3,)),
    image=dict(name="digits", image_size=8, channels=1, only=(8,)),
)


def bridge(**sections):
    config = from_file("configs/bridge.py")
    config.network.hidden, config.network.num_layers = 16, 1
    return replace(config, **sections)


def schroedinger(**sections):
    config = from_file("configs/schroedinger.py:digits_3_8")
    config.network.hidden, config.network.num_layers = 16, 1
    return replace(config, **sections)


def refusal(config, opened=False):
    with pytest.raises(ConfigError) as error:
        made = build.build(config)
        if opened:
            made.source()
    return str(error.value)


def test_a_process_that_ends_in_noise():
    message = refusal(bridge(process=dict(name="vp")))
    assert "config.process.name='vp' ends in noise" in message and "brownian_bridge" in message
    message = refusal(replace(from_file("configs/ddpm.py"), process=dict(name="i2sb")))
    assert "config.process.name='i2sb' is a bridge" in message


def test_solvers_of_the_other_kind():
    assert "config.solver.name='ddim'" in refusal(bridge(solver=dict(name="ddim")))
    config = replace(from_file("configs/ddpm.py"), solver=dict(name="bridge_posterior"))
    assert "config.solver.name='bridge_posterior' needs a bridge" in refusal(config)


def test_an_ode_from_x_1_without_a_first_step_with_noise():
    message = refusal(bridge(solver=dict(name="bridge_heun", churn=0.0)))
    assert "config.solver.churn=0.0" in message and "a first step with noise" in message
    build.build(bridge(solver=dict(name="bridge_heun", churn=0.3), sampling=dict(grid=dict(name="uniform"))))


def test_a_parameterization_of_noise():
    assert "config.parameterization.name='eps'" in refusal(bridge(parameterization=dict(name="eps")))


def test_times_at_which_nothing_is_to_be_predicted():
    assert "config.times.t_min" in refusal(bridge(times=dict(name="uniform", t_min=0.0)))


def test_unpaired_data_for_a_model_of_pairs():
    config = bridge(system=dict(name="bridge"), data=UNPAIRED)
    assert "config.data.name='unpaired' holds two sets without pairs" in refusal(config)


def test_pairs_for_a_schroedinger_bridge():
    message = refusal(schroedinger(data=dict(name="digits", image_size=8, channels=1)))
    assert "config.data.name='digits' must be 'unpaired'" in message


def test_pairs_of_other_counts_or_sizes(tmp_path):
    x = np.zeros((6, 8, 8, 1), np.uint8)
    data = dict(name="arrays", path=str(tmp_path), split="train", eval_split="test", image_size=8, channels=1)
    np.savez(tmp_path / "train.npz", images=x, image=x[:5])
    config = bridge(system=dict(name="bridge"), data=data)
    assert "6 examples need as many conditions" in refusal(config, opened=True)
    np.savez(tmp_path / "train.npz", images=x, image=np.zeros((6, 4, 4, 1), np.uint8))
    assert "'image' of shape (8, 8, 1)" in refusal(config, opened=True)
    np.savez(tmp_path / "train.npz", images=x)
    assert "does not give" in refusal(config, opened=True)


def test_sets_of_other_sizes():
    image = dict(name="digits", image_size=16, channels=1)
    assert "two sets of the same size" in refusal(schroedinger(data=UNPAIRED | dict(image=image)))
    image = dict(UNPAIRED["image"], only=(12,))
    assert "config.data" in refusal(schroedinger(data=UNPAIRED | dict(image=image)), opened=True)


def test_schroedinger_bridges_that_cannot_be_walked_from_both_ends():
    assert "needs alpha = 1" in refusal(schroedinger(process=dict(name="vp_bridge")))
    message = refusal(schroedinger(process=dict(name="brownian_bridge", scale=0.5, noisy=False)))
    assert "config.process.noisy=False" in message


def test_degradations():
    def degraded(masked=False, **degradation):
        return bridge(system=dict(name="bridge", degradation=degradation, masked=masked))

    assert "config.system.degradation.name='phase'" in refusal(degraded(name="phase"))
    assert "config.system.masked=False" in refusal(degraded(name="box", size=2))
    assert "config.system.masked=True" in refusal(degraded(masked=True, name="average", factor=2))
    assert "config.system.degradation (average)" in refusal(degraded(name="average", factor=3))


def test_a_network_that_reads_another_image():
    network = dict(name="mlp", hidden=16, num_layers=1, image_channels=3)
    assert "config.network.image_channels=3" in refusal(bridge(network=network))
