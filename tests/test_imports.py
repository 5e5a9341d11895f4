"""Import paths that the README documents: those of former versions are the modules of today, and lazy."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import diffusion_jax
from diffusion_jax import config, defaults, latents
from diffusion_jax.run import encode

ROOT = pathlib.Path(__file__).parents[1]
_, SECTION = (ROOT / "README.md").read_text().split("## Old import paths")
# Rows "| `old`, `old` | `diffusion_jax.folder.*` |".
DOCUMENTED = {
    name: f"{folder}.{name}"
    for names, folder in re.findall(r"^\| (`.*`) \| `(diffusion_jax\.[\w.]+)\.\*` \|$", SECTION, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", names)
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_short_names_are_forwarded(name):
    namespace: dict = {}
    exec(f"from diffusion_jax import {name}", namespace)
    assert namespace[name] is importlib.import_module(DOCUMENTED[name])


def test_all_forwards_are_documented():
    assert {name: f"diffusion_jax.{path}" for name, path in diffusion_jax._FORWARDED.items()} == DOCUMENTED


def test_former_modules():
    for name in ("choose", "defaults", "from_file", "replace"):
        assert f"`{name}`" in SECTION
        assert getattr(defaults, name) is getattr(config, name)
    assert "`diffusion_jax.defaults`" in SECTION and "`python -m diffusion_jax.latents`" in SECTION
    assert latents.main is encode.main


def test_moved_modules_are_not_importable_under_their_dotted_names():
    with pytest.raises(ModuleNotFoundError, match=r"diffusion_jax\.grids"):
        importlib.import_module("diffusion_jax.grids")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = diffusion_jax.nonsense


def test_importing_the_package_imports_no_jax():
    code = "import sys, diffusion_jax; print('jax' in sys.modules, diffusion_jax.__version__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.split() == ["False", diffusion_jax.__version__]
