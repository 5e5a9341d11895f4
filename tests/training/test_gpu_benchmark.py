"""The program that measures a GPU, with small networks on a CPU, and with the libraries of a bare GPU machine only."""

import os
import subprocess
import sys

import jax
import pytest

from benchmarks import gpu
from diffusion_jax.networks.functional import count_parameters, init_apply
from tests.runs import ROOT

# What a machine with JAX, Flax and Optax may lack.
ABSENT = ("diffusers", "grain", "ml_collections", "orbax", "tensorflow_datasets", "torch")
# Millions of parameters: arXiv:2006.11239 section 4, arXiv:2212.09748 table 4, and Stable Diffusion 1's U-Net.
MILLIONS = {"ddpm": 35.7, "dit": 675, "sd": 859.5}


@pytest.mark.slow
def test_the_program_runs_without_a_gpu(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--dtype=float32", "--peak=1e12"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "no PyTorch" in result.stdout
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    steps = [row for row in rows if row[0].endswith("a step")]
    samples = [row for row in rows if "steps of DDIM" in row[0]]
    assert len(steps) == len(samples) == len(MILLIONS)
    assert all(float(row[3]) > 0 for row in steps + samples)
    assert all(float(row[6].rstrip("% |")) > 0 for row in steps)


def test_what_takes_too_long_is_named(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--only=dit", "--minutes=0.1", "--against=none"])
    with pytest.raises(SystemExit) as exit:
        gpu.main()
    assert exit.value.code == 1
    assert "training and sampling: the time did not suffice" in capsys.readouterr().out


@pytest.mark.parametrize("name", MILLIONS)
def test_full_size_networks_are_those_of_the_papers(name):
    work = gpu.workloads(tiny=False)[name]
    init, _ = init_apply(gpu.networks(work, None))
    count = count_parameters(jax.eval_shape(init, jax.random.key(0)))
    assert count == pytest.approx(1e6 * MILLIONS[name], rel=2e-3)
