"""What is recorded next to metrics of how samples were drawn."""

from types import SimpleNamespace

from ml_collections import ConfigDict

from diffusion_jax.config.recipes.diffusion import RECIPE
from diffusion_jax.guidance import steering
from diffusion_jax.run.report import drawn_by
from tests.runs import toy


def test_the_scales_are_those_of_the_guidance_that_was_built():
    """InstructPix2Pix has defaults of its own, which the config need not name."""
    config = toy(guidance=ConfigDict(dict(name="instruct_pix2pix")), editing=ConfigDict(dict(name="sdedit")))
    parts = SimpleNamespace(guidance=steering.instruct_pix2pix())
    job = SimpleNamespace(config=config, recipe=RECIPE, built=SimpleNamespace(parts=parts))
    values = drawn_by(job)
    assert values["guidance"] == "instruct_pix2pix"
    assert (values["scale"], values["image_scale"]) == (7.5, 1.5)
    assert values["editing"] == "sdedit"
