"""A little of `python -m tests.fuzz` for every reader."""

import pytest

from tests.fuzz import TARGETS, fuzz


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    target = TARGETS[name]
    result = fuzz(target, tmp_path, inputs=4 if target.cost > 0.1 else 60, seed=1)
    assert not result.failures, result.failures[0]
    assert result.refused > 0
