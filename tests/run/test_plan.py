"""--mode=plan: sizes, memory and operations that are printed are those of the arrays and of the network."""

import re

import numpy as np

from diffusion_jax.networks.functional import count_parameters
from diffusion_jax.run import plan
from diffusion_jax.run.job import prepare
from tests.runs import toy


def test_plan(capsys):
    config = toy(network__hidden=128, training__accumulate=2)
    plan.plan(config)
    output = capsys.readouterr().out
    count = int(re.search(r"^parameters +([\d,]+)$", output, re.MULTILINE)[1].replace(",", ""))
    assert count == count_parameters(prepare(config).state.params) > 16_384
    assert "batch           16 of x (2,)" in output and "in 2 part(s) of 8 per device" in output
    assert "data 1, fsdp 1, tensor 1: 1 device(s)" in output

    # The forward pass and the gradient take six operations per parameter and example.
    flops = float(re.search(r"^FLOPs per step +(\S+),", output, re.MULTILINE)[1])
    assert 0.8 < flops / (6 * 16 * count) < 1.5
    kernel = [line for line in output.splitlines() if "128x128" in line]
    assert kernel and all("whole" in line for line in kernel)


def test_plan_for_devices_that_are_not_there(capsys):
    sizes = {}
    for devices in (1, 256):
        plan.plan(toy(network__hidden=256, training__batch_size=512, mesh__fsdp=min(devices, 64)), devices)
        output = capsys.readouterr().out
        table = [line.replace(" MiB", "").rsplit(maxsplit=2) for line in output.splitlines() if line.count("MiB") == 2]
        sizes[devices] = {name: (float(one), float(every)) for name, one, every in table}
    assert set(sizes[256]) == {"parameters", "averages", "optimizer", "gradient", "activations", "sum"}
    assert "data 4, fsdp 64, tensor 1: 256 device(s)" in output
    for name in ("parameters", "averages", "optimizer"):
        assert sizes[256][name][1] == sizes[1][name][1]
        assert sizes[256][name][0] < 0.1 * sizes[1][name][0], "nearly all of it is in arrays that 64 divides"
    np.testing.assert_allclose(sizes[256]["activations"][1], sizes[1]["activations"][1], rtol=0.05)
