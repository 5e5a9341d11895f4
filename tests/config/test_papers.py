"""Every full-size config has the values that its paper publishes, and docs/papers.md is written from the same table."""

import re

import pytest

from benchmarks import papers
from benchmarks.published import TABLE
from tests.config.test_configs import ALL, PUBLIC, read

SMALL = re.compile(  # variants that a CPU trains
    "toy2d:|:digits|:composites|:mnist(?!_emnist)|schroedinger:moons|flow:plane|:python|:shakespeare|:smiles|:infill$|:fsdd|:eeg|:etth1"
    "|:solids|:kaykit|sedd:absorb|sedd:uniform|pvd:completion|gan:ring|:stacked_digits"
)
# Other variants that follow no single paper.
OWN = (
    "classifier_free:cifar10",
    "classifier_free:emoji",
    "bridge:emoji",
    "bridge:emoji_ddbm",
    "bridge:emoji_regression",
    "palette:emoji",
    "palette:emoji_regression",
    "segdiff:emoji",
    "segdiff:emoji_regression",
    "segdiff:cells",
    "pixel_classifier:emoji",
    "pixel_classifier:emoji_patches",
    "pixel_classifier:emoji_denoiser",
    *(f"maps:{name}" for name in ("skeleton", "sketch", "segmentation", "depth")),
    "gan:stacked_mnist",
    *(f"medical:{name}" for name in ("slice", "k_space", "retina", "speckle", "translation", "histology", "cells")),
    *(f"medical:{name}" for name in ("mri_ct256", "histology128")),  # described in papers without code
    *("diffae:emoji", "diffae:emoji_ddpm", "pdae:emoji", "pdae:ffhq256", "pdae:ffhq256_latent"),
    "dequantization:cifar10",
    "dit:imagenet256_xl2_simple",
    "editing:imagenet256",
    "inpainting:imagenet256_uncond",
    "stable_diffusion:emoji_edits",
    *(f"autoencoder_kl:{name}" for name in ("cifar10_f2", "cifar10_f4", "crawl_tiles_f4", "emoji_f4")),
    *(f"vqgan:{name}" for name in ("cifar10_f4", "crawl_tiles_f4")),
    *(
        f"latent_diffusion:{name}"
        for name in ("cifar10_f2", "cifar10_f4", "crawl_tiles_f4", "semantic_f4", "layout_f4", "emoji_f4")
    ),
)
ROWS = [
    pytest.param(variant, source, values, id=f"{variant} {source}")
    for entry in TABLE
    for variant in entry.variants
    for source, values in entry.values.items()
]


@pytest.mark.parametrize(("variant", "source", "values"), ROWS)
def test_config_has_the_published_values(variant, source, values):
    config = read(variant)
    for key, value in values.items():
        ours = papers.value_of(config, key)
        expected = pytest.approx(value) if isinstance(value, float) else value
        if isinstance(value, tuple):
            expected = pytest.approx(value) if all(isinstance(part, float) for part in value) else value
        assert ours == expected, f"{key} of {variant}, published in {source}"
        assert isinstance(ours, bool) == isinstance(value, bool), key


def test_every_full_size_variant_is_in_the_table():
    listed = {variant for entry in TABLE for variant in entry.variants}
    assert listed <= set(ALL)
    full = {name for name in ALL if not SMALL.search(name) and not PUBLIC.search(name)}
    assert full - listed == set(OWN)


def test_sources_name_a_file_and_a_line_or_a_paper():
    for entry in TABLE:
        assert "arXiv:" in entry.paper and entry.values
        for source in entry.values:
            owner, _, rest = source.partition(" ")
            assert source.startswith("arXiv:") or (owner.count("/") == 1 and "." in rest), source


def test_the_page_is_current():
    page = papers.PAGE.read_text()
    assert page == papers.written(page), "python -m benchmarks.papers writes it"
