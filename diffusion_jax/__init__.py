"""Train, sample and evaluate diffusion models in JAX. The axes of the algebra are the folders of this package."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Short names of modules that users import from the top level: `from diffusion_jax import grids, sampling`.
_FORWARDED = {
    "augmentation": "systems.augmentation",
    "bounds": "likelihood.bounds",
    "build": "config.build",
    "codebook": "networks.codebook",
    "conditions": "networks.conditions",
    "dequantization": "likelihood.dequantization",
    "grids": "solvers.grids",
    "interpolation": "solvers.interpolation",
    "low_rank": "systems.low_rank",
    "odes": "solvers.odes",
    "sampling": "solvers.sampling",
    "sections": "config.sections",
    "times": "losses.times",
    "weightings": "losses.weightings",
}


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when it is used: it needs every folder of the package
        return importlib.import_module("diffusion_jax.run.pretrained").load
    if name in _FORWARDED:
        return importlib.import_module(f"diffusion_jax.{_FORWARDED[name]}")
    raise AttributeError(f"module 'diffusion_jax' has no attribute {name!r}")
