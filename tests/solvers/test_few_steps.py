"""Solvers of higher order are not worse than DDIM in as many evaluations, on any grid: the table of docs/solvers.md."""

import numpy as np
import pytest

from benchmarks import few_steps
from diffusion_jax import solvers


@pytest.mark.few(2)
@pytest.mark.parametrize("name", few_steps.MULTISTEP)
def test_a_multistep_solver_is_not_worse_than_ddim(name):
    ratios = few_steps.ratios(few_steps.MULTISTEP[name])
    worse = [(row[:3], ratio) for row, ratio in zip(few_steps.rows(), ratios, strict=True) if not ratio <= 1.01]
    assert not worse
    assert np.exp(np.mean(np.log(ratios))) < 0.4


def test_extrapolation_over_steps_of_any_length_would_be_worse(monkeypatch):
    monkeypatch.setattr("diffusion_jax.solvers.exponential.GROWTH", 1e6)
    assert few_steps.ratios(solvers.unipc(3)).max() > 10


@pytest.mark.parametrize("name", few_steps.MULTISTEP)
def test_the_page_shows_the_ratios_of_this_version(name):
    shown = [line for line in few_steps.PAGE.read_text().splitlines() if line.startswith(f"| `{name}` | ")]
    expected = [
        float(cell) for cell in few_steps.line(name, few_steps.ratios(few_steps.MULTISTEP[name])).split("|")[2:-1]
    ]
    assert len(shown) == 1
    np.testing.assert_allclose([float(cell) for cell in shown[0].split("|")[2:-1]], expected, atol=0.05)
