"""Recipes: sections that a system does not read are refused by name, and do not lock out older runs."""

import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import build, defaults, saved
from diffusion_jax.config.recipes.recipe import CHOICES
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run.job import prepare
from tests.config.test_configs import STANDS_ON, as_if_trained, read

# Of every choice a section that is not the default.
CHANGED = {
    "process": dict(name="cosine"),
    "parameterization": dict(name="x0"),
    "weighting": dict(name="sigma_squared"),
    "times": dict(name="low_discrepancy"),
    "loss": dict(name="score_matching"),
    "network": dict(name="mlp", hidden=8),
    "solver": dict(name="heun"),
    "guidance": dict(name="classifier_free", scale=2.0),
    "editing": dict(name="sdedit", strength=0.5),
    "sampling.grid": dict(name="quadratic"),
    "sampling.threshold": dict(name="static"),
    "evaluation.likelihood": dict(name="ode"),
}
UNREAD = {
    system: [choice for choice in CHOICES if choice not in recipe.reads] for system, recipe in build.RECIPES.items()
}
# A run of every system that leaves a section unread, as "FILE:VARIANT" of configs/.
RUNS = {
    "noisy_classifier": "noisy_classifier:digits",
    "pixel_classifier": "pixel_classifier:composites_patches",
    "vdm": "vdm:digits",
    "variational_dequantization": "dequantization:digits",
    "autoencoder_kl": "autoencoder_kl:digits",
    "vqgan": "vqgan:digits",
    "discrete_diffusion": "masked_text:python",
    "consistency": "consistency:digits",
    "latent_consistency": "lcm:digits_latent",
    "text_to_image_consistency": "lcm:digits",
    "progressive_distillation": "progressive_distillation:digits",
    "super_resolution": "sr3:digits",
    "palette": "palette:digits",
    "bridge": "bridge:digits",
    "diffusion_autoencoder": "diffae:digits",
    "pdae": "pdae:digits",
    "schroedinger_bridge": "schroedinger:moons",
    "series_diffusion": "csdi:eeg",
    "timegrad": "timegrad:eeg",
    "cloud_completion": "pvd:completion",
    "point_vae": "point_diffusion:solids",
    "specgrad": "diffwave:fsdd_specgrad",
    "normalizing_flow": "nflow:digits",
    "gan": "gan:ring",
    "ddgan": "ddgan:digits",
}


def with_section(config: ConfigDict, choice: str, section: dict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    *path, last = choice.split(".")
    target = config[path[0]] if path else config
    target[last] = ConfigDict(section)
    return config


def of_system(name: str) -> ConfigDict:
    config = defaults()
    config.system.name = name
    return config


def test_every_choice_is_a_section_of_the_defaults_and_is_changed_here():
    assert list(CHANGED) == list(CHOICES)
    for choice, section in CHANGED.items():
        assert with_section(defaults(), choice, section) != defaults(), choice
    for recipe in build.RECIPES.values():
        assert recipe.reads <= set(CHOICES)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("system", build.RECIPES)
def test_a_changed_section_that_the_system_does_not_read_is_refused(system, choice):
    config = with_section(of_system(system), choice, CHANGED[choice])
    build.check_read(of_system(system))
    if choice in build.RECIPES[system].reads:
        build.check_read(config)
        return
    with pytest.raises(ConfigError) as refusal:
        prepare(config)  # the first thing that is checked
    for words in (f"config.{choice}", f"config.system.name={system!r}", *map(repr, CHANGED[choice].values())):
        assert words in str(refusal.value)


@pytest.mark.parametrize("key", ["name", "extra"])
def test_one_key_of_a_section_is_a_change(key):
    section = {**defaults().process.to_dict(), key: "changed"}
    with pytest.raises(ConfigError, match=rf"config\.process.*'{key}': 'changed'"):
        build.check_read(with_section(of_system("autoencoder_kl"), "process", section))


def test_every_system_with_an_unread_section_has_a_run_here():
    assert set(RUNS) == {system for system, choices in UNREAD.items() if choices}


@pytest.mark.parametrize("system", RUNS)
def test_an_older_run_with_such_sections_is_opened_and_gone_on_with(tmp_path, system):
    """Its config.json has the sections as they were changed; the config that goes on has the defaults."""
    now = read(RUNS[system])
    assert now.system.name == system
    if RUNS[system] in STANDS_ON:
        field, other = STANDS_ON[RUNS[system]]
        now.update_from_flattened_dict({field: as_if_trained(other)})
    then = now
    for choice in UNREAD[system]:
        then = with_section(then, choice, CHANGED[choice])
    with pytest.raises(ConfigError):
        build.check_read(then)
    (tmp_path / "checkpoints").mkdir()
    saved.write_config(tmp_path, then)
    run = build.trained(str(tmp_path), "config.guidance.path")
    assert run.config.to_dict() == then.to_dict()
    reads = build.RECIPES[system].reads
    for resume in (True, False):
        differences = saved.check_same_model(now, tmp_path, resume=resume, reads=reads)
        for choice in UNREAD[system]:
            assert any(line.startswith(f"config.{choice}.") for line in differences)
    assert build.reset_unread(run.config).to_dict() == now.to_dict()


@pytest.mark.parametrize("choice", saved.MODEL)
def test_a_section_that_the_system_reads_still_belongs_to_the_model(tmp_path, choice):
    now = of_system("diffusion")
    saved.write_config(tmp_path, with_section(now, choice, CHANGED[choice]))
    with pytest.raises(ConfigError, match=rf"config\.{choice}\."):
        saved.check_same_model(now, tmp_path, resume=False, reads=build.RECIPES["diffusion"].reads)
