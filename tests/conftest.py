"""Settings of the whole suite: run on the CPU and keep compiled programs in `.jax_cache` between runs."""

import os
from pathlib import Path


def environment() -> None:
    """Set through the environment, so that the programs which tests start inherit it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".jax_cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # By default Equinox checks values through a callback to Python, and JAX keeps no program with a callback.
    os.environ.setdefault("EQX_ON_ERROR", "nan")


environment()


def pytest_collection_modifyitems(items) -> None:
    """Files with slow tests come first, so that at the end no worker waits for the last of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
