"""The tables of names: every name refuses keywords that it does not take, and the defaults name points that exist."""

import functools

import pytest

from diffusion_jax.config import checks, defaults, names, sections
from diffusion_jax.config.sections import ConfigError

TABLES = {
    "process": names.PROCESSES,
    "weighting": names.WEIGHTINGS,
    "times": names.TIMES,
    "solver": names.SOLVERS,
    "sampling.grid": names.GRIDS,
    "loss": names.LOSSES,
    "network": names.NETWORKS,
    "parameterization": names.PARAMETERIZATIONS,
    "guidance": names.GUIDANCE,
    "sampling.threshold": names.THRESHOLDS,
    "evaluation.likelihood": names.LIKELIHOODS,
}


def test_defaults_are_complete():
    config = defaults()
    checks.check_keys(config)
    for field, table in TABLES.items():
        section = functools.reduce(lambda node, key: node[key], field.split("."), config)
        assert section.name in table


@pytest.mark.parametrize("field", TABLES)
def test_unknown_names_and_keywords(field):
    table = TABLES[field]
    for name in table:
        with pytest.raises(ConfigError) as refusal:
            sections.construct(table, field, {"name": name, "nonsense": 1})
        assert f"config.{field}.nonsense=1" in str(refusal.value)
    with pytest.raises(ConfigError) as refusal:
        sections.construct(table, field, {"name": f"{next(iter(table))}_"})
    assert all(name in str(refusal.value) for name in table)
    assert f"did you mean {next(iter(table))!r}" in str(refusal.value)
