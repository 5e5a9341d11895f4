"""Compilation in a hurry: these tests compile large programs to run them once."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def hurried_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
