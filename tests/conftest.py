"""Settings of the whole suite: run on the CPU, compile in a hurry and keep compiled programs between runs."""

import collections
import gc
import importlib.metadata
import os
import signal
from pathlib import Path

import pytest

SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).resolve().parents[1] / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Tests compile large programs to run them once.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # By default Equinox checks values through a callback to Python, and JAX keeps no program with a callback.
    "EQX_ON_ERROR": "nan",
    # By default JAX notes the whole Python stack, with pytest's, at every operation of every program.
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
}
# XLA's older code generation for loops compiles the tests in two thirds of the time. Later versions lack the flag.
if importlib.metadata.version("jax").startswith("0.10."):
    SETTINGS["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"


def environment() -> None:
    """Set through the environment, so that the programs which tests start inherit it."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


environment()
# Tests send these to themselves and to programs they start; a process in the background inherits that they are ignored.
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
# Traces are long-lived; with the default threshold a tenth of the time goes into looking for garbage among them.
gc.set_threshold(200_000, 50, 1000)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of tests marked `few(n)`, the variants after the first n are slow ones."""
    seen = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("few"):
            seen[item.function] += 1
            if seen[item.function] > marker.args[0]:
                item.add_marker("slow")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Programs as XLA optimizes them for tests marked `optimized`: in fixtures and in programs they start, too."""
    if not item.get_closest_marker("optimized"):
        return (yield)
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        try:
            return (yield)
        finally:
            jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Drop the programs of a module after it: every one that is kept makes the compilation of later ones slower."""
    yield
    import jax

    jax.clear_caches()
