"""Solvers of higher order are not worse than DDIM in as many evaluations, on any grid: the table of docs/solvers.md."""

import numpy as np
import pytest

from benchmarks import few_steps
from diffusion_jax import solvers


@pytest.mark.parametrize("name", few_steps.MULTISTEP)
def test_a_multistep_solver_is_not_worse_than_ddim(name):
    ratios = few_steps.ratios(few_steps.MULTISTEP[name])
    worse = [(row[:3], ratio) for row, ratio in zip(few_steps.rows(), ratios, strict=True) if not ratio <= 1.01]
    assert not worse
    assert np.exp(np.mean(np.log(ratios))) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("name", few_steps.SINGLE_STEP)
def test_a_single_step_solver_is_better_than_ddim_on_most_grids(name):
    ratios = few_steps.single_step_ratios(few_steps.SINGLE_STEP[name])
    assert np.isfinite(ratios).all()
    assert np.median(ratios) < 1


def test_extrapolation_over_steps_of_any_length_would_be_worse(monkeypatch):
    monkeypatch.setattr("diffusion_jax.solvers.exponential.GROWTH", 1e6)
    assert few_steps.ratios(solvers.unipc(3)).max() > 10


@pytest.mark.slow
def test_the_page_shows_the_table_of_this_version():
    page = few_steps.PAGE.read_text()
    assert few_steps.written(page) == page
