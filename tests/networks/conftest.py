"""Compilation in a hurry: these tests compile large programs to run them once."""

import jax
import pytest


@pytest.fixture(autouse=True)
def hurried_compilation(request):
    """Without most optimizations, unless a test compares programs bit for bit and is marked `optimized`."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimized") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
